"""From class probabilities on the working grid to label maps on the grid of the scan, a few slices at a time."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from afw_jax.inference.forward import Array

NO_CLASS = 255  # of slices with probabilities that are NaN; networks have at most 254 organs
_ROWS = 8  # slices of the scan's grid made at a time


class Interpolation(NamedTuple):
  """Linear interpolation along one axis, in two forms.

  Attributes:
    matrix: (N, n) float32.
    index: (N, K) int32, the K samples that each result depends on.
    weights: (N, K) float32, their factors; 0 where there are fewer.
  """

  matrix: np.ndarray
  index: np.ndarray
  weights: np.ndarray


class Block(NamedTuple):
  """Slices of the working grid from which some slices of the scan's grid are interpolated.

  The number of working slices is the same in every block, and `along_z` is padded with rows of zeros, so that `restore`
  is compiled once.

  Attributes:
    first: first slice of the scan's grid.
    count: slices of the scan's grid.
    slices: of the working grid, (h, w, C) each.
    along_z: (_ROWS, len(slices)) float32, from these to slices of the scan; None where both grids have the same.
  """

  first: int
  count: int
  slices: tuple[Array, ...]
  along_z: np.ndarray | None


class Slab(NamedTuple):
  """A block of one network with what brings it to the scan's grid; None where both grids are the same."""

  slices: tuple[Array, ...]
  along_z: np.ndarray | None
  rows: Interpolation | None
  columns: Interpolation | None


def interpolation(matrix: np.ndarray) -> Interpolation | None:
  """The interpolation of one of `resample.restore_matrices`, (N, n); None for the identity."""
  if np.array_equal(matrix, np.eye(len(matrix))):
    return None
  matrix = np.asarray(matrix, np.float32)
  most = max(1, int((matrix != 0).sum(1).max()))
  index = np.sort(np.argsort(matrix == 0, axis=1, kind='stable')[:, :most], axis=1)
  return Interpolation(matrix, index.astype(np.int32), np.take_along_axis(matrix, index, 1))


def blocks(stream: Iterator[tuple[int, Array]], matrix: np.ndarray) -> Iterator[Block]:
  """Groups working slices for _ROWS slices of the scan at a time, holding only those that later ones need.

  Args:
    stream: (first slice, probabilities (n, h, w, C)) on the working grid, in order.
    matrix: (D, d), working grid -> scan's grid along z.
  """
  same = np.array_equal(matrix, np.eye(len(matrix)))
  used = matrix != 0
  low, high = used.argmax(1), used.shape[1] - 1 - used[:, ::-1].argmax(1)
  unseen = np.flatnonzero(~used.any(1))  # outside the field of view: any slice that is held will do
  low[unseen] = high[unseen] = np.where(unseen < used.any(1).argmax(), 0, used.shape[1] - 1)
  parts = [(r, low[r : r + _ROWS].min(), high[r : r + _ROWS].max()) for r in range(0, len(matrix), _ROWS)]
  wide = _ROWS if same else max(last - first + 1 for _, first, last in parts)
  held, todo = {}, iter(parts)
  row, first, last = next(todo)
  for start, part in stream:
    held |= enumerate(_slices(part), start)
    while row < len(matrix) and last in held:
      rows = matrix[row : row + _ROWS, first : last + 1]
      along_z = None if same else np.pad(rows, ((0, _ROWS - len(rows)), (0, wide - rows.shape[1]))).astype(np.float32)
      yield Block(row, len(rows), tuple(held[min(z, last)] for z in range(first, first + wide)), along_z)
      row, first, last = next(todo, (len(matrix), used.shape[1], 0))
    held = {z: part for z, part in held.items() if z >= first}


_slices = jax.jit(tuple)


def restore(slabs: Sequence[Slab], *, keep_probabilities: bool) -> tuple[Array, Array | None]:
  """The label map of some slices of the scan, by one network or by the mean of the probabilities of several.

  Outside the field of view of a centre crop every probability is 0, and the first class, background, wins.

  Args:
    slabs: of each network.
    keep_probabilities: also return the mean.

  Returns:
    (labels (n, H, W) uint8, all NO_CLASS where probabilities are NaN; probabilities (n, H, W, C) float32 or None).
  """
  return _restore(tuple(slabs), keep_probabilities)


@jax.jit(static_argnums=1)
def _restore(slabs: tuple[Slab, ...], keep_probabilities: bool) -> tuple[Array, Array | None]:
  # On a CPU the sums of neighbours go into the search for the largest, and no probability is written on the scan's
  # grid: a fraction of the time. Accelerators are made for products.
  on_cpu = _by_products if keep_probabilities else _by_neighbours
  each = [jax.lax.platform_dependent(slab, cpu=on_cpu, default=_by_products) for slab in slabs]
  total = functools.reduce(jnp.add, each)
  # NaN, which comes in all classes of a voxel, would pass for the first class. It is looked for on the working grids.
  has_nan = functools.reduce(jnp.logical_or, [jnp.isnan(one[..., 0]).any() for slab in slabs for one in slab.slices])
  labels = jnp.where(has_nan, jnp.uint8(NO_CLASS), jnp.argmax(total, -1).astype(jnp.uint8))
  return labels, total / len(each) if keep_probabilities else None


def _by_products(slab: Slab) -> Array:
  out = _along_z(slab)
  for equation, along in (('Hh,nhwc->nHwc', slab.rows), ('Ww,nHwc->nHWc', slab.columns)):
    if along is not None:
      out = jnp.einsum(equation, along.matrix, out, precision='highest')
  return out


def _by_neighbours(slab: Slab) -> Array:
  out = _along_z(slab)
  for axis, along in ((2, slab.columns), (1, slab.rows)):
    if along is not None:
      near = [jnp.take(out, index, axis=axis, mode='clip') for index in along.index.T]
      shape = [-1 if a == axis else 1 for a in range(out.ndim)]
      out = functools.reduce(jnp.add, [part * weight.reshape(shape) for part, weight in zip(near, along.weights.T)])
  return out


def _along_z(slab: Slab) -> Array:
  out = jnp.stack(slab.slices)
  return out if slab.along_z is None else jnp.einsum('Dd,dhwc->Dhwc', slab.along_z, out, precision='highest')
