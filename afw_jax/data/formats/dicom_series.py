"""Tells which files of a folder belong to which DICOM series, from their headers alone."""

import dataclasses
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError

from afw_jax.system.file_names import file_name, file_names

ENDINGS = ('.dcm', '.dicom', '.ima')  # many DICOM files have none
_TAGS = (
  'SOPClassUID',
  'Modality',
  'ImageType',
  'SeriesInstanceUID',
  'SeriesNumber',
  'SeriesDescription',
  'Rows',
  'NumberOfFrames',
)
_NO_SCANS = ('SR', 'SEG', 'RTSTRUCT', 'RTPLAN', 'RTDOSE', 'RTRECORD', 'PR', 'KO', 'REG', 'FID', 'DOC')
_ENHANCED = {
  '1.2.840.10008.5.1.4.1.1.2.1',  # Enhanced CT
  '1.2.840.10008.5.1.4.1.1.2.2',  # Legacy Converted Enhanced CT
  '1.2.840.10008.5.1.4.1.1.4.1',  # Enhanced MR
  '1.2.840.10008.5.1.4.1.1.4.4',  # Legacy Converted Enhanced MR
}
_SECONDARY_CAPTURE = '1.2.840.10008.5.1.4.1.1.7'  # screenshots and sheets of the dose
# Exceptions of pydicom and its decoders on damaged or unsupported files.
BROKEN = (
  ArithmeticError, AttributeError, EOFError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError,
  BytesLengthException, InvalidDicomError, struct.error, zlib.error,
)  # fmt: skip


class PassedOver(NamedTuple):
  """A file or folder that is not read as a scan, and why."""

  path: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Series:
  """The slices of one series in one folder, or one enhanced multi-frame file.

  Attributes:
    label: tells it from the other series of the folder: number and description; '' for the only one.
    files: names of its files, sorted.
  """

  label: str
  files: tuple[str, ...]


def is_enhanced(sop_class: object) -> bool:
  """Whether a SOP class is enhanced multi-frame CT or MR: a file with a position for each of its frames."""
  return str(sop_class) in _ENHANCED


def is_dicom(start: bytes) -> bool:
  """Whether a file whose first 132 bytes these are is DICOM, with or without the preamble of the standard."""
  if start[128:132] == b'DICM':
    return True
  # Without it: the first element is of group 0002 or 0008, its number is small, and a type or a length follows.
  if len(start) < 132 or start[:2] not in (b'\x02\x00', b'\x08\x00'):
    return False
  element, kind, length = int.from_bytes(start[2:4], 'little'), start[4:6], int.from_bytes(start[4:8], 'little')
  return element <= 0x0100 and (kind.isalpha() and kind.isupper() or length <= 128)


def is_dicom_file(path: str | os.PathLike) -> bool:
  """Whether a path is that of a DICOM file, with any ending or none."""
  try:
    if not os.path.isfile(path):  # a pipe would wait for a writer
      return False
    with open(path, 'rb') as file:
      return is_dicom(file.read(132))
  except OSError:
    return False


def find_series(folder: str, names: Iterable[str]) -> tuple[list[Series], list[PassedOver], list[str]]:
  """Groups the DICOM files of a folder by series; an enhanced multi-frame file is a scan of its own.

  A damaged DICOM file, or one that is named like the slices, is taken for a slice of the only series of the folder, so
  that reading the series refuses it: without it a slice would be missing.

  Args:
    folder: of the files.
    names: of its files.

  Returns:
    (the series that may be scans; DICOM files that are no scans, and damaged ones; names of all other files).
  """
  members: dict[tuple[str, str, bool], list[tuple[str, dict[str, Any]]]] = {}
  passed, others, torn = [], [], []
  for name in sorted(names):
    path = os.path.join(folder, name)
    header = _header(path)
    if header is None:
      others.append(name)
    elif not (header.get('SOPClassUID') or header.get('Modality')):
      torn.append(name)
    elif reason := _not_a_scan(header):
      passed.append(PassedOver(path, reason))
    else:
      localiser = 'LOCALIZER' in str(header.get('ImageType')).upper()
      alone = name if is_enhanced(header.get('SOPClassUID')) else ''
      key = (str(header.get('SeriesInstanceUID', '')), alone, localiser)
      members.setdefault(key, []).append((name, header))
  found = {}
  for (uid, alone, localiser), files in members.items():
    single = len(files) == 1 and str(files[0][1].get('NumberOfFrames') or 1) == '1'
    if localiser or single:
      reason = 'is a localiser' if localiser else 'is a series of one slice'
      passed += [PassedOver(os.path.join(folder, name), reason) for name, _ in files]
    else:
      found[uid, alone] = files
  named_alike = [name for name in others if _like(name, [n for files in found.values() for n, _ in files])]
  others = [name for name in others if name not in named_alike]
  damaged = [*torn, *named_alike]
  if len(found) == 1 and not next(iter(found))[1]:
    added = damaged
  else:
    added, what = [], 'is a damaged DICOM file'
    passed += [PassedOver(os.path.join(folder, name), what) for name in damaged]
  labels = _labels({key: files[0][1] for key, files in found.items()})
  return (
    [Series(labels[key], tuple(sorted([*(name for name, _ in files), *added]))) for key, files in found.items()],
    passed,
    others,
  )


def _header(path: str) -> dict[str, Any] | None:
  """The elements that tell series apart, of a damaged header none; None where the file is not DICOM."""
  try:
    with open(path, 'rb') as file:
      if not is_dicom(file.read(132)):
        return None
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))
      # pydicom decodes an element when it is asked for: a damaged one raises its error here.
      return {tag: value for tag in _TAGS if (value := header.get(tag)) is not None}
  except OSError:
    return None
  except BROKEN:
    return {}


def _not_a_scan(header: dict[str, Any]) -> str:
  modality = str(header.get('Modality') or '')
  if modality in _NO_SCANS or not header.get('Rows'):
    return f'is DICOM without images (modality {modality or "not given"})'
  if str(header.get('SOPClassUID', '')).startswith(_SECONDARY_CAPTURE):
    return 'is a screenshot (DICOM secondary capture)'
  return ''


def _like(name: str, members: list[str]) -> bool:
  """Whether a file is named as a DICOM file, or as one of the slices but for its numbers."""
  pattern = lambda text: re.sub(r'\d+', '#', text.lower())
  return name.lower().endswith(ENDINGS) or ('#' in pattern(name) and pattern(name) in {pattern(m) for m in members})


def _labels(first: dict[tuple[str, str], dict[str, Any]]) -> dict[tuple[str, str], str]:
  """(series UID, multi-frame file or '') -> label, from number and description; '' for a single series."""
  if len(first) == 1:
    return dict.fromkeys(first, '')
  labels, uids = {}, [uid for uid, _ in first]
  for key, header in first.items():
    parts = [
      str(header.get(tag)).strip() for tag in ('SeriesNumber', 'SeriesDescription') if header.get(tag) is not None
    ]
    labels[key] = '_'.join(['series', *filter(None, parts)]) if any(parts) else f'series_{key[0]}'
  names = file_names(labels.values())
  twice = {key for key in labels if list(labels.values()).count(labels[key]) > 1}
  distinct = lambda uid, file: '_'.join([uid, file] if file and uids.count(uid) > 1 else [uid])
  return {
    key: file_name(f'{label}_{distinct(*key)}') if key in twice else names[label] for key, label in labels.items()
  }
