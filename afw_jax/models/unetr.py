"""UNETR: a vision transformer on patches of 16 voxels per axis, decoded as in a UNet.

Tokens after four of its blocks are brought to four resolutions and joined by a convolutional decoder. As in the
authors' code the skips are the tokens after blocks 4, 7 and 10 (the publication names z3, z6 and z9). That code also
has a LayerNorm in each block for a cross-attention that UNETR does not use (18,432 parameters); it is left out.

References:
  Hatamizadeh A. et al. 2022. UNETR: Transformers for 3D Medical Image Segmentation. arXiv:2103.10504.
"""

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from afw_jax.errors import InputError
from afw_jax.models.layers import options
from afw_jax.models.layers.attention import attend
from afw_jax.models.layers.conv import Conv, uniform_fan_in
from afw_jax.models.layers.norm import LayerNorm
from afw_jax.models.layers.positions import position_table
from afw_jax.models.layers.residual import ResBlock
from afw_jax.models.layers.transposed import UpConv
from afw_jax.models.layers.vit import Block

SPATIAL_DIMS, PATCH = 3, 16
# channels of a token, heads, channels inside the MLP, blocks, blocks after which there is a skip, decoder channels
SIZES = {'full': (768, 12, 3072, 12, (4, 7, 10), 16), 'testing': (24, 2, 48, 4, (1, 2, 3), 4)}


