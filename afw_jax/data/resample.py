"""Resampling between the grid of a scan and the working grid, one interpolation matrix per axis.

The values are those of scipy.ndimage.zoom. Grids are corner-aligned, as with zoom's default: the centres of the first
and of the last voxel coincide, so that resampling n to m voxels multiplies the spacing by (n - 1) / (m - 1).
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import scipy.ndimage

from afw_jax.errors import InputError

_MAX_SIDE = 4096
_BLOCK = 16  # output samples per matrix product; a block depends on a neighbourhood of the input only
_NEGLIGIBLE = 1e-9  # spline weights below this fraction of the largest cannot change a float32 sum


@dataclasses.dataclass(frozen=True)
class Resampling:
  """The resampling of one scan to the working grid and back; every tuple is (z, y, x).

  Attributes:
    native: voxels of the scan.
    native_spacing_mm: spacing of the scan.
    resampled: voxels at the target spacing, before fitting to the working size.
    offset: index in the resampled grid of the first working voxel; > 0: cropped, < 0: padded; 0 for 'resize'.
    working: voxels of the working grid.
    spacing_mm: spacing of the working grid.
    fit: 'resize' or 'crop_pad'.
  """

  native: tuple[int, ...]
  native_spacing_mm: tuple[float, ...]
  resampled: tuple[int, ...]
  offset: tuple[int, ...]
  working: tuple[int, ...]
  spacing_mm: tuple[float, ...]
  fit: str

  def to_json(self) -> dict:
    """Numbers, strings and lists that JSON can hold; the inverse of `from_json`."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()}

  @classmethod
  def from_json(cls, fields: dict) -> 'Resampling':
    """The `Resampling` of a dict that `to_json` returned."""
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


