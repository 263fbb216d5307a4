"""File formats: NIfTI, DICOM series, PNG masks and TransUNet files, read into one orientation and written back."""
