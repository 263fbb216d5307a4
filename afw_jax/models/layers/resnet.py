"""The ResNet of R50+ViT-B_16: bottleneck units of weight-standardised convolutions and GroupNorm, total stride 16.

The same published weights are used in two networks that differ in details, see `ResNetV2`.

References:
  Kolesnikov A. et al. 2020. Big Transfer (BiT): General Visual Representation Learning. arXiv:1912.11370.
  Qiao S. et al. 2019. Micro-Batch Training with Batch-Channel Normalization and Weight Standardization.
    arXiv:1903.10520.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from afw_jax.models.layers.conv import convolve, uniform_fan_in
from afw_jax.models.layers.materialized import materialized
from afw_jax.models.layers.norm import GroupNorm
from afw_jax.models.layers.options import identity

READINGS = ('transunet', 'google')


class StdConv(nn.Module):
  """Square 2D convolution without bias, with its kernel standardised per output channel in at least float32.

  Args:
    features: output channels.
    kernel_size, strides: the same for both axes.
    reading: 'transunet' divides by sqrt(var + 1e-5) and pads both sides equally; 'google' divides by std + 1e-5 and
      pads 'SAME', which at stride 2 on an even side is one less before than after.
    dtype: compute dtype.
  """

  features: int
  kernel_size: int
  strides: int = 1
  reading: str = 'transunet'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    k, inputs = self.kernel_size, x.shape[-1]
    kernel = self.param('kernel', uniform_fan_in(k * k * inputs), (k, k, inputs, self.features), jnp.float32)
    kernel = kernel - kernel.mean((0, 1, 2))
    var = jnp.square(kernel).mean((0, 1, 2))
    kernel = kernel * lax.rsqrt(var + 1e-5) if self.reading == 'transunet' else kernel / (jnp.sqrt(var) + 1e-5)
    strides = (self.strides,) * 2
    padding = (
      [(k // 2, k // 2)] * 2
      if self.reading == 'transunet'
      else lax.padtype_to_pads(x.shape[1:3], (k, k), strides, 'SAME')
    )
    return convolve(x.astype(self.dtype), kernel.astype(self.dtype), strides, padding)


class Bottleneck(nn.Module):
  """Convolutions 1x1, 3x3 (with the stride) and 1x1, each followed by GroupNorm; the sum with the shortcut, ReLU."""

  features: int
  strides: int
  groups: int
  reading: str = 'transunet'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    def conv(features, kernel_size, strides, name):
      return StdConv(features, kernel_size, strides, self.reading, self.dtype, name=name)

    wide = 4 * self.features
    shortcut = x
    if self.strides != 1 or x.shape[-1] != wide:
      shortcut = conv(wide, 1, self.strides, 'conv_proj')(x)
      # TransUNet has one group per channel and another eps, although the weights were trained with the other norm.
      norm = (
        GroupNorm(wide, 1e-5, name='gn_proj')
        if self.reading == 'transunet'
        else GroupNorm(self.groups, 1e-6, name='gn_proj')
      )
      shortcut = norm(shortcut)
    x = nn.relu(GroupNorm(self.groups, 1e-6, name='gn1')(conv(self.features, 1, 1, 'conv1')(x)))
    x = nn.relu(GroupNorm(self.groups, 1e-6, name='gn2')(conv(self.features, 3, self.strides, 'conv2')(x)))
    # In Google's network each unit is the identity at initialisation.
    scale_init = nn.initializers.ones if self.reading == 'transunet' else nn.initializers.zeros
    x = GroupNorm(self.groups, 1e-6, scale_init, name='gn3')(conv(wide, 1, 1, 'conv3')(x))
    return materialized(nn.relu(shortcut + x))


class Root(nn.Module):
  """Convolution 7x7 of stride 2, GroupNorm, ReLU."""

  features: int
  groups: int
  reading: str = 'transunet'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    x = StdConv(self.features, 7, 2, self.reading, self.dtype, name='conv')(x)
    return nn.relu(GroupNorm(self.groups, 1e-6, name='gn')(x))


class ResNetV2(nn.Module):
  """ResNet: image (B, H, W, Cin), sides divisible by 16 -> features of stride 16, and of strides 8, 4 and 2 for skips.

  Args:
    width: channels of the root; the three blocks have 4, 8 and 16 times as many. GroupNorm has width / 2 groups.
    depths: units per block.
    reading: 'transunet' is the network of the TransUNet code: its max pooling has no padding, so that block 1 works on
      one row and one column less than a quarter of the image, which the skip of stride 4 gets back as zeros at the far
      ends. 'google' is the network in which the published weights were trained, where all padding is 'SAME'.
    dtype: compute dtype.
    remat: whether activations inside each unit are recomputed in the backward pass.
    constrain: function applied to the features after each unit, for sharding in space.
  """

  width: int = 64
  depths: Sequence[int] = (3, 4, 9)
  reading: str = 'transunet'
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  constrain: Callable = identity

  @nn.compact
  def __call__(self, x):
    unit = nn.remat(Bottleneck) if self.remat else Bottleneck
    groups = self.width // 2
    x = self.constrain(Root(self.width, groups, self.reading, self.dtype, name='root')(x))
    skips = [x]
    x = max_pool_3x3(x, same=self.reading == 'google')
    for block, depth in enumerate(self.depths):
      for i in range(depth):
        strides = 2 if block and not i else 1
        x = unit(self.width << block, strides, groups, self.reading, self.dtype, name=f'block{block + 1}_unit{i + 1}')(
          x
        )
        x = self.constrain(x)
      skips.append(x)
    quarter = [n // 2 for n in skips[0].shape[1:3]]
    skips[1] = jnp.pad(skips[1], [(0, 0), *((0, full - n) for full, n in zip(quarter, skips[1].shape[1:3])), (0, 0)])
    return x, skips[-2::-1]


def max_pool_3x3(x, *, same: bool):
  """Max pooling 3x3 with stride 2, as the maximum of strided slices; its gradient needs no select-and-scatter.

  Args:
    x: (B, H, W, C) with even H and W.
    same: whether one row and column are padded at the far ends: n -> n / 2, otherwise n / 2 - 1.
  """
  for axis in (1, 2):
    if same:
      x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(0, int(a == axis), 0) for a in range(4)])
    count = (x.shape[axis] - 1) // 2
    first, second, third = (lax.slice_in_dim(x, i, i + 2 * count - 1, 2, axis) for i in range(3))
    x = jnp.maximum(jnp.maximum(first, second), third)
  return x
