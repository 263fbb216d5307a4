"""Convolution with PyTorch's conventions: symmetric padding, initialisation of weight and bias."""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from afw_jax.models.volume_conv import volume_conv


def uniform_fan_in(fan_in: int) -> Callable:
  """PyTorch's default initialiser of convolution and linear layers, for weight AND bias: U(+-1/sqrt(fan_in))."""
  bound = 1 / math.sqrt(fan_in)
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
  """Convolution over any number of spatial axes, channels last, with PyTorch's symmetric padding and initialisation.

  Args:
    features: output channels.
    kernel_size: one number, or one per spatial axis.
    strides, dilation: likewise.
    padding: zeros added on both sides of each axis; None keeps the size at stride 1 (odd kernels).
    groups: feature groups (the number of input channels: depthwise).
    use_bias: whether a bias is added.
    bias_gradient: False where a BatchNorm with the batch's statistics follows: that takes the bias out again, so its
      gradient is zero but for rounding, and leaving it out saves a pass over the output's gradient.
    dtype: compute dtype; the parameters are float32.
  """

  features: int
  kernel_size: int | Sequence[int] = 3
  strides: int | Sequence[int] = 1
  padding: int | Sequence[int] | None = None
  dilation: int | Sequence[int] = 1
  groups: int = 1
  use_bias: bool = True
  bias_gradient: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    rank = x.ndim - 2
    size, strides, dilation = (_per_axis(v, rank) for v in (self.kernel_size, self.strides, self.dilation))
    same = tuple(d * (k - 1) // 2 for k, d in zip(size, dilation))
    padding = same if self.padding is None else _per_axis(self.padding, rank)
    inputs = x.shape[-1] // self.groups
    init = uniform_fan_in(math.prod(size) * inputs)
    kernel = self.param('kernel', init, (*size, inputs, self.features), jnp.float32)
    letters = 'DHW'[-rank:]
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    plain = set(strides) == set(dilation) == {self.groups} == {1} and padding == same and all(k % 2 for k in size)
    if rank == 3 and plain:
      y = volume_conv(x, kernel)
    else:
      y = lax.conv_general_dilated(
        x, kernel, strides, [(p, p) for p in padding], rhs_dilation=dilation, feature_group_count=self.groups,
        dimension_numbers=(f'N{letters}C', f'{letters}IO', f'N{letters}C'))
    if self.use_bias:
      bias = self.param('bias', init, (self.features,), jnp.float32).astype(self.dtype)
      y = y + (bias if self.bias_gradient else lax.stop_gradient(bias))
    return y


def _per_axis(value, rank):
  return (value,) * rank if isinstance(value, int) else tuple(value)


class Linear(nn.Module):
  """Linear layer over the last axis, with PyTorch's initialisation unless another is given.

  Args:
    features: output channels.
    use_bias: whether a bias is added.
    kernel_init, bias_init: initialisers (key, shape, dtype); None is PyTorch's default.
    dtype: compute dtype; the parameters are float32.
  """

  features: int
  use_bias: bool = True
  kernel_init: Callable | None = None
  bias_init: Callable | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    default = uniform_fan_in(x.shape[-1])
    kernel = self.param('kernel', self.kernel_init or default, (x.shape[-1], self.features), jnp.float32)
    y = jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype))
    if self.use_bias:
      y = y + self.param('bias', self.bias_init or default, (self.features,), jnp.float32).astype(self.dtype)
    return y