def make_resampling(
  shape: Sequence[int],
  spacing_mm: Sequence[float],
  *,
  size: Sequence[int | None],
  spacing: Sequence[float | None],
  fit: str = 'resize',
) -> Resampling:
  """The resampling of a scan with the given grid.

  Args:
    shape: (D, H, W) of the scan.
    spacing_mm: (z, y, x) spacing of the scan.
    size: voxels of the working grid, (h, w) or (d, h, w); None: as the spacing gives.
    spacing: target (z, y, x) spacing in mm; None: that of the scan.
    fit: from the target spacing to the size by 'resize' (interpolation) or 'crop_pad' (evenly at both ends).

  Returns:
    A `Resampling`.

  Raises:
    InputError: an invalid size, spacing or fit.
  """
  size = (None,) * (3 - len(size)) + tuple(size)
  if fit not in ('resize', 'crop_pad'):
    raise InputError(f'fit {fit!r}', 'is not known', "Use 'resize' or 'crop_pad'")
  if len(size) != 3 or any(s is not None and (s != int(s) or not 1 <= s <= _MAX_SIDE) for s in size):
    raise InputError(
      f'size {size}', 'is not a valid size', f'Give whole numbers from 1 to {_MAX_SIDE}, (h, w) or (d, h, w)'
    )
  if len(spacing) != 3 or any(s is not None and not 0 < s < 1000 for s in spacing):
    raise InputError(
      f'spacing_mm {tuple(spacing)}', 'is not a valid spacing', 'Give (z, y, x) in mm; None keeps that of the scan'
    )
  resampled = tuple(n if t is None else max(1, round(n * s / t)) for n, s, t in zip(shape, spacing_mm, spacing))
  if max(resampled) > _MAX_SIDE:
    raise InputError(
      f'spacing_mm {tuple(spacing)}', f'resamples {tuple(shape)} to {resampled} voxels', 'Use a coarser spacing'
    )
  working = tuple(r if s is None else int(s) for r, s in zip(resampled, size))
  crop = fit == 'crop_pad'
  offset = tuple((r - w) // 2 if crop and r > w else -((w - r) // 2) if crop else 0 for r, w in zip(resampled, working))
  reached = resampled if crop else working
  new_mm = tuple(s * (n - 1) / (m - 1) if n > 1 and m > 1 else s * n / m for s, n, m in zip(spacing_mm, shape, reached))
  return Resampling(tuple(map(int, shape)), tuple(map(float, spacing_mm)), resampled, offset, working, new_mm, fit)


@functools.lru_cache(64)
def zoom_matrix(n_in: int, n_out: int, order: int) -> np.ndarray:
  """The matrix of scipy.ndimage.zoom along one axis, computed by zooming the identity.

  It includes a quirk of zoom's default mode: for some pairs of sizes, such as 512 -> 224, rounding puts the last sample
  just outside the input, and the last row is zero. Equal sizes give the identity.

  Args:
    n_in: samples before.
    n_out: samples after.
    order: 0 nearest, 1 linear, 3 cubic spline (with prefilter).

  Returns:
    (n_out, n_in) float32, read-only.
  """
  if n_in == n_out:
    matrix = np.eye(n_in, dtype=np.float32)
  else:
    matrix = scipy.ndimage.zoom(np.eye(n_in), (n_out / n_in, 1), order=order).astype(np.float32)
    matrix[np.abs(matrix) < _NEGLIGIBLE * np.abs(matrix).max()] = 0
  matrix.flags.writeable = False
  return matrix


@functools.lru_cache(64)
def nearest_index(n_in: int, n_out: int) -> np.ndarray:
  """(n_out,) int: index of the input sample that scipy.ndimage.zoom(order=0) takes; -1 where it gives background."""
  index = np.arange(n_in)
  if n_in != n_out:
    index = scipy.ndimage.zoom(index + 1, n_out / n_in, order=0) - 1
  index.flags.writeable = False
  return index


def to_working(volume: np.ndarray, resampling: Resampling, order: int) -> np.ndarray:
  """Resamples an image or a label map to the working grid: to the target spacing, then by `fit` to the size.

  Args:
    volume: (D, H, W) integers or float32.
    resampling: of the scan, from `make_resampling`.
    order: 0 nearest (labels), 1 linear, 3 cubic spline; the values are those of two calls of scipy.ndimage.zoom.

  Returns:
    (d, h, w) of the dtype of the volume; integers are rounded, and clipped where a spline overshoots the dtype.
    Padding is 0 for order 0, else the minimum of the volume (air).

  Raises:
    ValueError: the volume is not on the grid of the scan.
  """
  if tuple(volume.shape) != resampling.native:
    raise ValueError(f'the volume is {volume.shape}, but the scan {resampling.native}')
  if order == 0:
    return _gather(volume, resampling)
  mz, my, mx = (_to_working_matrix(resampling, axis, order) for axis in range(3))
  out = np.empty((resampling.native[0], my.shape[0], mx.shape[0]), np.float32)
  for z in range(resampling.native[0]):  # slice by slice: the intermediate result stays in the cache
    out[z] = _apply(mx, _apply(my, volume[z].astype(np.float32, copy=False)).T).T
  if not np.array_equal(mz, np.eye(resampling.native[0])):
    out = _apply(mz, out.reshape(out.shape[0], -1)).reshape(mz.shape[0], *out.shape[1:])
  out = _crop_or_pad(out, resampling, out.dtype.type(volume.min()))
  if np.issubdtype(volume.dtype, np.integer):
    limits = np.iinfo(volume.dtype)
    out = np.clip(np.rint(out, out=out), limits.min, limits.max, out=out).astype(volume.dtype)
  return out


def _to_working_matrix(resampling: Resampling, axis: int, order: int) -> np.ndarray:
  """The product of the matrices to the target spacing and to the working size."""
  native, resampled, working = resampling.native[axis], resampling.resampled[axis], resampling.working[axis]
  first = zoom_matrix(native, resampled, order)
  if resampling.fit == 'crop_pad' or resampled == working:
    return first
  second = zoom_matrix(resampled, working, order)
  return second if native == resampled else (second.astype(np.float64) @ first).astype(np.float32)


def _apply(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """matrix (m, n) @ rows (n, k), without the zero blocks of the matrix."""
  out = np.zeros((matrix.shape[0], rows.shape[1]), np.float32)
  for start in range(0, len(matrix), _BLOCK):
    block = matrix[start : start + _BLOCK]
    used = np.flatnonzero(block.any(axis=0))
    if used.size:
      low, high = used[0], used[-1] + 1
      np.matmul(block[:, low:high], rows[low:high], out=out[start : start + _BLOCK])
  return out


def _gather(volume: np.ndarray, resampling: Resampling) -> np.ndarray:
  """Order 0: copies one input voxel to each output voxel, so that no new value appears."""
  for axis in range(3):
    index = nearest_index(resampling.native[axis], resampling.resampled[axis])
    if resampling.fit == 'resize' and resampling.resampled[axis] != resampling.working[axis]:
      second = nearest_index(resampling.resampled[axis], resampling.working[axis])
      index = np.where(second < 0, -1, index[second])
    if np.array_equal(index, np.arange(resampling.native[axis])):
      continue
    volume = np.take(volume, index, axis=axis)
    if (index < 0).any():
      volume[(slice(None),) * axis + (index < 0,)] = 0
  return np.ascontiguousarray(_crop_or_pad(volume, resampling, volume.dtype.type(0)))


def _crop_or_pad(volume: np.ndarray, resampling: Resampling, fill) -> np.ndarray:
  """Crops or pads from the resampled grid to the working size."""
  if volume.shape == resampling.working:
    return volume
  source = tuple(
    slice(max(o, 0), min(o + w, n)) for o, w, n in zip(resampling.offset, resampling.working, volume.shape)
  )
  target = tuple(slice(s.start - o, s.stop - o) for s, o in zip(source, resampling.offset))
  out = np.full(resampling.working, fill, volume.dtype)
  out[target] = volume[source]
  return out


def restore_matrix(resampling: Resampling, axis: int) -> np.ndarray:
  """Linear interpolation from the working grid to the grid of the scan along one axis.

  Args:
    resampling: of the scan.
    axis: 0, 1 or 2 (z, y, x).

  Returns:
    (native, working) float32. Rows sum to 1 inside the working field of view, which extends half a voxel beyond the
    outermost voxel centres, and are zero outside, where the scan was cropped.
  """
  n, m, w = resampling.native[axis], resampling.resampled[axis], resampling.working[axis]
  reached = w if resampling.fit == 'resize' else m
  at = np.arange(n) * ((reached - 1) / max(n - 1, 1)) - resampling.offset[axis]
  inside = (at >= -0.5) & (at <= w - 0.5)
  at = np.clip(at, 0, w - 1)
  low = np.minimum(np.floor(at).astype(int), max(w - 2, 0))
  matrix = np.zeros((n, w))
  np.add.at(matrix, (np.arange(n), low), 1 - (at - low))
  np.add.at(matrix, (np.arange(n), np.minimum(low + 1, w - 1)), at - low)
  return (matrix * inside[:, None]).astype(np.float32)


def restore_matrices(resampling: Resampling) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The matrices that bring class probabilities from the working grid to the grid of the scan.

  Outside the working field of view the probabilities of all classes are 0, and argmax gives class 0, the background.

  Returns:
    ((D, d), (H, h), (W, w)) float32, one matrix for each axis.
  """
  return restore_matrix(resampling, 0), restore_matrix(resampling, 1), restore_matrix(resampling, 2)
