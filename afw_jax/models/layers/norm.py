"""Normalisation with PyTorch's conventions: statistics in float32 at least, two-pass, output in the input's dtype."""

import math
from collections.abc import Callable

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


def _normalised(x, axes, eps):
  """(x - mean) / sqrt(var + eps) over `axes`, two-pass, at least in float32."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  mean = wide.mean(axes, keepdims=True)
  var = jnp.square(wide - lax.stop_gradient(mean)).mean(axes, keepdims=True)  # d var / d mean is exactly zero
  k = lax.rsqrt(var + eps)
  return wide * k - mean * k


def _scaled(module, x, scale_init=nn.initializers.ones):
  """x times the parameter 'scale' plus 'bias', per channel."""
  channels = x.shape[-1:]
  scale = module.param('scale', scale_init, channels, jnp.float32)
  return x * scale + module.param('bias', nn.initializers.zeros, channels, jnp.float32)


class InstanceNorm(nn.Module):
  """Per sample and channel over all spatial axes, as PyTorch's: eps 1e-5, no running statistics; then, if `affine`, scale and bias."""

  affine: bool = False
  eps: float = 1e-5

  @nn.compact
  def __call__(self, x):
    y = _normalised(x, tuple(range(1, x.ndim - 1)), self.eps)
    return (_scaled(self, y) if self.affine else y).astype(x.dtype)


class GroupNorm(nn.Module):
  """Per sample over the spatial axes and each of `groups` groups of neighbouring channels, then scale and bias."""

  groups: int
  eps: float = 1e-5
  scale_init: Callable = nn.initializers.ones

  @nn.compact
  def __call__(self, x):
    grouped = x.reshape(*x.shape[:-1], self.groups, x.shape[-1] // self.groups)
    axes = (*range(1, x.ndim - 1), x.ndim)
    return _scaled(self, _normalised(grouped, axes, self.eps).reshape(x.shape), self.scale_init).astype(x.dtype)


class LayerNorm(nn.Module):
  """Over the last axis, then scale and bias. PyTorch's default eps; TransUNet and VAN use 1e-6."""

  eps: float = 1e-5

  @nn.compact
  def __call__(self, x):
    return _scaled(self, _normalised(x, -1, self.eps)).astype(x.dtype)
