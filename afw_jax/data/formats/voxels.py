"""Voxels of a decoded file as a scan or a label map in the internal orientation, whatever its format."""

import os
from collections.abc import Callable, Iterable

import numpy as np

from afw_jax.data.formats.geometry import Geometry
from afw_jax.data.formats.label_ids import whole_ids
from afw_jax.errors import InputError

INT16 = np.iinfo(np.int16)
REWRITE = 'Export it again from the original scan, or correct the header.'

Decoded = tuple[np.ndarray, Geometry, str]  # (D, H, W) array, voxel grid, SHA-256 of the file
# path -> raw voxels (i, j, k), slope and intercept of their scale, grid, SHA-256 of the file
Decode = Callable[[str | os.PathLike], tuple[np.ndarray, float, float, Geometry, str]]


def as_image(path: str | os.PathLike, decode: Decode) -> Decoded:
  """Reads a scan.

  Args:
    path: of the file.
    decode: for its format.

  Returns:
    ((D, H, W) int16 if every scaled value is an integer that fits, else float32; `Geometry`; SHA-256 of the file).

  Raises:
    InputError: damaged or inconsistent file, NaN or infinite voxels, values beyond float32.
  """

  def choose(low: float, high: float, integral: bool) -> np.dtype:
    if max(abs(low), abs(high)) > float(np.finfo(np.float32).max):
      raise InputError(path, f'its values reach {high:g}, more than float32 can hold', REWRITE)
    return np.dtype(np.int16 if integral and INT16.min <= low and high <= INT16.max else np.float32)

  return _read(path, decode, choose, lambda values: values)


def as_label(path: str | os.PathLike, decode: Decode) -> Decoded:
  """Reads a label map.

  Args:
    path: of the file.
    decode: for its format.

  Returns:
    ((D, H, W) uint8, or uint16 if an id exceeds 255; `Geometry`; SHA-256 of the file).

  Raises:
    InputError: damaged or inconsistent file, values that are not integers from 0 to 65535 (to 0.001).
  """

  def choose(low: float, high: float, integral: bool) -> np.dtype:
    if low < 0 or high > 65535:
      raise InputError(
        path,
        f'its label ids range from {low:g} to {high:g}; 0 to 65535 are valid',
        'Give the label file, not the scan, with ids from 0 to 65535.',
      )
    return np.dtype(np.uint8 if high <= 255 else np.uint16)

  def ids(values: np.ndarray) -> np.ndarray:
    ids, strays = whole_ids(values)
    if strays.size:
      raise InputError(
        path,
        f'its values are not all integers (one is {strays[0]:.6g}), so it is not a label map',
        'Give the label file. If it was resampled, resample it again with nearest neighbour interpolation; if it was '
        'saved with a scale factor (scl_slope), save it again as integers without one.',
      )
    return ids

  return _read(path, decode, choose, ids)


def _read(
  path: str | os.PathLike,
  decode: Decode,
  choose: Callable[[float, float, bool], np.dtype],
  cleaned: Callable[[np.ndarray], np.ndarray],
) -> Decoded:
  """Reads a volume of the type that `choose` names for (smallest, largest, all integers) of its `cleaned` values."""
  try:
    native, slope, inter, geometry, sha256 = decode(path)
    values = lambda k: cleaned(_scaled(native[:, :, k], slope, inter))
    low, high, integral = _extent(path, map(values, range(native.shape[2])))
    array = np.empty(geometry.internal_shape, choose(low, high, integral))
    target = geometry.to_native(array)
    for k in range(native.shape[2]):
      target[:, :, k] = values(k)
  except OSError as e:
    raise InputError(path, f'cannot be read ({e.strerror or e})', 'Check the path and its permissions.') from e
  except MemoryError as e:
    raise InputError(path, 'does not fit into memory', 'Crop or resample the scan, or use a larger machine.') from e
  return array, geometry, sha256


def _scaled(slab: np.ndarray, slope: float, inter: float) -> np.ndarray:
  if (slope, inter) == (1.0, 0.0):
    return slab
  with np.errstate(over='ignore', invalid='ignore'):  # _extent refuses values that overflow
    return slab * np.float64(slope) + np.float64(inter)


def _extent(path: str | os.PathLike, slabs: Iterable[np.ndarray]) -> tuple[float, float, bool]:
  """(smallest, largest, whether all are integers) of the values; InputError on NaN and infinity."""
  lows, highs, integral = [], [], True
  for k, slab in enumerate(slabs):
    lows.append(slab.min().item())
    highs.append(slab.max().item())
    if not (np.isfinite(lows[-1]) and np.isfinite(highs[-1])):
      raise InputError(
        path,
        f'slice {k} (counted from 0) has NaN or infinite voxels',
        'Replace them (in a CT scan by -1000, in MR and in label maps by 0) and write the file again.',
      )
    integral = integral and (slab.dtype.kind in 'iu' or bool(np.all(slab == np.rint(slab))))
  return min(lows), max(highs), integral
