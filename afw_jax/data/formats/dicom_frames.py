"""Frames of enhanced multi-frame DICOM (CT, MR, and legacy converted ones): one file, with a position for each frame.

A macro (DICOM PS3.3, C.7.6.16) is in the functional groups of a frame, or in those that all frames share. The order of
the frames in the file means nothing.
"""

from collections.abc import Sequence
from typing import Any

from afw_jax.data.formats.dicom_series import is_enhanced
from afw_jax.errors import InputError

EXPORT = 'Export the series again, or as one slice per file.'
_ONE_STACK = 'Export each stack, phase or echo as a file of its own.'


def check_file(path: object, ds: Any) -> int:
  """The number of frames of an enhanced file.

  Args:
    path: of the file, for errors.
    ds: its data set.

  Raises:
    InputError: another number of frames is described than there should be, the file is a part of a larger object, or
      its frames are of several stacks or times.
  """
  if ds.get('ConcatenationUID'):
    raise InputError(path, 'it is a part of an object that is divided into several files (concatenation)', EXPORT)
  n, groups = int(ds.get('NumberOfFrames') or 0), ds.get('PerFrameFunctionalGroupsSequence') or ()
  if n < 1 or len(groups) != n:
    what = f'its NumberOfFrames is {n}, but PerFrameFunctionalGroupsSequence describes {len(groups)} frames'
    raise InputError(path, what, 'Copy it again. ' + EXPORT)
  for name, what in (('StackID', 'stacks'), ('TemporalPositionIndex', 'temporal positions')):
    found = {str(macro((frame,), 'FrameContentSequence').get(name, '')) for frame in groups}
    if len(found) > 1:
      listed = ', '.join(sorted(value or 'none' for value in found)[:5])
      raise InputError(path, f'its frames are of {len(found)} {what} ({name} {listed})', _ONE_STACK)
  return n


def groups(ds: Any) -> list[tuple[Any, ...]]:
  """(functional groups of its own, shared ones) of each frame, in the order of the file."""
  shared = tuple(ds.get('SharedFunctionalGroupsSequence') or ())
  return [(frame, *shared) for frame in ds.PerFrameFunctionalGroupsSequence]


def plane(path: object, number: int, groups: Sequence[Any]) -> tuple[Any, Any, Any]:
  """(position, orientation, pixel spacing) of a frame, as its file has them.

  Args:
    path: of the file, for errors.
    number: of the frame, from 1.
    groups: its functional groups.

  Raises:
    InputError: one of them is missing.
  """
  found = []
  for sequence, name in (
    ('PlanePositionSequence', 'ImagePositionPatient'),
    ('PlaneOrientationSequence', 'ImageOrientationPatient'),
    ('PixelMeasuresSequence', 'PixelSpacing'),
  ):
    value = macro(groups, sequence).get(name)
    if value is None or value == '':
      raise InputError(path, f'frame {number} has no {name} ({sequence})', EXPORT)
    found.append(value)
  return tuple(found)


def macro(groups: Sequence[Any], sequence: str) -> Any:
  """The item of a macro, from the first of several functional groups that has it; {} where none has."""
  return next((items[0] for one in groups if (items := one.get(sequence))), {})


def is_multi_frame(ds: Any) -> bool:
  """Whether a data set is an enhanced multi-frame image."""
  return is_enhanced(ds.get('SOPClassUID'))
