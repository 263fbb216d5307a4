"""Depthwise convolution (one kernel per channel) as shifted multiply-adds, with hand-written gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax

TAPS = 9  # taps of the weight gradient in one pass over the features; more gain little and take long to compile


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(x, kernel, dilation: int = 1, parts: int = 1):
  """Correlates each channel with its own odd kernel, keeping the size by zero padding.

  XLA's grouped convolution is 20 to 90 times slower on a CPU, where it has no special form for one channel per group.
  Here every tap is a shifted copy of x times a row of weights, which fuse into one loop over the channels. The gradient
  with respect to x is the same with the kernel mirrored; the one with respect to the kernel sums x times the same
  shifted copies of the gradient of the output.

  Args:
    x: (B, H, W, C).
    kernel: (k, l, 1, C), k and l odd.
    dilation: distance of the taps, in pixels.
    parts: number of devices over which H is divided. Each part then receives the border rows of its neighbours once;
      otherwise the compiler exchanges borders, and keeps a copy of x, for each row of the kernel.

  Returns:
    (B, H, W, C) of x's dtype; the sums are float32 (float64 for a float64 x).
  """
  return _forward(x, kernel, dilation, parts)


def _divided(x, parts, rows):
  """(B, parts, H / parts, W, C); x itself for one part, or if a part has fewer rows than the `rows` it has to send."""
  if parts == 1 or x.shape[1] % parts or rows > x.shape[1] // parts:
    return x
  return x.reshape(x.shape[0], parts, -1, *x.shape[2:])


def _shifted(x, shape, dilation, spare=0):
  """For each tap (row by row), x of `_divided` shifted so that the pixel under the tap is at the output's position."""
  zero, (rows, columns) = jnp.zeros((), x.dtype), (dilation * (k - 1) // 2 for k in shape)
  pads, padded = [*[(0, 0, 0)] * (x.ndim - 3), (rows, rows, 0), (columns, columns, 0), (0, spare, 0)], x
  if x.ndim == 5:  # last rows of the previous part, first rows of the next
    above, below = (
      lax.pad(border, zero, [(0, 0, 0), (by, -by, 0), *[(0, 0, 0)] * 3])
      for border, by in ((x[:, :, x.shape[2] - rows :], 1), (x[:, :, :rows], -1))
    )
    padded, pads[2] = jnp.concatenate([above, x, below], 2), (0, 0, 0)
  padded = lax.pad(padded, zero, pads)
  height, width, channels = x.shape[-3:]
  corners = itertools.product(*(range(0, dilation * k, dilation) for k in shape))
  return [padded[..., top : top + height, left : left + width, :channels] for top, left in corners]


def _wide(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _weighted(taps, kernel):
  weights = kernel.reshape(-1, kernel.shape[-1]).astype(taps[0].dtype)
  return sum(tap * w for tap, w in zip(taps, weights))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _forward(x, kernel, dilation, parts):
  divided = _divided(_wide(x), parts, dilation * (kernel.shape[0] - 1) // 2)
  return _weighted(_shifted(divided, kernel.shape[:2], dilation), kernel).reshape(x.shape).astype(x.dtype)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _gradients(x, kernel, grad, dilation, parts):
  how = dict(dilation=dilation, parts=parts)
  return lax.platform_dependent(
    x,
    kernel,
    grad,
    cpu=functools.partial(_gradients_in_one, **how),
    default=functools.partial(_gradients_by_tap, **how),
  )


def _gradients_in_one(x, kernel, grad, *, dilation, parts):
  """Gradients for CPUs: several taps in one pass over the features."""
  # Pixels 1 KB apart share the same few lines of a CPU's cache, and summing over a row takes 1.5 times as long.
  spare = 0 if x.shape[-1] % 256 else 16
  whole, (x, grad) = x, (_divided(a, parts, dilation * (kernel.shape[0] - 1) // 2) for a in (x, _wide(grad)))
  taps = _shifted(grad, kernel.shape[:2], dilation, spare)
  products = [tap * x for tap in taps]
  sums, zero = [], jnp.zeros((), products[0].dtype)
  for first in range(0, len(products), TAPS):
    some = products[first : first + TAPS]
    sums += lax.reduce(some, [zero] * len(some), lambda a, b: [u + v for u, v in zip(a, b)], (x.ndim - 2,))
  towards_kernel = jnp.stack([s.sum(range(s.ndim - 1)) for s in reversed(sums)]).reshape(kernel.shape)
  return _weighted(taps, kernel[::-1, ::-1]).reshape(whole.shape).astype(x.dtype), towards_kernel.astype(kernel.dtype)


def _gradients_by_tap(x, kernel, grad, *, dilation, parts):
  """Gradients for GPUs and TPUs: one sum for each tap, which keeps no product in memory."""
  divided, grad = (_divided(a, parts, dilation * (kernel.shape[0] - 1) // 2) for a in (x, grad))
  taps = [_wide(tap) for tap in _shifted(grad, kernel.shape[:2], dilation)]
  sums = [(tap * divided).sum(range(divided.ndim - 1)) for tap in reversed(taps)]
  towards_x = _weighted(taps, kernel[::-1, ::-1]).reshape(x.shape).astype(x.dtype)
  return towards_x, jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


depthwise.defvjp(
  lambda x, kernel, *how: (_forward(x, kernel, *how), (x, kernel)),
  lambda dilation, parts, saved, grad: _gradients(*saved, grad, dilation, parts),
)
