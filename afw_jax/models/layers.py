"""Convolution with PyTorch's conventions, and with a gradient that is fast on a CPU."""

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


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
    if rank == 2 and size != (1, 1) and strides == dilation == (1, 1) and self.groups == 1:
      y = conv2d(x, kernel, padding)
    else:
      y = lax.conv_general_dilated(
        x, kernel, strides, [(p, p) for p in padding], rhs_dilation=dilation, feature_group_count=self.groups,
        dimension_numbers=(f'N{letters}C', f'{letters}IO', f'N{letters}C'))
    if self.use_bias:
      bias = self.param('bias', init, (self.features,), jnp.float32).astype(self.dtype)
      y = y + (bias if self.bias_gradient else lax.stop_gradient(bias))
    return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv2d(x, kernel, padding: tuple[int, int]):
  """2D convolution at stride 1, whose weight gradient is written out for the CPU.

  XLA's own weight gradient is 20 to 60 times slower inside `lax.scan` there (the same outside, for most shapes); other
  platforms keep theirs. The gradient is itself a convolution, with the batch as its channels: of x by the output's
  gradient, or of the output's gradient by x (the kernel then comes out reversed); the one with fewer channels slides.

  Args:
    x: (B, H, W, Cin).
    kernel: (kH, kW, Cin, Cout).
    padding: zeros added on both sides of H and of W.

  Returns:
    (B, H', W', Cout).
  """
  return lax.conv_general_dilated(x, kernel, (1, 1), [(p, p) for p in padding], dimension_numbers=_NHWC)


_NHWC = ('NHWC', 'HWIO', 'NHWC')


def _conv2d_forward(x, kernel, padding):
  return conv2d(x, kernel, padding), (x, kernel)


def _conv2d_backward(padding, saved, grad):
  x, kernel = saved
  to_input, = jax.linear_transpose(lambda x: conv2d.fun(x, kernel, padding), x)(grad)

  def plain(x, grad):
    return jax.linear_transpose(lambda k: conv2d.fun(x, k, padding), kernel)(grad)[0]

  def explicit(x, grad):
    if x.shape[-1] < grad.shape[-1]:
      return _batch_as_channels(x, grad, padding).transpose(1, 2, 0, 3)
    full = tuple(k - 1 - p for k, p in zip(kernel.shape, padding))
    return _batch_as_channels(grad, x, full)[:, ::-1, ::-1].transpose(1, 2, 3, 0)

  return to_input, lax.platform_dependent(x, grad, cpu=explicit, default=plain)


def _batch_as_channels(sliding, fixed, padding):
  return lax.conv_general_dilated(sliding.transpose(3, 1, 2, 0), fixed.transpose(1, 2, 0, 3), (1, 1),
                                  [(p, p) for p in padding], dimension_numbers=_NHWC)


conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def _per_axis(value, rank):
  return (value,) * rank if isinstance(value, int) else tuple(value)
