"""DICOM segmentations (DICOM-SEG): a label map as segments on the slices of the DICOM series that it is of.

Every frame lies on a slice of the series, in its rows and columns: nothing is flipped or resampled, and the position
and orientation of a frame are those in the file of the slice. Each file that is written is a new DICOM object in a
series of its own, with new UIDs. It needs the package highdicom (extra `dicom`), which is imported on use.
"""

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pydicom
from pydicom import valuerep
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage, generate_uid

import afw_jax
from afw_jax.data.formats.dicom_series import BROKEN
from afw_jax.data.formats.scans import Scan
from afw_jax.data.formats.volumes import Volume
from afw_jax.data.sets import organ_codes
from afw_jax.errors import InputError
from afw_jax.system.atomic_files import sync, write_errors

_log = logging.getLogger('afw_jax')

_INSTEAD = 'or predict without --format=dicom_seg'
_UIDS = ('SOPClassUID', 'SOPInstanceUID', 'StudyInstanceUID', 'SeriesInstanceUID', 'FrameOfReferenceUID')
_ALIKE = ('StudyInstanceUID', 'FrameOfReferenceUID')  # within a series
_OF_SLICE = (*_UIDS, 'Modality', 'Rows', 'Columns', 'ImagePositionPatient', 'PixelSpacing', 'SliceThickness')
# Of a patient and a study, in every DICOM object, though they may be empty.
_OF_STUDY = (
  *('PatientID', 'PatientName', 'PatientBirthDate', 'PatientSex', 'AccessionNumber'),
  *('StudyID', 'StudyDate', 'StudyTime', 'ReferringPhysicianName'),
)
_PARSED = {
  'PatientBirthDate': valuerep.DA,
  'PatientSex': ('', 'M', 'F', 'O').index,
  'StudyDate': valuerep.DA,
  'StudyTime': valuerep.TM,
}
_SERIES_NUMBER = 1000  # of a segmentation, plus that of its scan where DICOM's integers reach as far
_MOST_SERIES_NUMBER = 2**31 - 1 - _SERIES_NUMBER


def check_possible(path: str, scans: Iterable[Scan]) -> None:
  """Raises InputError where highdicom is not installed, or none of the scans found at a path is a DICOM series."""
  try:
    import highdicom  # noqa: F401 (on use: it takes a second, and is optional)
  except ImportError as error:
    cure = f"Install it with `pip install 'afw_jax[dicom]'`, {_INSTEAD}."
    what = f'needs the package highdicom, which is not installed ({error})'
    raise InputError('--format=dicom_seg', what, cure) from error
  if not any(scan.files for scan in scans):
    raise _not_dicom(path)


def _not_dicom(path: str) -> InputError:
  what = 'is not a DICOM series: a DICOM segmentation lies on the slices of one and refers to them'
  return InputError(path, what, f'Give the folder of the series, {_INSTEAD}.')


def opened(scan: Volume, *, organs: Sequence[str], checkpoint: str) -> Callable[[str, np.ndarray], None]:
  """Reads what a segmentation of a scan needs of its slices, before the scan is segmented.

  Args:
    scan: from `volumes.read_image`.
    organs: names of the classes 1, 2, ...
    checkpoint: digest of the network, which the segmentation records.

  Returns:
    A function (path, (D, H, W) class ids) that writes the file. It raises InputError where there is nothing but
    background, which a segmentation cannot hold, or the file cannot be written.

  Raises:
    InputError: the scan is not a DICOM series, or its slices lack UIDs or contradict each other.
  """
  if not scan.geometry.slice_files:
    raise _not_dicom(scan.source)
  slices = _read_slices(scan)
  return lambda path, labels: _write(path, labels, scan, slices, organs, checkpoint)


def _read_slices(scan: Volume) -> list[Dataset]:
  """The headers of the slices in the order of the volume, with what highdicom asks of them."""
  slices: list[Dataset] = []
  for k, name in enumerate(scan.geometry.slice_files):
    path = os.path.join(scan.source, name)
    try:
      slices.append(_header(path, slices[0] if k else None))
    except OSError as error:
      raise InputError(path, f'cannot be read ({error.strerror or error})', 'Check its permissions.') from error
    except BROKEN as error:
      raise InputError(
        path, f'its DICOM header is damaged ({str(error)[:200]})', f'Copy it again, {_INSTEAD}.'
      ) from error
    if lacking := [uid for uid in _UIDS if not slices[-1].get(uid)]:
      what = f'has no {", ".join(lacking)}, so a DICOM segmentation cannot refer to it'
      raise InputError(path, what, f'Export the series again with its UIDs, {_INSTEAD}.')
    if differing := [uid for uid in _ALIKE if slices[-1][uid].value != slices[0][uid].value]:
      what = f'is of another {differing[0]} than {scan.geometry.slice_files[0]}'
      raise InputError(path, what, f'Export the series again from one study, {_INSTEAD}.')
  if len({one.SOPInstanceUID for one in slices}) < len(slices):
    what = 'has two slices with the same SOPInstanceUID, so a DICOM segmentation cannot refer to them'
    raise InputError(scan.source, what, f'Export the series again, {_INSTEAD}.')
  affine = np.array(scan.geometry.affine)
  for one in slices:
    # Slices of one volume may differ in their last digits, which highdicom takes for another orientation.
    one.ImageOrientationPatient, one.PixelSpacing = slices[0].ImageOrientationPatient, slices[0].PixelSpacing
    one.SpacingBetweenSlices = valuerep.DSfloat(np.linalg.norm(affine[:3, 2]), auto_format=True)
    one.SliceThickness = one.get('SliceThickness')
  return slices


