"""Corner-aligned linear upsampling by two (PyTorch's align_corners=True), which `jax.image.resize` does not have."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax

from afw_jax.models.layers.options import identity


def upsample_2x(x, constrain: Callable = identity):
  """Doubles every spatial axis by linear interpolation that maps corners to corners.

  Output i of n -> 2n is at i (n - 1) / (2n - 1) of the input, so that output 2k mixes inputs k - 1 and k, and output
  2k + 1 mixes k and k + 1: two shifted copies of x with fixed weights, interleaved. This needs neither gathers nor a
  matrix product (2 to 5 times slower on a CPU), its gradient consists of shifts too, and a sharded axis exchanges one
  row.

  Args:
    x: (B, *S, C), any number of spatial axes.
    constrain: that of the network. With fewer rows than devices the compiler would divide the pairs of new rows as
      well, and the program (jaxlib 0.10.2) gives wrong rows.

  Returns:
    (B, *(2 S), C) of x's dtype; the weights are float32 (float64 for a float64 x).
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  for axis in range(1, x.ndim - 1):
    wide = _double(wide, axis, constrain if axis == 1 else identity)
  return wide.astype(x.dtype)


def _double(x, axis, constrain):
  n = x.shape[axis]
  k = np.arange(n).reshape([n if a == axis else 1 for a in range(x.ndim)])
  before = (k / (2 * n - 1)).astype(x.dtype)  # weight of input k - 1 in output 2k; zero at k = 0
  after = ((n - 1 - k) / (2 * n - 1)).astype(x.dtype)  # weight of input k + 1 in output 2k + 1; zero at k = n - 1
  even = (1 - before) * x + before * _shift(x, axis, 1)
  odd = (1 - after) * x + after * _shift(x, axis, -1)
  return constrain(jnp.stack([even, odd], axis + 1)).reshape([2 * m if a == axis else m for a, m in enumerate(x.shape)])


def _shift(x, axis, by):
  """x moved by one along an axis, with a zero moved in (its weight is zero)."""
  return lax.pad(x, jnp.zeros((), x.dtype), [(by, -by, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)])
