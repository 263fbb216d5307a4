"""Convolution and linear layers with PyTorch's conventions: symmetric padding, initialisation of weight and bias."""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from afw_jax.models.layers.volume_conv import strided_conv, volume_conv


def uniform_fan_in(fan_in: int) -> Callable:
  """PyTorch's default initialiser of convolution and linear layers, for weight AND bias: U(+-1/sqrt(fan_in))."""
  bound = 1 / math.sqrt(fan_in)
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def he_normal(fan_in: int, slope: float) -> Callable:
  """Initialiser of He et al. 2015 (arXiv:1502.01852) for LeakyReLU: N(0, 2 / ((1 + slope^2) fan_in))."""
  return nn.initializers.normal(math.sqrt(2 / ((1 + slope**2) * fan_in)))


class Conv(nn.Module):
  """Convolution over any number of spatial axes, channels last, with PyTorch's symmetric padding and initialisation.

  Args:
    features: output channels.
    kernel_size: one number, or one per spatial axis.
    strides, dilation: likewise.
    padding: zeros added on both sides of each axis; None keeps the size at stride 1 (odd kernels).
    groups: feature groups (the number of input channels: depthwise).
    use_bias: whether a bias is added.
    bias_gradient: False if a BatchNorm with the statistics of the batch follows: it removes the bias again, so that its
      gradient is zero up to rounding, and leaving it out saves a pass over the gradient of the output.
    kernel_init, bias_init: initialisers (key, shape, dtype); None is PyTorch's default.
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
  kernel_init: Callable | None = None
  bias_init: Callable | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    rank = x.ndim - 2
    size, strides, dilation = (_per_axis(v, rank) for v in (self.kernel_size, self.strides, self.dilation))
    same = tuple(d * (k - 1) // 2 for k, d in zip(size, dilation))
    padding = same if self.padding is None else _per_axis(self.padding, rank)
    inputs = x.shape[-1] // self.groups
    init = uniform_fan_in(math.prod(size) * inputs)
    kernel = self.param('kernel', self.kernel_init or init, (*size, inputs, self.features), jnp.float32)
    y = convolve(
      x.astype(self.dtype), kernel.astype(self.dtype), strides, [(p, p) for p in padding], dilation, self.groups
    )
    if self.use_bias:
      bias = self.param('bias', self.bias_init or init, (self.features,), jnp.float32).astype(self.dtype)
      y = y + (bias if self.bias_gradient else lax.stop_gradient(bias))
    return y


def convolve(x, kernel, strides, padding, dilation=None, groups=1):
  """Convolution over any number of spatial axes, channels last, in the fastest form that can be divided over devices.

  If the input or the output has fewer rows than the kernel, the rows of the kernel are applied one at a time. Otherwise
  the compiler would divide the kernel over the devices that share a sample, and where the batch is divided too, the
  gradients (jaxlib 0.10.2) are wrong by a factor, the number of parts of the batch.

  Args:
    x: (B, *S, Cin).
    kernel: (*K, Cin / groups, Cout) of x's dtype.
    strides: one per spatial axis.
    padding: (before, after), zeros added, per spatial axis.
    dilation: one per spatial axis; None is 1.
    groups: feature groups.

  Returns:
    (B, *S', Cout) of x's dtype.
  """
  rank, size = x.ndim - 2, kernel.shape[:-2]
  dilation = tuple(dilation or (1,) * rank)
  if max(size) > 1 and size == tuple(strides) and not np.any(padding) and set(dilation) == {groups} == {1}:
    return _patches(x, size) @ kernel.reshape(-1, kernel.shape[-1])
  rows = (x.shape[1] + sum(padding[0]) - dilation[0] * (size[0] - 1) - 1) // strides[0] + 1
  if min(rows, x.shape[1]) < size[0]:
    return _row_by_row(rows, x, kernel, strides, padding, dilation, groups)
  same = all(k % 2 and tuple(p) == (k // 2, k // 2) for k, p in zip(size, padding))
  if rank == 3 and same and set(dilation) == {groups} == {1}:
    return volume_conv(x, kernel) if set(strides) == {1} else strided_conv(x, kernel, tuple(strides))
  letters = 'DHW'[-rank:]
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    rhs_dilation=dilation,
    feature_group_count=groups,
    dimension_numbers=(f'N{letters}C', f'{letters}IO', f'N{letters}C'),
  )


def _patches(x, size):
  """(B, *S, C) -> (B, *(S / size), voxels of a patch x C); a remainder at the far end of an axis is dropped."""
  rank, grid = len(size), tuple(n // k for n, k in zip(x.shape[1:], size))
  x = x[(slice(None), *(slice(n * k) for n, k in zip(grid, size)))]
  x = x.reshape(x.shape[0], *(m for pair in zip(grid, size) for m in pair), x.shape[-1])
  return x.transpose(0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1).reshape(x.shape[0], *grid, -1)


def _row_by_row(rows, x, kernel, strides, padding, dilation, groups):
  """The convolution as a sum over the rows of the kernel; `rows` is the number of output rows."""
  y, most = 0, x.shape[1]
  for i, row in enumerate(kernel):
    first = i * dilation[0] - padding[0][0]
    under = range(first, first + rows * strides[0], strides[0])  # rows of x for this row of the kernel
    if not any(0 <= n < most for n in under):
      continue
    cut = lax.pad(
      x, jnp.zeros((), x.dtype), [(-first, under[-1] + 1 - most, 0) if a == 1 else (0, 0, 0) for a in range(x.ndim)]
    )
    y += convolve(cut[:, :: strides[0]], row[None], (1, *strides[1:]), [(0, 0), *padding[1:]], dilation, groups)
  return y


def _per_axis(value, rank):
  return (value,) * rank if isinstance(value, int) else tuple(value)


class Linear(nn.Module):
  """Linear layer over the last axis, with PyTorch's initialisation by default.

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
  def weights(self, inputs: int):
    """The parameters alone, for products in another order: kernel (inputs, features) and bias (features,) or None."""
    default = uniform_fan_in(inputs)
    kernel = self.param('kernel', self.kernel_init or default, (inputs, self.features), jnp.float32)
    bias = self.param('bias', self.bias_init or default, (self.features,), jnp.float32) if self.use_bias else None
    return kernel, bias

  def __call__(self, x):
    kernel, bias = self.weights(x.shape[-1])
    y = jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype))
    return y if bias is None else y + bias.astype(self.dtype)
