"""What a DICOM segmentation needs of the scan that it is of: the headers of its slices, or of its multi-frame file."""

import logging
import os
import warnings
from typing import Any, NamedTuple

import numpy as np
import pydicom
from pydicom import valuerep
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRLittleEndian

from afw_jax.data.formats import dicom_frames
from afw_jax.data.formats.dicom_series import BROKEN
from afw_jax.data.formats.volume import Volume
from afw_jax.errors import InputError

_log = logging.getLogger('afw_jax')

INSTEAD = 'or predict without --format=dicom_seg'
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


class Source(NamedTuple):
  """The images that a segmentation refers to.

  Attributes:
    images: headers of the slices in the order of the volume, or of the one multi-frame file.
    order: for each frame of the segmentation, which follow those of a multi-frame file, the slice of the volume.
  """

  images: list[Dataset]
  order: list[int]


def read(scan: Volume) -> Source:
  """Reads the headers of a scan, with what highdicom asks of them.

  Args:
    scan: a DICOM series or a multi-frame file, from `volumes.read_image`.

  Raises:
    InputError: its headers are damaged, lack UIDs or contradict each other.
  """
  slices: list[Dataset] = []
  for k, name in enumerate(scan.geometry.slice_files):
    path = os.path.join(scan.source, name)
    try:
      slices.append(_header(path, slices[0] if k else None))
    except OSError as error:
      raise InputError(path, f'cannot be read ({error.strerror or error})', 'Check its permissions.') from error
    except BROKEN as error:
      raise InputError(
        path, f'its DICOM header is damaged ({str(error)[:200]})', f'Copy it again, {INSTEAD}.'
      ) from error
    if lacking := [uid for uid in _UIDS if not slices[-1].get(uid)]:
      what = f'has no {", ".join(lacking)}, so a DICOM segmentation cannot refer to it'
      raise InputError(path, what, f'Export the series again with its UIDs, {INSTEAD}.')
    if differing := [uid for uid in _ALIKE if slices[-1][uid].value != slices[0][uid].value]:
      what = f'is of another {differing[0]} than {scan.geometry.slice_files[0]}'
      raise InputError(path, what, f'Export the series again from one study, {INSTEAD}.')
  if len({one.SOPInstanceUID for one in slices}) < len(slices):
    what = 'has two slices with the same SOPInstanceUID, so a DICOM segmentation cannot refer to them'
    raise InputError(scan.source, what, f'Export the series again, {INSTEAD}.')
  spacing = valuerep.DSfloat(np.linalg.norm(np.array(scan.geometry.affine)[:3, 2]), auto_format=True)
  depth = scan.geometry.shape[2]
  if len(slices) < depth:  # a multi-frame file
    order = _take_frames(os.path.join(scan.source, scan.geometry.slice_files[0]), slices[0], spacing)
    return Source(slices, order)
  for one in slices:
    # Slices of one volume may differ in their last digits, which highdicom takes for another orientation.
    one.ImageOrientationPatient, one.PixelSpacing = slices[0].ImageOrientationPatient, slices[0].PixelSpacing
    one.SpacingBetweenSlices = spacing
    one.SliceThickness = one.get('SliceThickness')
  return Source(slices, list(range(depth)))


def _take_frames(path: str, header: Dataset, spacing: valuerep.DSfloat) -> list[int]:
  """Adds the places of the frames of a multi-frame file to its header; returns the slice of the volume of each."""
  with warnings.catch_warnings():  # as in _header
    warnings.simplefilter('ignore')
    read = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    frames = dicom_frames.groups(read)
    planes = [dicom_frames.plane(path, n, groups) for n, groups in enumerate(frames, 1)]
    thickness = dicom_frames.macro(frames[0], 'PixelMeasuresSequence').get('SliceThickness')
  positions, (orientation, pixel_spacing) = [one for one, *_ in planes], planes[0][1:]
  # Of the frames as of slices: their last digits may differ, which highdicom takes for another orientation.
  header.SharedFunctionalGroupsSequence = [
    _item(
      PlaneOrientationSequence=[_item(ImageOrientationPatient=orientation)],
      PixelMeasuresSequence=[
        _item(PixelSpacing=pixel_spacing, SpacingBetweenSlices=spacing, SliceThickness=thickness),
      ],
    )
  ]
  header.PerFrameFunctionalGroupsSequence = [
    _item(PlanePositionSequence=[_item(ImagePositionPatient=position)]) for position in positions
  ]
  normal = np.cross(*np.array(orientation, float).reshape(2, 3))
  along = np.array(positions, float) @ normal
  return np.argsort(np.argsort(along, kind='stable')).tolist()


def _item(**elements: Any) -> Dataset:
  item = Dataset()
  for name, value in elements.items():
    setattr(item, name, value)
  return item


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
