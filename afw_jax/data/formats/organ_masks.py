"""Label maps that are stored as one binary NIfTI mask for each organ, in one folder."""

import hashlib
import os
from collections.abc import Sequence

import numpy as np

from afw_jax.data.formats import nifti
from afw_jax.data.formats.geometry import MAX_DISPLACEMENT, Geometry, displacement
from afw_jax.errors import InputError


def read_label(
  folder: str | os.PathLike, organs: Sequence[str], overlap: str
) -> tuple[np.ndarray, Geometry, str, list[str]]:
  """Reads the masks of some organs as one label map.

  Args:
    folder: with a file ORGAN.nii.gz for each organ; other files are not looked at.
    organs: at most 255; the id of each is its place in this order, from 1.
    overlap: a voxel in the masks of several organs is an 'error', or gets the 'first' or the 'last' of them.

  Returns:
    ((D, H, W) uint8 ids; `Geometry`; SHA-256 of the files' SHA-256 digests in the order of the organs; remarks on
    overlapping masks, as sentences without a full stop).

  Raises:
    InputError: a mask is missing, damaged, on another grid than the first, or has several ids; or masks overlap.
  """
  paths = [os.path.join(folder, f'{organ}.nii.gz') for organ in organs]
  ids, grid, digests = np.zeros((0, 0, 0), np.uint8), None, []
  shared: dict[tuple[str, str], int] = {}
  for number, (organ, path) in enumerate(zip(organs, paths, strict=True), 1):
    values, geometry, sha256 = nifti.read_label(path)
    _check_mask(path, values)
    if grid is None:
      ids, grid = np.zeros(values.shape, np.uint8), geometry
    _check_grid(path, geometry, paths[0], grid)
    digests.append(sha256)
    mask = values > 0
    for other, count in enumerate(np.bincount(ids[mask], minlength=1)):
      if other and count:
        shared[organs[other - 1], organ] = int(count)
    ids[mask & (ids == 0) if overlap == 'first' else mask] = number
  found = ', '.join(f'{one} and {other} ({n} voxels)' for (one, other), n in shared.items())
  if shared and overlap == 'error':
    cure = 'Correct the masks, or set data.overlap: first or last in the order of the organs gets these voxels.'
    raise InputError(folder, f'masks overlap: {found}', cure)
  assert grid is not None  # there is an organ
  remarks = [f'masks overlap, and the {overlap} organ got the voxels: {found}'] if shared else []
  return ids, grid, hashlib.sha256(''.join(digests).encode()).hexdigest(), remarks


def _check_mask(path: str, values: np.ndarray) -> None:
  ids = [int(i) for i in np.flatnonzero(sum(np.bincount(p.ravel(), minlength=65536) for p in values)) if i]
  if len(ids) > 1:
    listed = ', '.join(map(str, ids[:5]))
    raise InputError(path, f'has the ids {listed}, and a mask of one organ has one', 'Give a binary mask.')


def _check_grid(path: str, grid: Geometry, first: str, wanted: Geometry) -> None:
  cure = 'Give the masks that were drawn on one scan.'
  if grid.internal_shape != wanted.internal_shape:
    what = f'its shape {grid.internal_shape} (z, y, x) differs from that of {first}, {wanted.internal_shape}'
    raise InputError(path, what, cure)
  voxels, mm = displacement(wanted, grid)
  if not voxels <= MAX_DISPLACEMENT:
    raise InputError(path, f'by its affine a corner lies {voxels:.2g} voxels ({mm:.3g} mm) from that of {first}', cure)
