"""Residual block of UNETR and UNETR++: two 3x3x3 convolutions with a shortcut."""

import flax.linen as nn
import jax.numpy as jnp

from afw_jax.models.layers.conv import Conv
from afw_jax.models.layers.norm import BatchNorm, InstanceNorm

SLOPE = 0.01  # negative slope of LeakyReLU


class ResBlock(nn.Module):
  """LeakyReLU(norm2(conv2(LeakyReLU(norm1(conv1(x))))) + shortcut), convolutions of 3 per axis without bias.

  The shortcut is x, or norm3(conv3(x)) with a convolution of 1 per axis where the widths differ. PyTorch calls the
  weights conv1.conv.weight, norm1.weight and so on.

  Args:
    features: output channels.
    norm: 'instance' (without scale and bias, eps 1e-5) or 'batch' (BatchNorm with scale and bias).
    shortcut: whether there is a shortcut.
    dtype: compute dtype; parameters and statistics are float32.
  """

  features: int
  norm: str = 'instance'
  shortcut: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool = False):
    def convolved(i, kernel_size, x):
      x = Conv(self.features, kernel_size, use_bias=False, dtype=self.dtype, name=f'conv{i}')(x)
      if self.norm == 'batch':
        return BatchNorm(name=f'norm{i}')(x, train=train)
      return InstanceNorm(name=f'norm{i}')(x)

    y = convolved(2, 3, nn.leaky_relu(convolved(1, 3, x), SLOPE))
    if self.shortcut:
      y = y + (x.astype(y.dtype) if x.shape[-1] == self.features else convolved(3, 1, x))
    return nn.leaky_relu(y, SLOPE)
