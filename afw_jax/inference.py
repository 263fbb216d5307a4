"""From a network to the label map of a whole volume: slices in batches, mirror averaging, back onto the source grid."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from afw_jax.errors import InputError

Array = jax.Array
PyTree = Any
# (variables, image (B, *S, 1) raw, window (B, 2)) -> probabilities (B, *S, C)
PredictStep = Callable[[PyTree, Array, Array], Array]


def mirror_averaged(predict_step: PredictStep, axes: Sequence[int]) -> PredictStep:
  """The mean over every combination of mirrored spatial axes (test-time augmentation).

  Args:
    predict_step: the network's forward pass.
    axes: spatial axes to mirror, 0 the first after the batch; () leaves it as it is.
  """
  if not axes:
    return predict_step
  if len(set(axes)) != len(axes) or not set(axes) <= {0, 1}:
    raise InputError('mirror_axes', f'{tuple(axes)} are not axes of a slice', 'Use 0 (front-back), 1 (left-right) or both.')
  flips = [tuple(a + 1 for a in c) for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]

  def averaged(variables, image, window):
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
    part = np.asarray(image[start:start + batch_size])
    padded = np.concatenate([part, np.repeat(part[-1:], batch_size - len(part), 0)]) if len(part) < batch_size else part
    yield start, predict_step(variables, padded[..., None], bounds)[:len(part)]


@jax.jit
def restore_slices(probabilities: Array, rows: Array, columns: Array) -> Array:
  """Linear interpolation of (n, h, w, C) onto the source grid: rows (H, h), columns (W, w) -> (n, H, W, C)."""
  out = jnp.einsum('Hh,nhwc->nHwc', rows, probabilities, precision='highest')
  return jnp.einsum('Ww,nHwc->nHWc', columns, out, precision='highest')


@jax.jit
def _label(probabilities: Array) -> Array:
  # Outside the field of view of a centre crop every probability is 0, and the first class, background, wins.
  return jnp.argmax(probabilities, -1).astype(jnp.uint8)


def segment(
    predict_step: PredictStep, variables: PyTree, image: np.ndarray, window: Sequence[float],
    matrices: tuple[np.ndarray, np.ndarray], *, batch_size: int = 8, keep_probabilities: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
  """The label map of one scan on its own grid.

  Args:
    predict_step: jitted.
    variables: of the network.
    image: (D, h, w) raw intensities on the working grid.
    window: (lo, hi) of this scan.
    matrices: (H, h) and (W, w), working grid -> source grid.
    batch_size: slices per call.
    keep_probabilities: also return them, (D, H, W, C) float16.

  Returns:
    (labels (D, H, W) uint8 class ids, probabilities or None).
  """
  rows, columns = (jnp.asarray(m, jnp.float32) for m in matrices)
  labels = np.empty((len(image), rows.shape[0], columns.shape[0]), np.uint8)
  kept, ready = None, None
  for start, working in predict_slices(predict_step, variables, image, window, batch_size=batch_size):
    native = restore_slices(working, rows, columns)
    if keep_probabilities:
      if kept is None:
        kept = np.empty((*labels.shape, native.shape[-1]), np.float16)
      kept[start:start + len(native)] = np.asarray(native)
    pending = (start, _label(native))
    if ready is not None:  # fetch one batch late, so that the device is never idle
      labels[ready[0]:ready[0] + len(ready[1])] = ready[1]
    ready = pending
  labels[ready[0]:] = ready[1]
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