class PatchLayer(nn.Module):
  """Linear layer on patches (B, N, voxels in row-major order x Cin); its kernel is flat or has the shape of a patch."""

  features: int
  flat: bool
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, patches):
    inputs = patches.shape[-1]
    if self.flat:  # the authors truncate it at 100 standard deviations
      shape, init, bias_init = (inputs,), nn.initializers.normal(0.02), nn.initializers.zeros
    else:
      shape, init = ((PATCH,) * SPATIAL_DIMS + (inputs // PATCH**SPATIAL_DIMS,)), uniform_fan_in(inputs)
      bias_init = init
    kernel = self.param('kernel', init, (*shape, self.features), jnp.float32).reshape(inputs, self.features)
    bias = self.param('bias', bias_init, (self.features,), jnp.float32)
    return jnp.dot(patches.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


class PatchEmbedding(nn.Module):
  """Image (B, D, H, W, Cin) -> tokens (B, N, features) in row-major order, with position embeddings added."""

  features: int
  flat: bool
  dropout_rate: float
  position_grid: Sequence[int] | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, image, train: bool = False):
    grid = tuple(n // PATCH for n in image.shape[1:-1])
    x = image.reshape(image.shape[0], *(m for n in grid for m in (n, PATCH)), image.shape[-1])
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(image.shape[0], math.prod(grid), -1)
    x = PatchLayer(self.features, self.flat, self.dtype, name='perceptron' if self.flat else 'conv')(x)
    x = x + position_table(
      self, 'position_embeddings', grid, self.features, nn.initializers.normal(0.02), self.position_grid
    ).astype(self.dtype)
    return nn.Dropout(self.dropout_rate, deterministic=not train)(x)


class SkipPath(nn.Module):
  """Tokens on their grid -> features at 2^(steps + 1) times the resolution; `block(features, name)` makes a block."""

  features: int
  steps: int
  block: Callable | None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool = False):
    x = UpConv(self.features, dtype=self.dtype, name='transp_conv_init')(x)
    for i in range(self.steps):
      if self.block is None:
        x = UpConv(self.features, dtype=self.dtype, name=f'blocks_{i}')(x)
      else:
        x = UpConv(self.features, dtype=self.dtype, name=f'blocks_{i}_0')(x)
        x = self.block(self.features, f'blocks_{i}_1')(x, train)
    return x


class UNETR(nn.Module):
  """UNETR; the fields are the arguments of `make`."""

  num_classes: int
  size: str = 'full'
  feature_size: int = 16
  patch_embedding: str = 'perceptron'
  conv_block: bool = True
  res_block: bool = True
  qkv_bias: bool = False
  dropout_rate: float = 0.0
  position_grid: Sequence[int] | None = None
  remat: bool = False
  dtype: jnp.dtype = jnp.float32
  constrain: Callable = options.identity
  attend: Callable = attend

  @nn.compact
  def __call__(self, image, train: bool = False):
    options.check_image('unetr', image, (PATCH,) * SPATIAL_DIMS)
    hidden, heads, mlp, depth, depths, _ = SIZES[self.size]
    token_block, voxel_block = (nn.remat(c, static_argnums=(2,)) if self.remat else c for c in (Block, ResBlock))
    block = functools.partial(_named, voxel_block, shortcut=self.res_block, dtype=self.dtype)
    drop = self.dropout_rate

    image = image.astype(self.dtype)
    flat = self.patch_embedding == 'perceptron'
    tokens = self.constrain(
      PatchEmbedding(hidden, flat, drop, self.position_grid, self.dtype, name='patch_embedding')(image, train)
    )
    states = []
    for i in range(depth):
      tokens = self.constrain(
        token_block(
          heads,
          mlp,
          qkv_bias=self.qkv_bias,
          dropout=drop,
          attention_dropout=drop,
          dtype=self.dtype,
          divided=self.constrain is not options.identity,
          attend=self.attend,
          name=f'blocks_{i}',
        )(tokens, train)
      )
      if i + 1 in depths:
        states.append(tokens)
    states.append(LayerNorm(name='norm')(tokens))
    *states, x = (state.reshape(image.shape[0], *(n // PATCH for n in image.shape[1:-1]), hidden) for state in states)

    skips = [self.constrain(block(self.feature_size, 'encoder1')(image, train))]
    for level, state in enumerate(states, 1):
      path = SkipPath(
        self.feature_size * 2**level,
        len(states) - level,
        block if self.conv_block else None,
        self.dtype,
        name=f'encoder{level + 1}',
      )
      skips.append(self.constrain(path(state, train)))
    for level in reversed(range(len(skips))):
      features = self.feature_size * 2**level
      x = UpConv(features, dtype=self.dtype, name=f'decoder{level + 2}_transp_conv')(x)
      x = jnp.concatenate([x, skips[level]], axis=-1)
      x = self.constrain(block(features, f'decoder{level + 2}_conv_block')(x, train))
    logits = Conv(self.num_classes, 1, dtype=options.logits_dtype(self.dtype), name='out')(x)
    return self.constrain(logits)


def _named(module, features, name, **fields):
  return module(features, name=name, **fields)


def make(
  num_classes: int,
  *,
  size: str = 'full',
  feature_size: int | None = None,
  patch_embedding: str = 'perceptron',
  conv_block: bool = True,
  res_block: bool = True,
  qkv_bias: bool = False,
  dropout_rate: float = 0.0,
  position_grid: Sequence[int] | None = None,
  remat: bool = False,
  dtype=jnp.float32,
  constrain: Callable = options.identity,
  attend: Callable = attend,
) -> UNETR:
  """Makes a UNETR: image (B, D, H, W, Cin) -> logits (B, D, H, W, num_classes), sides divisible by 16.

  The table of positions has one row per patch of the image it is initialised with: 92,784,046 parameters at
  96 x 96 x 96 voxels, one channel and 14 classes. For an image of another size it is interpolated (`layers.positions`).

  Args:
    num_classes: number of classes, background included.
    size: 'full' (12 blocks of 768 channels, 12 heads) or 'testing' (4 of 24, 2 heads).
    feature_size: channels at full resolution, doubled per level; None is 16 (testing: 4); the authors' README has 32.
    patch_embedding: 'perceptron' (the authors') or 'conv' (MONAI's present default): the same function, with another
      shape in weight files, and initialised by N(0, 0.02^2) or by PyTorch's default.
    conv_block: whether the skips of encoder2 and encoder3 have blocks between their transposed convolutions.
    res_block: whether the convolutional blocks have a residual connection.
    qkv_bias: whether query, key and value have a bias.
    dropout_rate: in the transformer: after the embedding, on attention weights and after its linear layers.
    position_grid: patches per axis for which the table of positions is made, for example (6, 6, 6) for weights trained
      on 96 x 96 x 96; None is the grid of the image at initialisation.
    remat: whether activations inside the blocks are recomputed in the backward pass: less memory, more time.
    dtype: compute dtype; parameters, the norms' statistics and logits are float32.
    constrain: function applied to the tokens and features after each block, for sharding in space.
    attend: computes the attention, where its weights have no dropout; `layers.attention.attend` chooses the kernel.

  Returns:
    The Linen module.

  Raises:
    InputError: an invalid option.
  """
  options.check_choice('size', size, tuple(SIZES))
  options.check_choice('patch_embedding', patch_embedding, ('perceptron', 'conv'))
  feature_size = SIZES[size][-1] if feature_size is None else feature_size
  if not isinstance(feature_size, int) or feature_size < 1:
    raise InputError(f'model option feature_size={feature_size!r}', 'is not a number of channels', 'Give 16 or 32.')
  options.check_rates(dropout_rate=dropout_rate)
  options.check_flags(conv_block=conv_block, res_block=res_block, qkv_bias=qkv_bias, remat=remat)
  if position_grid is not None:
    position_grid = tuple(position_grid)
    if len(position_grid) != SPATIAL_DIMS or not all(isinstance(n, int) and n > 0 for n in position_grid):
      raise InputError(
        f'model option position_grid={position_grid!r}',
        'is not a number of patches per axis',
        'Give three positive integers, for example (6, 6, 6) for 96 x 96 x 96 voxels.',
      )
  return UNETR(
    num_classes,
    size,
    feature_size,
    patch_embedding,
    conv_block,
    res_block,
    qkv_bias,
    dropout_rate,
    position_grid,
    remat,
    options.compute_dtype(dtype),
    constrain,
    attend,
  )


def smallest_image(model: UNETR, channels: int = 1) -> tuple[int, ...]:
  """Shape (1, D, H, W, channels) of the smallest image the network takes: one token, or those of `position_grid`."""
  return (1, *(PATCH * n for n in model.position_grid or (1,) * SPATIAL_DIMS), channels)


def reduction(model: UNETR) -> int:
  """Rows of the image per row of tokens, which are at the deepest level."""
  return PATCH


def torch_image(model: UNETR, arrays, channels: int) -> tuple[int, ...]:
  """Shape of an image with as many patches as the table of positions in the PyTorch weights has rows."""
  if model.position_grid or POSITIONS not in arrays:
    return smallest_image(model, channels)
  return 1, PATCH * arrays[POSITIONS].shape[1], PATCH, PATCH, channels


POSITIONS = 'vit.patch_embedding.position_embeddings'
TORCH_NAMES = (
  (r'^(patch_embedding|norm$)', r'vit.\1'),
  (r'^blocks_(\d+)', r'vit.blocks.\1'),
  (r'\.perceptron$', '.patch_embeddings.1'),
  (r'\.conv$', '.patch_embeddings'),
  (r'^encoder1\b', 'encoder1.layer'),
  (r'^(decoder\d)_', r'\1.'),
  (r'\b(conv[123]|transp_conv(_init)?)$', r'\1.conv'),
  (r'\.blocks_(\d+)_1\b', r'.blocks.\1.1'),
  (r'\.blocks_(\d+)_0$', r'.blocks.\1.0.conv'),
  (r'\.blocks_(\d+)$', r'.blocks.\1.conv'),
  (r'^out$', 'out.conv.conv'),
)
TORCH_CLASSES = ('out.conv.conv.weight',)
TORCH_CHANNELS = ('encoder1.layer.conv1.conv.weight',)
# MONAI has norms and layers for a cross-attention that UNETR does not use; no output depends on them.
TORCH_IGNORED = (r'^vit\.blocks\.\d+\.(norm_cross_attn|cross_attn)\.',)
