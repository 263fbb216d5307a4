"""Preprocessing on the device: the intensity window of a raw batch, then the augmentation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Augment = Callable[[jax.Array, dict], dict]


def apply_window(image, window):
  """Maps raw intensities to [0, 1]: clip((image - low) / (high - low), 0, 1).

  Args:
    image: (B, *S, channels), any real dtype (HU for CT).
    window: (B, 2) low and high end of each sample's window, low < high; of several channels (B, channels, 2).

  Returns:
    (B, *S, channels) float32.
  """
  window = jnp.asarray(window, jnp.float32)
  ends, channels = (window, 1) if window.ndim == 2 else (window.swapaxes(1, 2), window.shape[1])
  low, high = jnp.moveaxis(ends.reshape(-1, 2, *[1] * (image.ndim - 2), channels), 1, 0)
  return jnp.clip((image.astype(jnp.float32) - low) / (high - low), 0.0, 1.0)


def make_preprocess(augment: Augment) -> Augment:
  """Builds the preprocessing of a training batch: window, then augmentation.

  Args:
    augment: (key, batch) -> batch.

  Returns:
    (key, raw batch with 'image', 'label' and 'window') -> batch with 'image' in [0, 1] and 'label'.
  """
  return lambda key, batch: augment(
    key, {'image': apply_window(batch['image'], batch['window']), 'label': batch['label']}
  )
