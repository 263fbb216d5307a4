"""Decoder blocks of TransUNet and VATransUNet."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from afw_jax.models.layers.conv import Conv
from afw_jax.models.layers.norm import BatchNorm
from afw_jax.models.layers.options import identity
from afw_jax.models.layers.upsample import upsample_2x


class ConvBnRelu(nn.Module):
  """Convolution 3x3 without bias, BatchNorm, ReLU."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool = False):
    x = Conv(self.features, 3, use_bias=False, dtype=self.dtype, name='conv')(x)
    return nn.relu(BatchNorm(name='bn')(x, train=train))


class DecoderBlock(nn.Module):
  """Corner-aligned upsampling by two (unless upsample=False), concatenation [features, skip], two convolutions."""

  features: int
  upsample: bool = True
  dtype: jnp.dtype = jnp.float32
  constrain: Callable = identity

  @nn.compact
  def __call__(self, x, skip=None, train: bool = False):
    x = upsample_2x(x, self.constrain) if self.upsample else x
    x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
    for i in (1, 2):
      x = ConvBnRelu(self.features, self.dtype, name=f'conv{i}')(x, train)
    return x
