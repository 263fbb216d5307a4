"""PNG label masks of the CHAOS challenge: one greyscale image per slice of a DICOM series."""

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
COPY = 'Copy the folder of masks and its DICOM folder again, complete and with the original file names.'


def read_label(folder: str | os.PathLike, geometry: Geometry) -> tuple[np.ndarray, Geometry, str]:
  """Reads the masks of one scan as a volume of grey values.

  CHAOS pairs masks and slices by file name, in an order that may be the reverse of the slice positions. A mask belongs
  to the DICOM file of the same name; where the names differ, the m-th mask belongs to the m-th DICOM file by name,
  provided that both number the slices without ambiguity.

  Args:
    folder: the PNG images (in CHAOS: Ground).
    geometry: grid of the DICOM series, with its `slice_files`.

  Returns:
    ((D, H, W) uint8 grey values; `geometry`; SHA-256 of the files' SHA-256 digests in slice order).

  Raises:
    InputError: missing or surplus masks, another size, damaged or coloured masks, an ambiguous order.
  """
  if not geometry.slice_files:
    raise InputError(
      folder,
      'PNG masks need the DICOM series they were drawn on, whose file names give the slice order',
      'Use them with the DICOM folder, not with a converted scan, nor with one that --resample_dicom interpolates.',
    )
  if len(geometry.slice_files) < geometry.shape[2]:
    raise InputError(
      folder,
      f'PNG masks cannot be matched with the frames of the multi-frame file {geometry.slice_files[0]}',
      'Give the label map as NIfTI, or export the scan as one slice per file.',
    )
  paths = list_files(folder)
  others = [p.name for p in paths if p.suffix.lower() != '.png']
  if others or not paths:
    raise InputError(
      folder,
      f'it is not a folder of PNG masks ({", ".join(others[:3]) or "it is empty"})',
      'Give a folder that holds one PNG mask per slice and no other files.',
    )
  if len(paths) != len(geometry.slice_files):
    raise InputError(folder, f'{len(paths)} masks for {len(geometry.slice_files)} DICOM slices', COPY)
  array = np.empty(geometry.internal_shape, np.uint8)
  target = geometry.to_native(array)
  digests = []
  for k, path in enumerate(_in_slice_order(folder, paths, geometry.slice_files)):
    mask, digest = _read_mask(path, geometry.shape[:2])
    target[:, :, k] = mask.T
    digests.append(digest)
  return array, geometry, hashlib.sha256(b''.join(digests)).hexdigest()


def _in_slice_order(folder: str | os.PathLike, paths: list[Path], slice_files: tuple[str, ...]) -> list[Path]:
  """The masks in the order of the slices k."""
  stems = [re.sub(r'\.dcm$', '', name, flags=re.IGNORECASE) for name in slice_files]
  by_stem = {p.stem: p for p in paths}
  if set(stems) == set(by_stem):
    return [by_stem[stem] for stem in stems]
  masks = sorted(paths, key=lambda p: _natural(p.stem))
  if not _is_numbering([_natural(p.stem) for p in masks]):
    raise InputError(folder, 'the names of the masks do not number the slices consecutively', COPY)
  ranked = sorted(range(len(stems)), key=lambda k: _natural(stems[k]))  # slice indices, ordered by file name
  if ranked not in (list(range(len(stems))), list(range(len(stems)))[::-1]):
    raise InputError(
      folder,
      'the DICOM files are not named in the order of their positions, so the masks cannot be matched to slices',
      COPY,
    )
  return [path for _, path in sorted(zip(ranked, masks))]


def _natural(stem: str) -> list[str | int]:
  """Sort key that compares numbers by value: text, number, text, number, ..."""
  return [int(part) if n % 2 else part for n, part in enumerate(re.split(r'(\d+)', stem))]


def _is_numbering(names: list[list[str | int]]) -> bool:
  """Whether sorted names differ in one number that increases by equal steps."""
  if len({len(name) for name in names}) != 1:
    return False
  changing = [column for column in zip(*names) if len(set(column)) > 1]
  if len(changing) != 1 or not isinstance(changing[0][0], int):
    return False
  steps = {b - a for a, b in zip(changing[0], changing[0][1:])}
  return len(steps) == 1 and steps != {0}


def _read_mask(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, bytes]:
  """((rows, columns) uint8 grey values, SHA-256 of the file); InputError on a wrong checksum inside the PNG."""
  try:
    data = path.read_bytes()
    with Image.open(io.BytesIO(data), formats=['PNG']) as image:
      found, mode = image.size, image.mode
      if found == size and mode in ('1', 'L'):  # verify() and load() each need an image freshly opened
        image.verify()
    with Image.open(io.BytesIO(data), formats=['PNG']) as image:
      mask = np.array(image.convert('L')) if found == size and mode in ('1', 'L') else None
  except BROKEN as e:
    raise InputError(path, f'it is not a valid PNG image ({e})', COPY) from e
  if mask is None:
    raise InputError(
      path,
      f'it has {found[0]} x {found[1]} pixels of mode {mode}; a mask of this scan has {size[0]} x {size[1]} and is '
      'greyscale (8 bits) or black and white',
      COPY,
    )
  return mask, hashlib.sha256(data).digest()
