"""Slices of a tilted gantry or at varying distances, interpolated to an even grid with perpendicular axes.

The planes of the new grid are parallel to the slices, with their pixel spacing; its slice spacing is the median
distance of neighbouring slices, and it begins at the first slice. It reaches as far as any slice does. A voxel lies
between two slices: in both the value at its place in the plane is interpolated linearly (bilinear), then linearly
between these along the normal. Beyond the last slice, by at most half a slice spacing, that slice counts alone. Where
one of the slices does not reach, there is padding.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from afw_jax.data.formats.dicom_slices import Slice, check_places
from afw_jax.data.formats.geometry import Geometry, check_affine, check_memory, check_shape
from afw_jax.errors import InputError

_FARTHEST_MM = 1e5  # from the first slice; beyond any grid
_SAME = 1e-5  # pixels, or shares of the distance of two slices, that rounded coordinates differ by


class Resampled(NamedTuple):
  """A scan on an even grid.

  Attributes:
    array: (D, H, W) float32.
    geometry: the grid.
    note: what was done, as a sentence without a full stop.
  """

  array: np.ndarray
  geometry: Geometry
  note: str


def evenly(folder: str | os.PathLike, slices: Sequence[Slice], fill: float) -> Resampled:
  """Interpolates slices to an even grid.

  Args:
    folder: of the slices, for errors.
    slices: two or more, alike, in the order of their distinct positions along the normal.
    fill: intensity of padding, and of voxels that the slices do not reach.

  Raises:
    InputError: the slices lie too far apart, the new grid is too large, or the orientation of a slice is not that of
      the others.
  """
  first = slices[0]
  (row, column), (between_rows, between_columns) = first.orientation, first.pixel_spacing
  normal = np.cross(row, column)
  moved = np.stack([s.position for s in slices]) - first.position
  if np.abs(moved).max() > _FARTHEST_MM:
    what = f'its slices lie {np.abs(moved).max() / 1000:.3g} m apart'
    raise InputError(folder, what, 'Keep only the slices of one stack in the folder, or export the series again.')
  along = moved @ normal
  in_plane = np.stack([moved @ column / between_rows, moved @ row / between_columns], axis=1)  # in pixels: down, right
  gaps = np.diff(along)
  spacing = float(np.median(gaps))
  start = in_plane.min(0)
  rows, columns = (n + math.ceil(extra - _SAME) for n, extra in zip(first.pixels.shape, np.ptp(in_plane, axis=0)))
  depth = round(along[-1] / spacing) + 1
  check_shape(folder, (columns, rows, depth))
  check_memory(folder, rows * columns * depth * 4)
  corner = first.position + start[0] * between_rows * column + start[1] * between_columns * row
  affine = dataclasses.replace(first, position=corner).affine(spacing * normal)
  check_affine(folder, affine)
  own = [dataclasses.replace(first, position=s.position).affine(spacing * normal) for s in slices]
  check_places(folder, slices, own, spacing * normal)
  geometry = Geometry(shape=(columns, rows, depth), affine=affine.astype(np.float32).tolist())
  array = np.empty(geometry.internal_shape, np.float32)
  target = geometry.to_native(array)

  @functools.lru_cache(maxsize=2)
  def in_place(n: int) -> np.ndarray:
    return _moved(slices[n].values(fill), start - in_plane[n], (rows, columns))

  for k in range(depth):
    place = float(np.interp(k * spacing, along, np.arange(len(slices))))
    below, share = int(place), place - int(place)
    if min(share, 1 - share) < _SAME:
      plane = in_place(round(place))
    else:
      plane = (1 - share) * in_place(below) + share * in_place(below + 1)
    target[:, :, k] = np.where(np.isnan(plane), fill, plane).T
  return Resampled(array, geometry, _note(moved, normal, gaps, geometry, spacing))


def _moved(values: np.ndarray, offset: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """A slice at places (row, column) + offset of its own pixels, interpolated; NaN where it does not reach."""
  whole = np.rint(offset)
  offset = np.where(np.abs(offset - whole) < _SAME, whole, offset)
  return ndimage.affine_transform(
    values.astype(np.float64), np.ones(2), offset, output_shape=shape, order=1, mode='constant', cval=np.nan
  )


def _note(moved: np.ndarray, normal: np.ndarray, gaps: np.ndarray, geometry: Geometry, spacing: float) -> str:
  sideways = moved[-1] - (moved[-1] @ normal) * normal
  tilt = math.degrees(math.atan2(float(np.linalg.norm(sideways)), float(moved[-1] @ normal)))
  distances = f'{gaps.min():.4g} to {gaps.max():.4g} mm' if np.ptp(gaps) > 1e-3 * spacing else f'{spacing:.4g} mm'
  size = ' x '.join(map(str, geometry.shape))
  return (
    f'its slices, {distances} apart and stacked {tilt:.1f} degrees off their normal, were interpolated to an even grid '
    f'of {size} voxels, {spacing:.4g} mm between slices'
  )
