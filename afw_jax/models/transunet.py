"""TransUNet (Chen et al. 2021): a transformer on the features of a ResNet, decoded with the ResNet's skips.

R50+ViT-B_16 (`encoder='r50'`) or ViT-B_16 on patches of the image, without skips (`encoder='vit'`).
"""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from afw_jax.errors import InputError
from afw_jax.models.layers.conv import Conv, Linear
from afw_jax.models.layers.decoder import ConvBnRelu, DecoderBlock
from afw_jax.models.layers.norm import LayerNorm
from afw_jax.models.layers.options import check_choice, check_image, compute_dtype, identity, logits_dtype
from afw_jax.models.layers.positions import position_table
from afw_jax.models.layers.resnet import READINGS, ResNetV2
from afw_jax.models.layers.vit import SelfAttention

SPATIAL_DIMS = 2
PATCH = 16  # pixels per token and axis, with either encoder
MOST_SKIPS = {'r50': 3, 'vit': 0}
SIZES = {
  'full': {
    'width': 64,
    'depths': (3, 4, 9),
    'hidden': 768,
    'layers': 12,
    'heads': 12,
    'mlp_features': 3072,
    'decoder': (512, 256, 128, 64, 16),
  },
  'testing': {
    'width': 8,
    'depths': (1, 1, 1),
    'hidden': 32,
    'layers': 2,
    'heads': 4,
    'mlp_features': 64,
    'decoder': (32, 16, 16, 8, 8),
  },
}


class EncoderBlock(nn.Module):
  """Pre-norm transformer block, LayerNorm eps 1e-6.

  Args:
    heads: attention heads.
    mlp_features: channels between the two layers of the MLP.
    reading: 'transunet': exact GELU, nothing dropped after the attention; 'google': GELU by tanh, dropped there too.
    dropout_rate: after the layers of the MLP.
    dtype: compute dtype.
    divided: whether the tokens of a sample may lie on several devices.
  """

  heads: int
  mlp_features: int
  reading: str
  dropout_rate: float
  dtype: jnp.dtype = jnp.float32
  divided: bool = False

  @nn.compact
  def __call__(self, x, train: bool = False):
    google = self.reading == 'google'
    y = LayerNorm(1e-6, name='attention_norm')(x)
    x = x + SelfAttention(
      self.heads,
      fused=False,
      qkv_bias=True,
      dropout=self.dropout_rate if google else 0.0,
      dtype=self.dtype,
      divided=self.divided,
      name='attn',
    )(y, train)
    y = LayerNorm(1e-6, name='ffn_norm')(x)
    for name, features in (('fc1', self.mlp_features), ('fc2', x.shape[-1])):
      y = Linear(
        features,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=nn.initializers.normal(1e-6),
        dtype=self.dtype,
        name=name,
      )(y)
      y = nn.gelu(y, approximate=google) if name == 'fc1' else y
      y = nn.Dropout(self.dropout_rate, deterministic=not train)(y)
    return x + y


class TransUNet(nn.Module):
  """See `make`."""

  num_classes: int
  width: int
  depths: Sequence[int]
  hidden: int
  layers: int
  heads: int
  mlp_features: int
  decoder: Sequence[int]
  n_skip: int = 3
  encoder: str = 'r50'
  reading: str = 'transunet'
  dropout_rate: float = 0.1
  position_grid: Sequence[int] | None = None
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  constrain: Callable = identity

  @nn.compact
  def __call__(self, image, train: bool = False):
    check_image('transunet', image, (PATCH, PATCH))
    x = image.astype(self.dtype)
    if x.shape[-1] == 1:
      x = jnp.repeat(x, 3, axis=-1)
    skips = []
    if self.encoder == 'r50':
      x, skips = ResNetV2(self.width, self.depths, self.reading, self.dtype, self.remat, self.constrain, name='resnet')(
        x
      )
    x = self._transformer(x, train)
    x = self.constrain(ConvBnRelu(self.decoder[0], self.dtype, name='conv_more')(x, train))
    block = nn.remat(DecoderBlock, static_argnums=(3,)) if self.remat else DecoderBlock
    for i, features in enumerate(self.decoder[1:]):
      skip = skips[i] if i < self.n_skip else None
      x = self.constrain(
        block(features, dtype=self.dtype, constrain=self.constrain, name=f'decoder{i}')(x, skip, train)
      )
    logits = Conv(self.num_classes, 3, dtype=logits_dtype(self.dtype), name='head')(x)
    return self.constrain(logits)

  def _transformer(self, x, train):
    """Image or features -> features (B, H / 16, W / 16, hidden)."""
    patch = 1 if self.encoder == 'r50' else PATCH
    x = Conv(self.hidden, patch, patch, padding=0, dtype=self.dtype, name='patch_embeddings')(x)
    grid = x.shape[1:3]
    table = position_table(self, 'position_embeddings', grid, self.hidden, nn.initializers.zeros, self.position_grid)
    x = x.reshape(x.shape[0], math.prod(grid), self.hidden) + table.astype(x.dtype)
    x = self.constrain(nn.Dropout(self.dropout_rate, deterministic=not train)(x))
    block = nn.remat(EncoderBlock, static_argnums=(2,)) if self.remat else EncoderBlock
    for i in range(self.layers):
      x = block(
        self.heads,
        self.mlp_features,
        self.reading,
        self.dropout_rate,
        self.dtype,
        self.constrain is not identity,
        name=f'layer{i}',
      )(x, train)
      x = self.constrain(x)
    x = LayerNorm(1e-6, name='encoder_norm')(x)
    return x.reshape(x.shape[0], *grid, self.hidden)


