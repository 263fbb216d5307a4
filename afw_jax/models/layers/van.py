"""VAN, the visual attention network, as an encoder: attention maps from convolutions with large kernels.

References:
  Guo M.-H., Lu C.-Z., Liu Z.-N., Cheng M.-M., Hu S.-M. 2023. Visual Attention Network. arXiv:2202.09741.
  Huang G. et al. 2016. Deep Networks with Stochastic Depth. arXiv:1603.09382 (dropping of branches).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from afw_jax.models.layers.conv import convolve
from afw_jax.models.layers.depthwise import depthwise
from afw_jax.models.layers.gelu import gelu
from afw_jax.models.layers.materialized import materialized_gradient
from afw_jax.models.layers.norm import BatchNorm, LayerNorm
from afw_jax.models.layers.options import identity, parts_of


class Stage(NamedTuple):
  """A stage of VAN: channels, number of blocks, and hidden channels of the MLP as a multiple of the channels."""

  features: int
  depth: int
  mlp_ratio: int


VAN_B0 = (Stage(32, 3, 8), Stage(64, 3, 8), Stage(160, 5, 4), Stage(256, 2, 4))


class VanConv(nn.Module):
  """Convolution with VAN's initialisation (N(0, 2 / fan_out), zero bias): pointwise, depthwise, or with a stride."""

  features: int
  kernel_size: int = 1
  stride: int = 1
  dilation: int = 1
  depthwise: bool = False
  bias_gradient: bool = True  # as in conv.Conv
  parts: int = 1  # number of devices over which the rows are divided
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    k = self.kernel_size
    inputs = 1 if self.depthwise else x.shape[-1]
    fan_out = k * k * self.features // (self.features if self.depthwise else 1)
    shape = (k, k, inputs, self.features)
    kernel = self.param('kernel', nn.initializers.normal(math.sqrt(2 / fan_out)), shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    if self.depthwise:
      y = depthwise(x, kernel, self.dilation, self.parts)
    elif k == 1:
      y = jnp.dot(x, kernel[0, 0])
    else:
      y = convolve(x, kernel, (self.stride,) * 2, [(k // 2, k // 2)] * 2)
    return y + (bias if self.bias_gradient else lax.stop_gradient(bias))


class LargeKernelAttention(nn.Module):
  """x times an attention map with a 23x23 receptive field: depthwise 5x5, depthwise 7x7 of dilation 3, pointwise."""

  parts: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    c = x.shape[-1]
    y = VanConv(c, 5, depthwise=True, parts=self.parts, dtype=self.dtype, name='conv0')(x)
    y = VanConv(c, 7, dilation=3, depthwise=True, parts=self.parts, dtype=self.dtype, name='conv_spatial')(y)
    return x * VanConv(c, dtype=self.dtype, name='conv1')(y)


class Attention(nn.Module):
  """Pointwise, GELU, large kernel attention, pointwise; plus its input."""

  parts: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    c = x.shape[-1]
    y = gelu(VanConv(c, dtype=self.dtype, name='proj_1')(x))
    y = LargeKernelAttention(self.parts, self.dtype, name='spatial_gating_unit')(y)
    return x + VanConv(c, dtype=self.dtype, name='proj_2')(y)


class Mlp(nn.Module):
  """Pointwise to the hidden channels, depthwise 3x3, GELU, pointwise back."""

  hidden: int
  parts: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    y = VanConv(self.hidden, dtype=self.dtype, name='fc1')(x)
    y = VanConv(self.hidden, 3, depthwise=True, parts=self.parts, dtype=self.dtype, name='dwconv')(y)
    return VanConv(x.shape[-1], dtype=self.dtype, name='fc2')(gelu(y))


class Block(nn.Module):
  """x + scale_1 * attention(norm(x)), then the same with the MLP; in training each branch is dropped per sample."""

  mlp_ratio: int
  drop_rate: float
  parts: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool):
    c = x.shape[-1]
    branches = (
      Attention(self.parts, self.dtype, name='attn'),
      Mlp(self.mlp_ratio * c, self.parts, self.dtype, name='mlp'),
    )
    for i, branch in enumerate(branches, 1):
      scale = self.param(f'layer_scale_{i}', nn.initializers.constant(1e-2), (c,), jnp.float32).astype(self.dtype)
      y = scale * branch(BatchNorm(name=f'norm{i}')(x, train=train))
      y = nn.Dropout(self.drop_rate, broadcast_dims=(1, 2, 3))(y, deterministic=not train)
      x = materialized_gradient(x + y)
    return x


class VAN(nn.Module):
  """VAN: image (B, H, W, Cin) -> one layer-normalised feature map per stage, stage i (from 1) at 1 / 2^i of the size.

  Every stage halves the size, as in VATransUNet; the first stage of the published classifier is at a quarter of it,
  with weights of the same shapes. Parameters have their published names.

  Args:
    stages: the stages from shallow to deep.
    drop_path_rate: probability that a branch of the last block is dropped; it grows linearly from zero at the first.
    dtype: compute dtype.
    remat: whether activations inside each block are recomputed in the backward pass.
    constrain: function applied to the features after each block, for sharding in space.
  """

  stages: Sequence[Stage] = VAN_B0
  drop_path_rate: float = 0.1
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  constrain: Callable = identity

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
    blocks = sum(stage.depth for stage in self.stages)
    done, maps = 0, []
    for i, stage in enumerate(self.stages, 1):
      x = PatchEmbed(stage.features, 7 if i == 1 else 3, self.dtype, name=f'patch_embed{i}')(x, train=train)
      for j in range(stage.depth):
        rate = self.drop_path_rate * done / max(blocks - 1, 1)
        x = self.constrain(
          block(stage.mlp_ratio, rate, parts_of(self.constrain), self.dtype, name=f'block{i}_{j}')(x, train)
        )
        done += 1
      x = LayerNorm(1e-6, name=f'norm{i}')(x)
      maps.append(x)
    return maps


class PatchEmbed(nn.Module):
  """Overlapping patch embedding: convolution with stride 2, BatchNorm."""

  features: int
  kernel_size: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    x = VanConv(self.features, self.kernel_size, 2, bias_gradient=not train, dtype=self.dtype, name='proj')(x)
    return BatchNorm(name='norm')(x, train=train)
