"""From a network to the label map of a whole volume: slices or windows in batches, mirror averaging, back onto the source grid."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from afw_jax.errors import InputError
from afw_jax.inference.sliding_window import predict_windows

Array = jax.Array
PyTree = Any
# (variables, image (B, *S, 1) raw, window (B, 2)) -> probabilities (B, *S, C)
PredictStep = Callable[[PyTree, Array, Array], Array]

_ROWS = 8  # slices of the source grid made at a time


def mirror_averaged(predict_step: PredictStep, axes: Sequence[int]) -> PredictStep:
  """The mean over every combination of mirrored spatial axes (test-time augmentation).

  Args:
    predict_step: the network's forward pass.
    axes: spatial axes to mirror, 0 the first after the batch; () leaves it as it is.

  Raises:
    InputError: an axis named twice or that no image has; from the result, on its first call, one this image has not.
  """
  if not axes:
    return predict_step
  if len(set(axes)) != len(axes) or not set(axes) <= {0, 1, 2}:
    raise InputError(
      'mirror_axes',
      f'{tuple(axes)} are not axes of an image',
      'Name each once: of a slice 0 (front-back), 1 (left-right); of a volume 0 (down-up), 1, 2.',
    )
  flips = [tuple(a + 1 for a in c) for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]

  def averaged(variables, image, window):
    if max(axes) >= image.ndim - 2:
      raise InputError('mirror_axes', f'a slice has no axis {max(axes)}', 'Use 0 (front-back), 1 (left-right) or both.')
    total = sum(jnp.flip(predict_step(variables, jnp.flip(image, f), window), f) for f in flips)
    return total / len(flips)

  return averaged


def predict_slices(
  predict_step: PredictStep, variables: PyTree, image: np.ndarray, window: Sequence[float], *, batch_size: int
) -> Iterator[tuple[int, Array]]:
  """Runs a 2D network over a volume.

  Args:
    predict_step: jitted.
    variables: of the network.
    image: (D, h, w) raw intensities on the working grid.
    window: (lo, hi) of this scan.
    batch_size: slices per call; the last call is padded, so there is one compilation.

  Yields:
    (first slice, probabilities (n, h, w, C)) on the device.
  """
  bounds = np.broadcast_to(np.asarray(window, np.float32), (batch_size, 2))
  for start in range(0, len(image), batch_size):
    part = np.asarray(image[start : start + batch_size])
    padded = np.concatenate([part, np.repeat(part[-1:], batch_size - len(part), 0)]) if len(part) < batch_size else part
    yield start, predict_step(variables, padded[..., None], bounds)[: len(part)]


def _grouped(stream: Iterator[tuple[int, Array]], matrix: np.ndarray) -> Iterator[tuple]:
  """Regroups working slices for so many rows of `matrix` (D0, D) at a time, holding no more of them than rows to come need.

  Yields:
    (first row, rows, tuple of slices (h, w, C), (_ROWS, number of slices) float32 | None where they are the rows); the
    tuple is always as long, and of the matrix what exceeds the rows is zero: one compilation.
  """
  same = _identity_as_none(matrix) is None
  used = matrix != 0
  low, high = used.argmax(1), used.shape[1] - 1 - used[:, ::-1].argmax(1)
  unseen = np.flatnonzero(~used.any(1))  # beyond the field of view: any slice does, of those held there
  low[unseen] = high[unseen] = np.where(unseen < used.any(1).argmax(), 0, used.shape[1] - 1)
  blocks = [(r, low[r : r + _ROWS].min(), high[r : r + _ROWS].max()) for r in range(0, len(matrix), _ROWS)]
  wide = _ROWS if same else max(last - first + 1 for _, first, last in blocks)
  held, todo = {}, iter(blocks)
  row, first, last = next(todo)
  for start, part in stream:
    held |= enumerate(_slices(part), start)
    while row is not None and last in held:
      rows = matrix[row : row + _ROWS, first : last + 1]
      weights = None if same else np.pad(rows, ((0, _ROWS - len(rows)), (0, wide - rows.shape[1]))).astype(np.float32)
      yield row, len(rows), tuple(held[min(z, last)] for z in range(first, first + wide)), weights
      row, first, last = next(todo, (None, used.shape[1], None))
    held = {z: part for z, part in held.items() if z >= first}


_slices = jax.jit(tuple)


def _identity_as_none(matrix: np.ndarray) -> np.ndarray | None:
  return None if np.array_equal(matrix, np.eye(len(matrix))) else np.asarray(matrix, np.float32)


@jax.jit
def _restore(
  slices: tuple[Array, ...], along_z: Array | None, rows: Array | None, columns: Array | None
) -> tuple[Array, Array]:
  """Working slices (h, w, C) -> probabilities (n, H, W, C) and labels (n, H, W) on the source grid; None is the identity."""
  out = jnp.stack(slices)
  for equation, matrix in (('Dd,dhwc->Dhwc', along_z), ('Hh,nhwc->nHwc', rows), ('Ww,nHwc->nHWc', columns)):
    if matrix is not None:
      out = jnp.einsum(equation, matrix, out, precision='highest')
  # Outside the field of view of a centre crop every probability is 0, and the first class, background, wins.
  return out, jnp.argmax(out, -1).astype(jnp.uint8)


def segment(
  predict_step: PredictStep,
  variables: PyTree,
  image: np.ndarray,
  window: Sequence[float],
  matrices: tuple[np.ndarray, np.ndarray, np.ndarray],
  *,
  window_size: Sequence[int],
  batch_size: int = 8,
  overlap: float = 0.5,
  keep_probabilities: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
  """The label map of one scan on its own grid, some slices at a time.

  Args:
    predict_step: jitted.
    variables: of the network.
    image: (D, h, w) raw intensities on the working grid.
    window: (lo, hi) intensities of this scan.
    matrices: (D0, D), (H, h) and (W, w), working grid -> source grid, from `resample.restore_matrices`.
    window_size: what the network sees at once: (h, w), slices; (d, h, w), windows of the volume, which may be all of it.
    batch_size: slices or windows per call.
    overlap: of neighbouring windows along each axis, in [0, 1).
    keep_probabilities: also return them, (D0, H, W, C) float16.

  Returns:
    (labels (D0, H, W) uint8 class ids, probabilities or None).
  """
  if len(window_size) not in (2, 3):
    raise InputError(f'window_size {tuple(window_size)}', 'is no size', 'Give (h, w) or (d, h, w).')
  predict = (
    predict_slices
    if len(window_size) == 2
    else functools.partial(predict_windows, window_size=window_size, overlap=overlap)
  )
  working = predict(predict_step, variables, image, window, batch_size=batch_size)
  rows, columns = (_identity_as_none(m) for m in matrices[1:])
  rows, columns = (m if m is None else jnp.asarray(m) for m in (rows, columns))
  labels = np.empty([len(m) for m in matrices], np.uint8)
  kept, ready = None, None
  for first, count, slices, along_z in _grouped(working, np.asarray(matrices[0])):
    probabilities, found = _restore(slices, along_z, rows, columns)
    if keep_probabilities:
      if kept is None:
        kept = np.empty((*labels.shape, probabilities.shape[-1]), np.float16)
      kept[first : first + count] = np.asarray(probabilities)[:count]
    if ready is not None:  # fetch one block late, so that the device is never idle
      labels[ready[0] : ready[0] + ready[1]] = np.asarray(ready[2])[: ready[1]]
    ready = (first, count, found)
  labels[ready[0] :] = np.asarray(ready[2])[: ready[1]]
  return labels, kept


def largest_components(labels: np.ndarray, num_classes: int) -> np.ndarray:
  """Keeps the largest 26-connected component of every organ; the rest becomes background.

  Args:
    labels: (D, H, W) class ids.
    num_classes: C, background included.
  """
  out = labels.copy()
  for c, box in enumerate(ndimage.find_objects(labels, max_label=num_classes - 1), 1):
    if box is None:
      continue
    organ = labels[box] == c
    parts, n = ndimage.label(organ, structure=np.ones((3,) * labels.ndim))
    if n > 1:
      sizes = np.bincount(parts.ravel())
      sizes[0] = 0
      out[box][organ & (parts != sizes.argmax())] = 0
  return out