def make(
  num_classes: int,
  *,
  encoder: str = 'r50',
  n_skip: int | None = None,
  reading: str = 'transunet',
  dropout_rate: float = 0.1,
  size: str = 'full',
  position_grid: Sequence[int] | None = None,
  dtype=jnp.float32,
  remat: bool = False,
  constrain: Callable = identity,
) -> TransUNet:
  """TransUNet: image (B, H, W, Cin) -> logits (B, H, W, num_classes), H and W divisible by 16.

  A one-channel image is repeated to three. At nine classes and 224 x 224 it has 105,277,081 parameters with three
  skips (105,240,217, 104,945,305 and 103,765,657 with two, one and none), and 91,674,201 with `encoder='vit'`.

  Args:
    num_classes: number of classes, background included.
    encoder: 'r50' (ResNet, then the transformer) or 'vit' (the transformer alone).
    n_skip: how many of the ResNet's three skips the decoder gets, the deepest first; None is all the encoder has.
    reading: how the published weights are read. 'transunet' as the TransUNet code does; 'google' as the network they
      were trained in does (other normalisation in the shortcuts, padding, standardisation of kernels, GELU).
    dropout_rate: dropout of tokens in training; the attention weights are never dropped.
    size: 'full' or 'testing' (one unit per ResNet block, two transformer layers, 32 wide).
    position_grid: tokens per axis that the table of positions was made for, where the image's differ and it is not a
      square; the table is resized.
    dtype: compute dtype; parameters, statistics and logits are float32.
    remat: whether units, transformer layers and decoder blocks are computed again in the backward pass, not kept.
    constrain: applied to the features after each unit or block, and to the tokens (B, N, hidden).

  Returns:
    The Linen module; in training it needs the rng 'dropout' unless dropout_rate is 0.

  Raises:
    InputError: a value that cannot work.
  """
  check_choice('encoder', encoder, tuple(MOST_SKIPS))
  check_choice('reading', reading, READINGS)
  check_choice('size', size, tuple(SIZES))
  n_skip = MOST_SKIPS[encoder] if n_skip is None else n_skip
  if encoder == 'vit' and n_skip != 0:
    raise InputError(
      f'model option n_skip={n_skip!r}',
      "encoder 'vit' has no features to skip with",
      "leave n_skip out, or use encoder 'r50'",
    )
  check_choice('n_skip', n_skip, tuple(range(MOST_SKIPS['r50'] + 1)))
  if not 0 <= dropout_rate < 1:
    raise InputError(f'model option dropout_rate={dropout_rate!r}', 'is not a rate', 'give a number from 0 to below 1')
  grid = None if position_grid is None else tuple(position_grid)
  return TransUNet(
    num_classes,
    **SIZES[size],
    n_skip=n_skip,
    encoder=encoder,
    reading=reading,
    dropout_rate=dropout_rate,
    position_grid=grid,
    dtype=compute_dtype(dtype),
    remat=remat,
    constrain=constrain,
  )


def smallest_image(model: TransUNet, channels: int = 1) -> tuple[int, ...]:
  """Shape (1, H, W, channels) of the smallest image the network takes: one token."""
  return 1, PATCH, PATCH, channels


def torch_image(model: TransUNet, arrays, channels: int) -> tuple[int, ...]:
  """Shape of an image with as many tokens as the table of positions among PyTorch's `arrays`: a square if it can be."""
  table = arrays.get('transformer.embeddings.position_embeddings')
  if table is None or table.ndim != 3:
    return smallest_image(model, channels)
  tokens = table.shape[1]
  side = math.isqrt(tokens)
  rows, columns = model.position_grid or ((side, side) if side * side == tokens else (1, tokens))
  return 1, PATCH * rows, PATCH * columns, channels


TORCH_NAMES = (
  (r'^$', 'transformer.embeddings'),  # the table of positions
  (r'^patch_embeddings', 'transformer.embeddings.patch_embeddings'),
  (r'^resnet\.root', 'transformer.embeddings.hybrid_model.root'),
  (r'^resnet\.block(\d)_unit(\d)', r'transformer.embeddings.hybrid_model.body.block\1.unit\2'),
  (r'conv_proj$', 'downsample'),
  (r'^layer(\d+)', r'transformer.encoder.layer.\1'),
  (r'attn\.out_proj$', 'attn.out'),
  (r'\.(fc[12])$', r'.ffn.\1'),
  (r'^encoder_norm', 'transformer.encoder.encoder_norm'),
  (r'^(conv_more|decoder)', r'decoder.\1'),
  (r'^decoder\.decoder(\d)', r'decoder.blocks.\1'),
  (r'^(decoder\..*)\.conv$', r'\1.0'),
  (r'^(decoder\..*)\.bn$', r'\1.1'),
  (r'^head$', 'segmentation_head.0'),
)
TORCH_CLASSES = ('segmentation_head.0.weight',)
TORCH_CHANNELS = (
  'transformer.embeddings.hybrid_model.root.conv.weight',
  'transformer.embeddings.patch_embeddings.weight',
)
