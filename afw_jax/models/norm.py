"""Batch normalisation with PyTorch's conventions."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax import lax


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last, as PyTorch's: eps 1e-5, running variance unbiased.

  With `train` the statistics are those of the batch, and 'batch_stats' (mean, var) move towards them. Under `jit` the
  batch is the global batch, however it is sharded. The variance is the mean of squared deviations, never
  E[x^2] - E[x]^2, which cancels; it is then applied as x * k + c with one k and c per channel.

  Args:
    momentum: share of the old running statistics kept (PyTorch's momentum of 0.1 is 0.9 here).
    eps: added to the variance.
  """

  momentum: float = 0.9
  eps: float = 1e-5

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    channels, axes = x.shape[-1:], tuple(range(x.ndim - 1))
    scale = self.param('scale', nn.initializers.ones, channels, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, channels, jnp.float32)
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32)
    running_var = self.variable('batch_stats', 'var', jnp.ones, channels, jnp.float32)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if train:
      mean = wide.mean(axes)
      # d var / d mean is exactly zero: saying so saves a pass over x in the backward pass.
      var = jnp.square(wide - lax.stop_gradient(mean)).mean(axes)
      if not self.is_initializing():
        count = math.prod(x.shape[:-1])
        unbiased = var * (count / max(count - 1, 1))
        for running, value in ((running_mean, mean), (running_var, unbiased)):
          old = running.value
          running.value = (self.momentum * old + (1 - self.momentum) * value).astype(old.dtype)
    else:
      mean, var = running_mean.value, running_var.value
    k = scale * lax.rsqrt(var + self.eps)
    return (wide * k + (bias - mean * k)).astype(x.dtype)
