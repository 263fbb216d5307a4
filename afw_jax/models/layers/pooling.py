"""Max pooling without overlap, with a fast gradient that can be divided over devices."""

import functools
import itertools

import jax
import jax.numpy as jnp


def max_pool(x, window=2):
  """Max pooling with stride = window and no padding; a remainder at the far end is dropped, as in PyTorch.

  The gradient goes to the first maximum of each window in row-major order, as in PyTorch and `lax.reduce_window`, but
  without select-and-scatter (20 times slower on a CPU, and not deterministic on some GPUs): the backward pass needs a
  one-byte index per window, and x itself is not kept for it.

  Args:
    x: (B, *S, C), any number of spatial axes.
    window: one number, or one per spatial axis.

  Returns:
    (B, *(S // window), C) of x's dtype.
  """
  rank = x.ndim - 2
  window = (window,) * rank if isinstance(window, int) else tuple(window)
  keep = tuple(slice(0, n // k * k) for n, k in zip(x.shape[1:-1], window))
  return _pool(x[(slice(None), *keep)], window)


def _pool_forward(x, window):
  split = x.reshape(x.shape[0], *(m for n, k in zip(x.shape[1:-1], window) for m in (n // k, k)), x.shape[-1])
  first, *others = [
    split[(slice(None), *(m for o in offset for m in (slice(None), o)))]
    for offset in itertools.product(*map(range, window))
  ]
  best, where = first, jnp.zeros(first.shape, jnp.uint8)
  for i, other in enumerate(others, 1):
    where = jnp.where(other > best, jnp.uint8(i), where)
    best = jnp.maximum(best, other)
  return best, where


def _pool_backward(window, where, grad):
  positions, i = 1, jnp.zeros((1,) * (2 * len(window) + 2), jnp.uint8)
  for axis, k in reversed(tuple(enumerate(window))):
    shape = [1] * i.ndim
    shape[2 * axis + 2] = k
    i = i + (positions * jnp.arange(k, dtype=jnp.uint8)).reshape(shape)
    positions *= k
  axes = tuple(2 * a + 2 for a in range(len(window)))
  full = jnp.where(jnp.expand_dims(where, axes) == i, jnp.expand_dims(grad, axes), jnp.zeros((), grad.dtype))
  return (full.reshape(grad.shape[0], *(n * k for n, k in zip(grad.shape[1:-1], window)), grad.shape[-1]),)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pool(x, window):
  return _pool_forward(x, window)[0]


_pool.defvjp(_pool_forward, _pool_backward)
