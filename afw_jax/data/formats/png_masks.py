"""CHAOS label masks: a folder of grey PNG images, one per slice of a DICOM series."""

import hashlib
import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from afw_jax.data.formats.dicom import list_files
from afw_jax.data.formats.geometry import Geometry
from afw_jax.errors import InputError

BROKEN = (
  Image.DecompressionBombError,
  EOFError,
  LookupError,
  OSError,
  SyntaxError,
  ValueError,
  struct.error,
  zlib.error,
)
WHOLE = 'Copy the folder of masks and its DICOM folder again, whole and with their original names.'


def read_label(folder: str | os.PathLike, geometry: Geometry) -> tuple[np.ndarray, Geometry, str]:
  """The masks of one scan as (D, H, W) uint8 grey values (CT: 255 liver; MR: 63, 126, 189, 252), grid and checksum.

  CHAOS pairs masks and slices by file name, and its names may run against the slice positions. So a mask belongs to the
  DICOM file of the same name; where the names differ, the m-th mask to the m-th DICOM file by name, provided that
  both namings number the slices in an order that cannot be mistaken.

  Args:
    folder: the PNG images (CHAOS: Ground).
    geometry: of the DICOM series (its `slice_files` tell which slice came from which file).

  Raises:
    InputError: a mask too few or too many, of another size, damaged or not grey; an order that names do not settle.
  """
  if not geometry.slice_files:
    raise InputError(
      folder,
      'PNG masks need the DICOM series they were drawn on: its file names give the slice order',
      'Use them with the DICOM folder, not with a converted scan.',
    )
  paths = list_files(folder)
  others = [p.name for p in paths if p.suffix.lower() != '.png']
  if others or not paths:
    raise InputError(
      folder,
      f'it is no folder of PNG masks ({", ".join(others[:3]) or "nothing in it"})',
      'Give the folder that holds one PNG mask per slice and nothing else.',
    )
  if len(paths) != len(geometry.slice_files):
    raise InputError(folder, f'{len(paths)} masks for {len(geometry.slice_files)} DICOM slices', WHOLE)
  array = np.empty(geometry.internal_shape, np.uint8)
  target = geometry.to_native(array)
  digests = []
  for k, path in enumerate(_in_slice_order(folder, paths, geometry.slice_files)):
    mask, digest = _read_mask(path, geometry.shape[:2])
    target[:, :, k] = mask.T
    digests.append(digest)
  return array, geometry, hashlib.sha256(b''.join(digests)).hexdigest()


def _in_slice_order(folder: str | os.PathLike, paths: list[Path], slice_files: tuple[str, ...]) -> list[Path]:
  """The mask of each slice k."""
  stems = [re.sub(r'\.dcm$', '', name, flags=re.IGNORECASE) for name in slice_files]
  by_stem = {p.stem: p for p in paths}
  if set(stems) == set(by_stem):
    return [by_stem[stem] for stem in stems]
  masks = sorted(paths, key=lambda p: _natural(p.stem))
  if not _is_numbering([_natural(p.stem) for p in masks]):
    raise InputError(folder, 'the names of the masks do not number the slices one by one', WHOLE)
  ranked = sorted(range(len(stems)), key=lambda k: _natural(stems[k]))  # slice indices in the order of their names
  if ranked not in (list(range(len(stems))), list(range(len(stems)))[::-1]):
    raise InputError(
      folder,
      'the DICOM files are not named in the order of their positions, so it is unknown which mask '
      'belongs to which slice',
      WHOLE,
    )
  return [path for _, path in sorted(zip(ranked, masks))]


def _natural(stem: str) -> list[str | int]:
  """Sort key in which numbers count by value: text, number, text, number, ..."""
  return [int(part) if n % 2 else part for n, part in enumerate(re.split(r'(\d+)', stem))]


def _is_numbering(names: list[list[str | int]]) -> bool:
  """Whether sorted names differ in a single number that goes up by equal steps."""
  if len({len(name) for name in names}) != 1:
    return False
  changing = [column for column in zip(*names) if len(set(column)) > 1]
  if len(changing) != 1 or not isinstance(changing[0][0], int):
    return False
  steps = {b - a for a, b in zip(changing[0], changing[0][1:])}
  return len(steps) == 1 and steps != {0}


def _read_mask(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, bytes]:
  """Grey values (rows, columns) uint8, having checked every checksum of the PNG, and the SHA-256 of the file."""
  try:
    data = path.read_bytes()
    with Image.open(io.BytesIO(data), formats=['PNG']) as image:
      found, mode = image.size, image.mode
      if found == size and mode in ('1', 'L'):  # verify() and load() each need an image freshly opened
        image.verify()
    with Image.open(io.BytesIO(data), formats=['PNG']) as image:
      mask = np.array(image.convert('L')) if found == size and mode in ('1', 'L') else None
  except BROKEN as e:
    raise InputError(path, f'it is not a sound PNG image ({e})', WHOLE) from e
  if mask is None:
    raise InputError(
      path,
      f'it is {found[0]} x {found[1]} pixels of mode {mode}; the scan has {size[0]} x {size[1]}, and '
      'masks are grey (8 bit) or black and white',
      WHOLE,
    )
  return mask, hashlib.sha256(data).digest()
