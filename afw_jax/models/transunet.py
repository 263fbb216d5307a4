"""TransUNet: a transformer on the features of a ResNet, and a decoder with skip connections from the ResNet.

Two encoders: R50+ViT-B_16 (`encoder='r50'`), or ViT-B_16 on patches of the image, without skips (`encoder='vit'`).

References:
  Chen J. et al. 2021. TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation. arXiv:2102.04306.
"""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from afw_jax.errors import InputError
from afw_jax.models.layers import options
from afw_jax.models.layers.attention import attend
from afw_jax.models.layers.conv import Conv
from afw_jax.models.layers.decoder import ConvBnRelu, DecoderBlock
from afw_jax.models.layers.norm import LayerNorm
from afw_jax.models.layers.positions import position_table
from afw_jax.models.layers.resnet import READINGS, ResNetV2
from afw_jax.models.layers.vit import Block, Names

SPATIAL_DIMS = 2
PATCH = 16  # pixels per token and axis, with either encoder
MOST_SKIPS = {'r50': 3, 'vit': 0}
BLOCK_NAMES = Names('attention_norm', 'ffn_norm', None, 'fc1', 'fc2')
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


class TransUNet(nn.Module):
  """TransUNet; the fields are the arguments of `make`, and the numbers of `SIZES`."""

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
  constrain: Callable = options.identity
  attend: Callable = attend

  @nn.compact
  def __call__(self, image, train: bool = False):
    options.check_image('transunet', image, (PATCH, PATCH))
    x, skips = options.gray_to_rgb(image.astype(self.dtype)), []
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
    logits = Conv(self.num_classes, 3, dtype=options.logits_dtype(self.dtype), name='head')(x)
    return self.constrain(logits)

  def _transformer(self, x, train):
    """Image or features -> features (B, H / 16, W / 16, hidden)."""
    patch = 1 if self.encoder == 'r50' else PATCH
    x = Conv(self.hidden, patch, patch, padding=0, dtype=self.dtype, name='patch_embeddings')(x)
    grid = x.shape[1:3]
    table = position_table(self, 'position_embeddings', grid, self.hidden, nn.initializers.zeros, self.position_grid)
    x = x.reshape(x.shape[0], math.prod(grid), self.hidden) + table.astype(x.dtype)
    x = self.constrain(nn.Dropout(self.dropout_rate, deterministic=not train)(x))
    block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
    google = self.reading == 'google'
    for i in range(self.layers):
      x = block(
        self.heads,
        self.mlp_features,
        eps=1e-6,
        fused=False,
        qkv_bias=True,
        dropout=self.dropout_rate,
        output_dropout=self.dropout_rate if google else 0.0,
        approximate_gelu=google,
        mlp_kernel_init=nn.initializers.xavier_uniform(),
        mlp_bias_init=nn.initializers.normal(1e-6),
        dtype=self.dtype,
        divided=self.constrain is not options.identity,
        attend=self.attend,
        names=BLOCK_NAMES,
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
  constrain: Callable = options.identity,
  attend: Callable = attend,
) -> TransUNet:
  """Makes a TransUNet: image (B, H, W, Cin) -> logits (B, H, W, num_classes), H and W divisible by 16.

  A one-channel image is repeated to three. At nine classes and 224 x 224 it has 105,277,081 parameters with three
  skips (105,240,217, 104,945,305 and 103,765,657 with two, one and none), and 91,674,201 with `encoder='vit'`.

  Args:
    num_classes: number of classes, background included.
    encoder: 'r50' (ResNet, then the transformer) or 'vit' (the transformer alone).
    n_skip: how many of the ResNet's three skips the decoder uses, the deepest first; None is all that the encoder has.
    reading: which of two networks the published weights are used in. 'transunet' is that of the TransUNet code;
      'google' is the one they were trained in (other normalisation in the shortcuts, padding, standardisation of
      kernels, GELU).
    dropout_rate: dropout rate of tokens in training; there is no dropout on attention weights.
    size: 'full' or 'testing' (one unit per ResNet block, two transformer layers, 32 wide).
    position_grid: tokens per axis for which the table of positions was made, needed where that grid is neither the
      image's nor a square; the table is resized.
    dtype: compute dtype; parameters, statistics and logits are float32.
    remat: whether activations inside units, transformer layers and decoder blocks are recomputed in the backward pass.
    constrain: function applied to the features after each unit or block and to the tokens (B, N, hidden), for sharding
      in space.
    attend: computes the attention; `layers.attention.attend` chooses the kernel.

  Returns:
    The Linen module; in training it needs the rng 'dropout' unless dropout_rate is 0.

  Raises:
    InputError: an invalid option.
  """
  options.check_choice('encoder', encoder, tuple(MOST_SKIPS))
  options.check_choice('reading', reading, READINGS)
  options.check_choice('size', size, tuple(SIZES))
  n_skip = MOST_SKIPS[encoder] if n_skip is None else n_skip
  if encoder == 'vit' and n_skip != 0:
    problem = "encoder 'vit' has no features for skips"
    raise InputError(f'model option n_skip={n_skip!r}', problem, "Leave n_skip out, or use encoder 'r50'.")
  options.check_choice('n_skip', n_skip, tuple(range(MOST_SKIPS['r50'] + 1)))
  options.check_rates(dropout_rate=dropout_rate)
  options.check_flags(remat=remat)
  grid = None if position_grid is None else tuple(position_grid)
  return TransUNet(
    num_classes,
    **SIZES[size],
    n_skip=n_skip,
    encoder=encoder,
    reading=reading,
    dropout_rate=dropout_rate,
    position_grid=grid,
    dtype=options.compute_dtype(dtype),
    remat=remat,
    constrain=constrain,
    attend=attend,
  )


def smallest_image(model: TransUNet, channels: int = 1) -> tuple[int, ...]:
  """Shape (1, H, W, channels) of the smallest image the network takes: one token."""
  return 1, PATCH, PATCH, channels


def torch_image(model: TransUNet, arrays, channels: int) -> tuple[int, ...]:
  """Shape of an image with as many tokens as the table of positions in the PyTorch weights has, square if possible."""
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
