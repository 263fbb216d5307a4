"""Sliding-window inference: a volume of any size through a network with an input of fixed size, in bounded memory.

Windows overlap and are averaged with gaussian weights, as in nnU-Net (Isensee F., Jaeger P. F., Kohl S. A. A.,
Petersen J., Maier-Hein K. H., Nature Methods 18, 203-211, 2021, doi 10.1038/s41592-020-01008-z). Only the slices that
later windows can still reach are held on the device, in a ring buffer as deep as a window; the others are passed on.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from afw_jax.data.crops import darkest, read_crop
from afw_jax.errors import InputError
from afw_jax.inference.forward import Array, PredictStep, PyTree
from afw_jax.system import terminal

_BLOCK = 8  # slices passed on at a time
_PATIENCE_S = 3  # a prediction that takes longer shows a progress bar


def window_starts(size: int, window: int, overlap: float) -> list[int]:
  """First voxel of each window along one axis: evenly spaced, at most (1 - overlap) windows apart, the last at the end.

  Args:
    size: voxels of the volume; a volume that is not longer than the window gets one.
    window: voxels of the window.
    overlap: least overlap of neighbours, as a share of the window, in [0, 1).
  """
  room = max(size - window, 0)
  steps = math.ceil(room / max(window * (1 - overlap), 1) - 1e-9)
  return [round(room * i / steps) for i in range(steps + 1)] if steps else [0]


def gaussian_weights(window: int) -> np.ndarray:
  """(window,) float32 weights along one axis: a gaussian of sigma window / 8, with the value 1 at voxel window // 2.

  The weights of a window are the product over its axes. In float32 none of them is zero (the smallest is exp(-24)), so
  that none has to be replaced, as in half precision.
  """
  return np.exp(-0.5 * ((np.arange(window) - window // 2) / (window / 8)) ** 2).astype(np.float32)


def predict_windows(
  predict_step: PredictStep,
  variables: PyTree,
  image: np.ndarray,
  window: Sequence[float],
  *,
  window_size: Sequence[int],
  overlap: float = 0.5,
  batch_size: int,
) -> Iterator[tuple[int, Array]]:
  """Runs a 3D network over a volume of any size.

  Args:
    predict_step: jitted, (variables, image (B, d, h, w, channels) raw, window) -> probabilities (B, d, h, w, C).
    variables: of the network.
    image: (D, H, W) or (D, H, W, channels) raw intensities on the working grid, may be memory-mapped.
      Where it is smaller than a window it is padded evenly at both ends with the low end of the intensity window.
    window: (low, high) intensities of this scan, or one for each channel.
    window_size: (d, h, w) voxels of the sliding window.
    overlap: of neighbouring windows along each axis, in [0, 1).
    batch_size: windows per call; the last call is padded, so there is one compilation.

  Yields:
    (first slice, probabilities (n, H, W, C) float32 on the device), in z order, each slice once.

  Raises:
    InputError: the window size or the overlap is not valid.
  """
  if len(window_size) != 3 or any(n != int(n) or n < 1 for n in window_size):
    raise InputError(
      f'window_size {tuple(window_size)}', 'is not a valid size', 'Give whole numbers (d, h, w) above 0.'
    )
  if not 0 <= overlap < 1:
    raise InputError('overlap', f'{overlap} is not a valid share of a window', 'Use 0 or more, below 1.')
  window_size = tuple(map(int, window_size))
  before = [max(n - m, 0) // 2 for n, m in zip(window_size, image.shape)]
  starts = [window_starts(m, n, overlap) for n, m in zip(window_size, image.shape)]
  weights = [gaussian_weights(n) for n in window_size]
  # The windows are a full grid and the weights a product over axes; so is their sum, of which only the axes are kept.
  totals = [np.zeros(max(n, m), np.float32) for n, m in zip(window_size, image.shape)]
  for total, weight, firsts in zip(totals, weights, starts):
    for first in firsts:
      total[first : first + len(weight)] += weight
  rows, columns = (slice(b, b + m) for b, m in zip(before[1:], image.shape[1:]))
  block = min(_BLOCK, window_size[0])

  def finished(sums: Array, first: int, last: int) -> Iterator[tuple[int, Array]]:
    """The weighted means of the slices [first, last) of the padded volume, without the padding."""
    for start in range(first, last, block):
      stop = min(start + block, last)
      share = np.ones(block, np.float32)
      share[: stop - start] = totals[0][start:stop]
      means = _means(sums, start, share, totals[1], totals[2])
      low, high = max(start, before[0]), min(stop, before[0] + image.shape[0])
      if low < high:
        yield low - before[0], means[low - start : high - start, rows, columns]

  sums, given = None, 0  # slices of the padded volume that were passed on
  for corners, predicted in _predicted(predict_step, variables, image, window, window_size, before, starts, batch_size):
    if sums is None:
      sums = jnp.zeros((window_size[0], len(totals[1]), len(totals[2]), predicted.shape[-1]), jnp.float32)
    for b, (z, y, x) in enumerate(corners):
      if z > given:  # no later window reaches the slices before z
        yield from finished(sums, given, z)
        sums, given = _emptied(sums, given, z - given), z
      sums = _add(sums, predicted, b, z, y, x, *weights)
  if sums is not None:
    yield from finished(sums, given, len(totals[0]))


def _predicted(
  predict_step: PredictStep,
  variables: PyTree,
  image: np.ndarray,
  window: Sequence[float],
  size: Sequence[int],
  before: Sequence[int],
  starts: Sequence[Sequence[int]],
  batch_size: int,
) -> Iterator[tuple[list, Array]]:
  """(corners of some windows, their probabilities on the device), z slowest; computes one call ahead."""
  corners = list(itertools.product(*starts))
  batch_size = min(batch_size, len(corners))
  bounds = np.asarray(window, np.float32)
  bounds = np.broadcast_to(bounds, (batch_size, *bounds.shape))
  outside = darkest(window, image.dtype)
  pending = None
  with terminal.progress_bar(
    total=len(corners),
    desc='windows',
    unit='window',
    leave=False,
    delay=_PATIENCE_S,
    disable=not terminal.is_interactive(),
  ) as bar:
    for i in range(0, len(corners), batch_size):
      part = corners[i : i + batch_size]
      crops = [read_crop(image, [c - b for c, b in zip(corner, before)], size, outside) for corner in part]
      crops += crops[-1:] * (batch_size - len(part))
      coming = (part, predict_step(variables, np.stack(crops).reshape(batch_size, *size, -1), bounds))
      if pending:
        yield pending
        jax.block_until_ready(pending[1])  # never more than two calls under way: their results take memory
        bar.update(len(pending[0]))
      pending = coming
    if pending:
      yield pending


@functools.partial(jax.jit, donate_argnums=0)
def _add(sums: Array, predicted: Array, b: Array, z: Array, y: Array, x: Array, *weights: Array) -> Array:
  """Adds window b of a batch at (z, y, x); slice z lies at z modulo the depth of `sums`, which is the window's."""
  of_z, of_y, of_x = weights
  share = of_z[:, None, None, None] * (of_y[:, None] * of_x)[..., None]
  ring = jnp.roll(jax.lax.dynamic_index_in_dim(predicted, b, keepdims=False) * share, z, 0)
  corner = (jnp.zeros_like(y), y, x, jnp.zeros_like(y))
  return jax.lax.dynamic_update_slice(sums, jax.lax.dynamic_slice(sums, corner, ring.shape) + ring, corner)


@jax.jit
def _means(sums: Array, first: Array, share: Array, rows: Array, columns: Array) -> Array:
  """The weighted means of len(share) slices from `first` on; the summed weights are a product over axes."""
  taken = sums[(first + jnp.arange(len(share))) % len(sums)]
  return taken / (share[:, None, None, None] * (rows[:, None] * columns)[..., None])


@functools.partial(jax.jit, donate_argnums=0)
def _emptied(sums: Array, first: Array, count: Array) -> Array:
  """Sets `count` slices from `first` on to zero, for the slices that take their place in the ring."""

  def empty(i, sums):
    return jax.lax.dynamic_update_index_in_dim(sums, jnp.zeros_like(sums[0]), (first + i) % len(sums), 0)

  return jax.lax.fori_loop(0, count, empty, sums)
