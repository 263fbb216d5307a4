"""The forward pass of evaluation: raw intensities to class probabilities, with optional test-time mirroring."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from afw_jax.errors import InputError
from afw_jax.preprocess import apply_window

Array = jax.Array
PyTree = Any
# (variables, image (B, *S, channels) raw intensities, window (B, 2) or (B, channels, 2)) -> probabilities (B, *S, C)
PredictStep = Callable[[PyTree, Any, Any], Array]


def make_predict_step(model, window: Callable[[Array, Array], Array] = apply_window) -> PredictStep:
  """The forward pass of evaluation, from raw intensities to probabilities.

  Args:
    model: a Linen module.
    window: (raw intensities (B, *S, channels), (low, high) (B, 2) or (B, channels, 2)) -> float image in [0, 1].

  Returns:
    predict_step(variables, image (B, *S, channels) raw, window) -> float32 probabilities (B, *S, C).
  """

  def predict_step(variables: PyTree, image: Array, bounds: Array) -> Array:
    logits = model.apply(variables, window(image, bounds), train=False)
    # With deep supervision, one of the heads is the prediction; the others serve training only.
    logits = logits[model.main_output] if isinstance(logits, (list, tuple)) else logits
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

  return predict_step


def mirror_averaged(predict_step: PredictStep, axes: Sequence[int]) -> PredictStep:
  """Averages predictions over every combination of mirrored spatial axes (test-time augmentation).

  Args:
    predict_step: the forward pass.
    axes: spatial axes to mirror, 0 the first after the batch; () returns `predict_step` itself.

  Returns:
    A function like `predict_step`; its first call raises InputError for an axis that the image does not have.

  Raises:
    InputError: an axis is named twice, or is none of 0, 1, 2.
  """
  if not axes:
    return predict_step
  if len(set(axes)) != len(axes) or not set(axes) <= {0, 1, 2}:
    raise InputError(
      'mirror_axes',
      f'{tuple(axes)} are not valid axes',
      'Name each once: of a slice 0 (front-back), 1 (left-right); of a volume 0 (down-up), 1, 2.',
    )
  flips = [tuple(a + 1 for a in c) for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]

  def averaged(variables: PyTree, image: Array, window: Array) -> Array:
    if max(axes) >= image.ndim - 2:
      raise InputError('mirror_axes', f'a slice has no axis {max(axes)}', 'Use 0 (front-back), 1 (left-right) or both.')
    predictions = [jnp.flip(predict_step(variables, jnp.flip(image, f), window), f) for f in flips]
    return sum(predictions[1:], predictions[0]) / len(flips)

  return averaged
