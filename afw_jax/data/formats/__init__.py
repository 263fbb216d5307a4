"""Image file formats: NIfTI, DICOM series, PNG masks and TransUNet's files, read into one orientation."""
