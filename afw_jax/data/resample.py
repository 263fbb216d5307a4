"""Scan grid -> working grid -> scan grid, one interpolation matrix per axis, with scipy.ndimage.zoom's values.

Grids are corner-aligned, as zoom's default is: first and last voxel centres coincide, so a step from n to m voxels
changes the spacing by (n - 1) / (m - 1).
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import scipy.ndimage

from afw_jax.errors import InputError

_MAX_SIDE = 4096
_BLOCK = 16  # output samples per matrix product: a block needs only its neighbourhood of the input
_NEGLIGIBLE = 1e-9  # spline weights below this share of the largest cannot change a float32 sum


@dataclasses.dataclass(frozen=True)
class Resampling:
  """How one scan goes to the working grid and back; every tuple is (z, y, x).

  Attributes:
    native: voxels of the scan.
    native_spacing_mm: its spacing.
    resampled: voxels at the target spacing, before fitting to the working size.
    offset: first working voxel in the resampled grid; above 0 cropped, below 0 padded, 0 where the fit is 'resize'.
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
    return {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()}

  @classmethod
  def from_json(cls, said: dict) -> 'Resampling':
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in said.items()})


def make_resampling(
  shape: Sequence[int],
  spacing_mm: Sequence[float],
  *,
  size: Sequence[int | None],
  spacing: Sequence[float | None],
  fit: str = 'resize',
) -> Resampling:
  """Plans the way of one scan, a training case or a new one alike.

  Args:
    shape: (D, H, W) of the scan.
    spacing_mm: its (z, y, x) spacing.
    size: voxels of the working grid, (h, w) or (d, h, w); None keeps what the spacing gives.
    spacing: target (z, y, x) spacing in mm; None keeps the scan's.
    fit: 'resize' interpolates from the target spacing to the size; 'crop_pad' cuts or fills evenly at both ends.

  Returns:
    A `Resampling`.

  Raises:
    InputError: a size, spacing or fit that makes no sense.
  """
  size = (None,) * (3 - len(size)) + tuple(size)
  if fit not in ('resize', 'crop_pad'):
    raise InputError(f'fit {fit!r}', 'unknown', "Use 'resize' or 'crop_pad'")
  if len(size) != 3 or any(s is not None and (s != int(s) or not 1 <= s <= _MAX_SIDE) for s in size):
    raise InputError(f'size {size}', 'is no size', f'Give whole numbers from 1 to {_MAX_SIDE}, (h, w) or (d, h, w)')
  if len(spacing) != 3 or any(s is not None and not 0 < s < 1000 for s in spacing):
    raise InputError(f'spacing_mm {tuple(spacing)}', 'is no spacing', "Give (z, y, x) in mm; None keeps the scan's")
  resampled = tuple(n if t is None else max(1, round(n * s / t)) for n, s, t in zip(shape, spacing_mm, spacing))
  if max(resampled) > _MAX_SIDE:
    raise InputError(
      f'spacing_mm {tuple(spacing)}', f'would make {resampled} voxels of {tuple(shape)}', 'Use a coarser spacing'
    )
  working = tuple(r if s is None else int(s) for r, s in zip(resampled, size))
  crop = fit == 'crop_pad'
  offset = tuple((r - w) // 2 if crop and r > w else -((w - r) // 2) if crop else 0 for r, w in zip(resampled, working))
  reached = resampled if crop else working
  new_mm = tuple(s * (n - 1) / (m - 1) if n > 1 and m > 1 else s * n / m for s, n, m in zip(spacing_mm, shape, reached))
  return Resampling(tuple(map(int, shape)), tuple(map(float, spacing_mm)), resampled, offset, working, new_mm, fit)


@functools.lru_cache(64)
def zoom_matrix(n_in: int, n_out: int, order: int) -> np.ndarray:
  """(n_out, n_in) float32: the linear map that scipy.ndimage.zoom is along one axis, found by zooming the identity.

  Zoom's default mode is kept with its quirk: for some pairs of sizes (512 -> 224 is one) rounding puts the last sample
  just outside, and the last row is zero. Equal sizes give the identity.

  Args:
    n_in, n_out: samples before and after.
    order: 0 nearest, 1 linear, 3 cubic spline (with its prefilter).

  Returns:
    The matrix, read-only.
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
  """(n_out,) int: the input sample scipy.ndimage.zoom(order=0) takes for each output; -1 where it gives background."""
  index = np.arange(n_in)
  if n_in != n_out:
    index = scipy.ndimage.zoom(index + 1, n_out / n_in, order=0) - 1
  index.flags.writeable = False
  return index


def to_working(volume: np.ndarray, plan: Resampling, order: int) -> np.ndarray:
  """Brings an image or label volume to the working grid: zoom to the spacing, then zoom or crop/pad to the size.

  Args:
    volume: (D, H, W) integer or float32.
    plan: from `make_resampling`.
    order: 0 nearest (labels), 1 linear, 3 cubic spline; the values are those of scipy.ndimage.zoom, step by step.

  Returns:
    (d, h, w) of the volume's dtype; integers are rounded, and a spline's overshoot is clipped to what the dtype holds.
    Padding is 0 for order 0, else the volume's smallest value (air).
  """
  if tuple(volume.shape) != plan.native:
    raise ValueError(f"volume {volume.shape} is not the plan's {plan.native}")
  if order == 0:
    return _gather(volume, plan)
  mz, my, mx = (_to_working_matrix(plan, axis, order) for axis in range(3))
  out = np.empty((plan.native[0], my.shape[0], mx.shape[0]), np.float32)
  for z in range(plan.native[0]):  # slice by slice: the intermediate stays in the cache
    out[z] = _apply(mx, _apply(my, volume[z].astype(np.float32, copy=False)).T).T
  if not np.array_equal(mz, np.eye(plan.native[0])):
    out = _apply(mz, out.reshape(out.shape[0], -1)).reshape(mz.shape[0], *out.shape[1:])
  out = _place(out, plan, out.dtype.type(volume.min()))
  if np.issubdtype(volume.dtype, np.integer):
    limits = np.iinfo(volume.dtype)
    out = np.clip(np.rint(out, out=out), limits.min, limits.max, out=out).astype(volume.dtype)
  return out


def _to_working_matrix(plan: Resampling, axis: int, order: int) -> np.ndarray:
  native, resampled, working = plan.native[axis], plan.resampled[axis], plan.working[axis]
  first = zoom_matrix(native, resampled, order)
  if plan.fit == 'crop_pad' or resampled == working:
    return first
  second = zoom_matrix(resampled, working, order)
  return second if native == resampled else (second.astype(np.float64) @ first).astype(np.float32)


def _apply(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """matrix (m, n) @ rows (n, k), leaving out the blocks of the matrix that are zero."""
  out = np.zeros((matrix.shape[0], rows.shape[1]), np.float32)
  for start in range(0, len(matrix), _BLOCK):
    block = matrix[start : start + _BLOCK]
    used = np.flatnonzero(block.any(axis=0))
    if used.size:
      low, high = used[0], used[-1] + 1
      np.matmul(block[:, low:high], rows[low:high], out=out[start : start + _BLOCK])
  return out


def _gather(volume: np.ndarray, plan: Resampling) -> np.ndarray:
  """Order 0: takes one input voxel per output voxel, so that no new value can appear."""
  for axis in range(3):
    index = nearest_index(plan.native[axis], plan.resampled[axis])
    if plan.fit == 'resize' and plan.resampled[axis] != plan.working[axis]:
      second = nearest_index(plan.resampled[axis], plan.working[axis])
      index = np.where(second < 0, -1, index[second])
    if np.array_equal(index, np.arange(plan.native[axis])):
      continue
    volume = np.take(volume, index, axis=axis)
    if (index < 0).any():
      volume[(slice(None),) * axis + (index < 0,)] = 0
  return np.ascontiguousarray(_place(volume, plan, volume.dtype.type(0)))


def _place(volume: np.ndarray, plan: Resampling, fill) -> np.ndarray:
  """Crops or pads to the working size by the plan's offsets."""
  if volume.shape == plan.working:
    return volume
  source = tuple(slice(max(o, 0), min(o + w, n)) for o, w, n in zip(plan.offset, plan.working, volume.shape))
  target = tuple(slice(s.start - o, s.stop - o) for s, o in zip(source, plan.offset))
  out = np.full(plan.working, fill, volume.dtype)
  out[target] = volume[source]
  return out


def restore_matrix(plan: Resampling, axis: int) -> np.ndarray:
  """(native, working) float32 linear interpolation from the working grid back to the scan's grid along one axis.

  Rows sum to 1 inside the working field of view (which reaches half a voxel beyond the outermost centres) and are zero
  outside it, where a cropped scan was never seen.
  """
  n, m, w = plan.native[axis], plan.resampled[axis], plan.working[axis]
  reached = w if plan.fit == 'resize' else m
  at = np.arange(n) * ((reached - 1) / max(n - 1, 1)) - plan.offset[axis]
  inside = (at >= -0.5) & (at <= w - 0.5)
  at = np.clip(at, 0, w - 1)
  low = np.minimum(np.floor(at).astype(int), max(w - 2, 0))
  matrix = np.zeros((n, w))
  np.add.at(matrix, (np.arange(n), low), 1 - (at - low))
  np.add.at(matrix, (np.arange(n), np.minimum(low + 1, w - 1)), at - low)
  return (matrix * inside[:, None]).astype(np.float32)


def restore_matrices(plan: Resampling) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(Mz (D, d), My (H, h), Mx (W, w)) float32: one along each axis of a class's probability map.

  Outside the working field of view all classes are 0, and argmax gives class 0, the background.
  """
  return restore_matrix(plan, 0), restore_matrix(plan, 1), restore_matrix(plan, 2)


def from_working(probabilities: np.ndarray, plan: Resampling) -> np.ndarray:
  """Brings class probabilities back to the scan's grid (numpy reference of what the device does).

  Args:
    probabilities: (d, h, w, C) float.
    plan: the plan of the scan.

  Returns:
    (D, H, W, C) float32; outside the working field of view the background (class 0) has probability 1.
  """
  mz, my, mx = restore_matrices(plan)
  out = np.tensordot(mz, np.asarray(probabilities, np.float32), (1, 0))
  out = np.stack([np.moveaxis(my @ np.moveaxis(classes, -1, 0) @ mx.T, 0, -1) for classes in out])
  seen = mz.sum(1)[:, None, None] * my.sum(1)[:, None] * mx.sum(1)
  out[..., 0] += 1 - seen
  return out