def _header(path: str, first: Dataset | None) -> Dataset:
  """The header of a slice: of the first all that can be read, of the others what tells them apart."""
  tags = None if first is None else list(_OF_SLICE)
  with warnings.catch_warnings():  # about values that are copied as they are
    warnings.simplefilter('ignore')
    read, header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags), Dataset()
    for tag in list(read.keys()):
      if tag.group <= 0x28 and not tag.is_private:
        try:
          header.add(read[tag])
        except BROKEN:  # pydicom decodes an element when it is asked for
          if pydicom.datadict.keyword_for_tag(tag) in _OF_SLICE:
            raise
  header.file_meta = FileMetaDataset()
  header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian  # of what is written: all values are decoded by now
  header.SpecificCharacterSet = 'ISO_IR 192'
  if first is None:
    for name in _OF_STUDY:
      setattr(header, name, _valid(path, name, header.get(name)))
  return header


def _valid(path: str, name: str, value: Any) -> Any:
  """A value of the patient or the study; None, with a warning, where it is none that the standard allows."""
  try:
    if isinstance(value, MultiValue):  # a backslash in a name: none of these has several values
      raise ValueError
    if value and name in _PARSED:
      _PARSED[name](str(value))
  except ValueError:
    _log.warning('%s: its %s is not valid (%r): DICOM segmentations leave it empty', path, name, str(value)[:40])
    return None
  return value


def _write(
  path: str, labels: np.ndarray, scan: Volume, slices: list[Dataset], organs: Sequence[str], checkpoint: str
) -> None:
  present = [c for c, count in enumerate(np.bincount(labels.ravel(), minlength=len(organs) + 1)) if c and count]
  if not present:
    what = 'nothing was found in it, and a DICOM segmentation cannot be empty: no file was written'
    raise InputError(scan.source, what, 'Look at the scan; an empty label map can be had without --format=dicom_seg.')
  numbers = np.zeros(len(organs) + 1, np.uint8)
  numbers[present] = np.arange(1, len(present) + 1)
  frames = numbers[scan.geometry.to_native(labels)].transpose(2, 1, 0)  # (slice, row, column)
  try:
    with warnings.catch_warnings():  # as above
      warnings.simplefilter('ignore')
      segmentation = _segmentation(frames, slices, [organs[c - 1] for c in present], checkpoint)
      with write_errors(path), open(path, 'wb') as file:
        segmentation.save_as(file)
        file.flush()
        sync(file.fileno())
  except BROKEN as error:
    what = f'its headers cannot be used for a DICOM segmentation ({type(error).__name__}: {str(error)[:200]})'
    raise InputError(scan.source, what, f'Export the series again, {_INSTEAD}.') from error


def _segmentation(frames: np.ndarray, slices: list[Dataset], organs: Sequence[str], checkpoint: str) -> Any:
  """The DICOM object, from segment numbers (slices, rows, columns)."""
  import highdicom
  import highdicom.coding_schemes
  import highdicom.sr
  from highdicom.seg import Segmentation

  made_by = highdicom.AlgorithmIdentificationSequence(
    name='afw_jax',
    family=highdicom.sr.CodedConcept('123110', 'DCM', 'Artificial Intelligence'),
    version=afw_jax.__version__,
    parameters={'checkpoint': checkpoint},
  )
  scheme = highdicom.coding_schemes.CodingSchemeIdentificationItem(
    organ_codes.PRIVATE, name='Names of organs in afw_jax'
  )
  number = int(slices[0].get('SeriesNumber') or 0)
  return Segmentation(
    source_images=slices,
    pixel_array=frames,
    segmentation_type='BINARY',
    segment_descriptions=[_described(n, organ, made_by) for n, organ in enumerate(organs, 1)],
    series_instance_uid=generate_uid(prefix=None),
    series_number=_SERIES_NUMBER + (number if 0 <= number <= _MOST_SERIES_NUMBER else 0),
    sop_instance_uid=generate_uid(prefix=None),
    instance_number=1,
    manufacturer='afw_jax',
    manufacturer_model_name='afw_jax',
    software_versions=afw_jax.__version__,
    device_serial_number=checkpoint[:16],
    content_label='SEGMENTATION',
    content_description='Organs found by a neural network',
    series_description='Segmentation of organs (afw_jax)',
    specific_character_set='ISO_IR 192',
    coding_schemes=[scheme],
  )


def _described(number: int, organ: str, made_by: Any) -> Any:
  from highdicom.seg import SegmentDescription
  from highdicom.sr import CodedConcept

  code = organ_codes.find(organ)
  concept = lambda one: CodedConcept(one.value, one.scheme, one.meaning)
  description = SegmentDescription(
    number, organ_codes.text(organ), concept(code.category), concept(code.kind), 'AUTOMATIC', made_by
  )
  if code.side:
    description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [concept(code.side)]
  return description


def is_whole(path: str) -> bool:
  """Whether a file is a DICOM object, a segmentation or another one, that can be read to its end."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      ds = pydicom.dcmread(path)
      if 'PixelData' not in ds:
        return ds.SOPClassUID != SegmentationStorage
      bits = int(ds.Rows) * int(ds.Columns) * int(ds.get('NumberOfFrames') or 1) * int(ds.BitsAllocated)
      return ds.file_meta.TransferSyntaxUID.is_compressed or len(ds.PixelData) >= math.ceil(bits / 8)
  except (OSError, *BROKEN):
    return False
