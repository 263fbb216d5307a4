"""Geometry of 2D augmentation: rotations in the plane of a slice, and resampling of a sample by an affine map."""

from collections.abc import Callable

import jax.numpy as jnp


def rotation(angle_deg):
  """(2, 2) output-to-source matrix on (row, column) offsets from the centre; turns as scipy.ndimage.rotate does."""
  cos, sin = jnp.cos(jnp.deg2rad(angle_deg)), jnp.sin(jnp.deg2rad(angle_deg))
  return jnp.array([[cos, sin], [-sin, cos]])


def resample(image, label, matrix, shift=(0.0, 0.0), *, order: int = 1):
  """Resamples one sample through an in-plane affine map about the image centre.

  Args:
    image: (*S, channels) float; the last two axes of S are the plane, any before them (depth) share the map.
    label: (*S) integer.
    matrix: (2, 2), offset from the centre (row, column) of an output pixel -> offset of its source.
    shift: (2,) pixels added to the source position.
    order: 1 = linear image, 0 = nearest image; the label is always nearest.

  Returns:
    image and label of the same shapes and dtypes, 0 where the source lies outside.
  """
  height, width = label.shape[-2:]
  rows, cols = jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2
  source_row = matrix[0, 0] * rows[:, None] + matrix[0, 1] * cols + (height - 1) / 2 + shift[0]
  source_col = matrix[1, 0] * rows[:, None] + matrix[1, 1] * cols + (width - 1) / 2 + shift[1]

  def pick(plane, row, col):  # (H, W) at integer positions
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    flat = jnp.clip(row, 0, height - 1) * width + jnp.clip(col, 0, width - 1)
    taken = jnp.take(plane.reshape(*plane.shape[:-2], -1), flat, axis=-1, mode='clip')
    return jnp.where(inside, taken, 0)

  nearest = [jnp.floor(position + 0.5).astype(jnp.int32) for position in (source_row, source_col)]
  label = pick(label, *nearest)
  if order == 0:
    return each_channel(lambda plane: pick(plane, *nearest), image), label
  row, col = jnp.floor(source_row), jnp.floor(source_col)
  right, down = source_col - col, source_row - row
  row, col = row.astype(jnp.int32), col.astype(jnp.int32)

  def linear(plane):
    return (1 - down) * ((1 - right) * pick(plane, row, col) + right * pick(plane, row, col + 1)) + down * (
      (1 - right) * pick(plane, row + 1, col) + right * pick(plane, row + 1, col + 1)
    )

  return each_channel(linear, image).astype(image.dtype), label


def each_channel(function: Callable, image):
  """Applies a function of (*S) arrays to each channel of a sample (*S, channels)."""
  if image.shape[-1] == 1:
    return function(image[..., 0])[..., None]
  return jnp.stack([function(image[..., c]) for c in range(image.shape[-1])], -1)
