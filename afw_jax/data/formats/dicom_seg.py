"""DICOM segmentations (DICOM-SEG): a label map as segments on the slices of the DICOM series that it is of.

Every frame lies on a slice of the series, or on a frame of its multi-frame file, in its rows and columns: nothing is
flipped or resampled, and the position and orientation of a frame are those in the file of the slice. Each file that is
written is a new DICOM object in a series of its own, with new UIDs. It needs the package highdicom (extra `dicom`),
which is imported on use.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage, generate_uid

import afw_jax
from afw_jax.data.formats import dicom_seg_source
from afw_jax.data.formats.dicom_seg_source import INSTEAD
from afw_jax.data.formats.dicom_series import BROKEN
from afw_jax.data.formats.scans import Scan
from afw_jax.data.formats.volumes import Volume
from afw_jax.data.sets import organ_codes
from afw_jax.errors import InputError
from afw_jax.system.atomic_files import sync, write_errors

_SERIES_NUMBER = 1000  # of a segmentation, plus that of its scan where DICOM's integers reach as far
_MOST_SERIES_NUMBER = 2**31 - 1 - _SERIES_NUMBER


def check_possible(path: str, scans: Iterable[Scan]) -> None:
  """Raises InputError where highdicom is not installed, or none of the scans found at a path is a DICOM series."""
  try:
    import highdicom  # noqa: F401 (on use: it takes a second, and is optional)
  except ImportError as error:
    cure = f"Install it with `pip install 'afw_jax[dicom]'`, {INSTEAD}."
    what = f'needs the package highdicom, which is not installed ({error})'
    raise InputError('--format=dicom_seg', what, cure) from error
  if not any(scan.files for scan in scans):
    raise _not_dicom(path)


def _not_dicom(path: str) -> InputError:
  what = 'is not a DICOM series: a DICOM segmentation lies on the slices of one and refers to them'
  return InputError(path, what, f'Give the folder of the series, {INSTEAD}.')


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
    InputError: the scan is not a DICOM series, was resampled, or its slices lack UIDs or contradict each other.
  """
  if scan.resampled:
    what = 'was resampled to an even grid (--resample_dicom), and a DICOM segmentation lies on the slices themselves'
    raise InputError(scan.source, what, 'Predict without --format=dicom_seg: label maps lie on the new grid.')
  if not scan.geometry.slice_files:
    raise _not_dicom(scan.source)
  source = dicom_seg_source.read(scan)
  return lambda path, labels: _write(path, labels, scan, source, organs, checkpoint)


def _write(
  path: str,
  labels: np.ndarray,
  scan: Volume,
  source: dicom_seg_source.Source,
  organs: Sequence[str],
  checkpoint: str,
) -> None:
  present = [c for c, count in enumerate(np.bincount(labels.ravel(), minlength=len(organs) + 1)) if c and count]
  if not present:
    what = 'nothing was found in it, and a DICOM segmentation cannot be empty: no file was written'
    raise InputError(scan.source, what, 'Look at the scan; an empty label map can be had without --format=dicom_seg.')
  numbers = np.zeros(len(organs) + 1, np.uint8)
  numbers[present] = np.arange(1, len(present) + 1)
  frames = numbers[scan.geometry.to_native(labels)].transpose(2, 1, 0)[source.order]  # (frame, row, column)
  try:
    with warnings.catch_warnings():  # as above
      warnings.simplefilter('ignore')
      segmentation = _segmentation(frames, source.images, [organs[c - 1] for c in present], checkpoint)
      with write_errors(path), open(path, 'wb') as file:
        segmentation.save_as(file)
        file.flush()
        sync(file.fileno())
  except BROKEN as error:
    what = f'its headers cannot be used for a DICOM segmentation ({type(error).__name__}: {str(error)[:200]})'
    raise InputError(scan.source, what, f'Export the series again, {INSTEAD}.') from error


def _segmentation(frames: np.ndarray, images: list[Dataset], organs: Sequence[str], checkpoint: str) -> Any:
  """The DICOM object, from segment numbers (frames, rows, columns)."""
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
  number = int(images[0].get('SeriesNumber') or 0)
  return Segmentation(
    source_images=images,
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
