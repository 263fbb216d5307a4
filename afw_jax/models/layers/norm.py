"""Batch, instance, group and layer normalisation with PyTorch's conventions.

Statistics are computed in two passes, in at least float32; the output has the dtype of the input.

References:
  Ioffe S., Szegedy C. 2015. Batch Normalization. arXiv:1502.03167.
  Ba J.L., Kiros J.R., Hinton G.E. 2016. Layer Normalization. arXiv:1607.06450.
  Ulyanov D., Vedaldi A., Lempitsky V. 2016. Instance Normalization. arXiv:1607.08022.
  Wu Y., He K. 2018. Group Normalization. arXiv:1803.08494.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import lax


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last, as in PyTorch: eps 1e-5, unbiased running variance.

  With train=True the statistics are those of the batch, and 'batch_stats' (mean, var) are updated. Under `jit` the
  batch is the global batch, however it is sharded. The variance is the mean of squared deviations, since
  E[x^2] - E[x]^2 suffers from cancellation; normalisation is x * k + c with one k and c per channel.

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
      # d var / d mean is exactly zero; stop_gradient saves a pass over x in the backward pass.
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
  """(x - mean) / sqrt(var + eps) over `axes`, in two passes and at least float32."""
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
  """Instance normalisation, per sample and channel over all spatial axes, without running statistics, as in PyTorch.

  Args:
    affine: whether scale and bias follow.
    eps: added to the variance.
  """

  affine: bool = False
  eps: float = 1e-5

  @nn.compact
  def __call__(self, x):
    y = _normalised(x, tuple(range(1, x.ndim - 1)), self.eps)
    return (_scaled(self, y) if self.affine else y).astype(x.dtype)


class GroupNorm(nn.Module):
  """Group normalisation, per sample over the spatial axes and `groups` groups of adjacent channels; scale and bias."""

  groups: int
  eps: float = 1e-5
  scale_init: Callable = nn.initializers.ones

  @nn.compact
  def __call__(self, x):
    grouped = x.reshape(*x.shape[:-1], self.groups, x.shape[-1] // self.groups)
    axes = (*range(1, x.ndim - 1), x.ndim)
    return _scaled(self, _normalised(grouped, axes, self.eps).reshape(x.shape), self.scale_init).astype(x.dtype)


class LayerNorm(nn.Module):
  """Layer normalisation over the last axis, then scale and bias; PyTorch's default eps (TransUNet and VAN use 1e-6)."""

  eps: float = 1e-5

  @nn.compact
  def __call__(self, x):
    return _scaled(self, _normalised(x, -1, self.eps)).astype(x.dtype)
