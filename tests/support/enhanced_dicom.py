"""Writes small enhanced multi-frame DICOM files for the tests."""

import numpy as np
from dicom_series import RAW, SERIES
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

AXIAL = (1, 0, 0, 0, 1, 0)
STUDY = {
  'StudyInstanceUID': '1.2.3',
  'FrameOfReferenceUID': '1.2.3.5',
  'PatientID': 'P-17',
  'PatientName': 'Doe^Jane',
  'PatientBirthDate': '',
  'PatientSex': 'F',
  'StudyDate': '20240229',
  'StudyTime': '',
  'StudyID': '',
  'AccessionNumber': '',
  'ReferringPhysicianName': '',
}


def item(**elements):
  """A data set with some elements."""
  found = Dataset()
  for name, value in elements.items():
    setattr(found, name, value)
  return found


def enhanced(
  path, *, pixels=RAW, order=None, orientation=AXIAL, step=(0, 0, 2.5), shared=True, slope=1, intercept=-1024, **changes
):
  """An enhanced file, not written yet, of the same volume as `dicom_series.write_series`.

  Args:
    path: of the file.
    pixels: (slices, rows, columns), by position.
    order: of the slices in the file.
    orientation, step: of the slices.
    shared: whether orientation, pixel measures and rescaling are in the groups that the frames share.
    slope, intercept: of the rescaling, a number or one for each slice; None: no rescaling.
    **changes: of elements; None removes one.
  """
  order = range(len(pixels)) if order is None else order
  meta = FileMetaDataset()
  meta.TransferSyntaxUID = ExplicitVRLittleEndian
  meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = EnhancedCTImageStorage, generate_uid()
  ds = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
  ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = EnhancedCTImageStorage, meta.MediaStorageSOPInstanceUID, 'CT'
  ds.ImageType = ['ORIGINAL', 'PRIMARY', 'VOLUME', 'NONE']
  ds.SeriesInstanceUID, ds.InstanceNumber, ds.NumberOfFrames = SERIES, 1, len(order)
  ds.Rows, ds.Columns = pixels.shape[1:]
  ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, 'MONOCHROME2'
  ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
  ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == 'i')
  common, frames = Dataset(), []
  for place, n in enumerate(order, 1):
    frame = item(FrameContentSequence=[item(StackID='1', InStackPositionNumber=place)])
    position = [round(float(v), 6) for v in np.array([-10, -20, 100.0]) + n * np.array(step)]
    frame.PlanePositionSequence = [item(ImagePositionPatient=position)]
    group = common if shared else frame
    group.PlaneOrientationSequence = [item(ImageOrientationPatient=list(orientation))]
    group.PixelMeasuresSequence = [item(PixelSpacing=[0.75, 0.5], SliceThickness=9, SpacingBetweenSlices=2.5)]
    if slope is not None:
      group = common if np.isscalar(slope) and shared else frame
      one = lambda value: value if np.isscalar(value) else value[n]  # noqa: B023 (called at once)
      scale = item(RescaleSlope=one(slope), RescaleIntercept=one(intercept), RescaleType='HU')
      group.PixelValueTransformationSequence = [scale]
    frames.append(frame)
  ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [common], frames
  ds.PixelData = np.ascontiguousarray(pixels[list(order)]).tobytes()
  for name, value in changes.items():
    if value is None:
      delattr(ds, name)
    else:
      setattr(ds, name, value)
  return ds


def write_enhanced(path, **options):
  """Writes `enhanced` to a path; returns the path."""
  path.parent.mkdir(parents=True, exist_ok=True)
  enhanced(path, **options).save_as(path)
  return path


def frame_position(ds, number):
  """Where frame `number`, from 1, of an enhanced file is."""
  return ds.PerFrameFunctionalGroupsSequence[number - 1].PlanePositionSequence[0].ImagePositionPatient
