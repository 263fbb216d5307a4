"""UNETR++ (Shaker et al. 2022) in its Synapse configuration: efficient paired attention and 3x3x3 residual
blocks at four resolutions, skips added, three heads.

It is tied to the number of voxels it was made for: every block has a table of positions and a layer that mixes all
tokens, so the number of parameters depends on the image (42,952,850 at 64 x 128 x 128, 201,609,362 at 128 x 256 x 256).
"""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from afw_jax.errors import InputError
from afw_jax.models.layers.conv import Conv, uniform_fan_in
from afw_jax.models.layers.epa import LAYOUTS, EPABlock
from afw_jax.models.layers.norm import GroupNorm
from afw_jax.models.layers.options import check_choice, check_image, compute_dtype, identity, logits_dtype
from afw_jax.models.layers.residual import ResBlock
from afw_jax.models.layers.transposed import UpConv

SPATIAL_DIMS = 3
# widths of the encoder's stages, learned mixtures of tokens in each of them and in the decoder, EPA blocks per stage
SIZES = {'full': ((32, 64, 128, 256), (64, 64, 64, 32), 64, 3), 'testing': ((8, 16, 32), (8, 8, 4), 8, 1)}


class PatchConv(nn.Module):
  """Convolution of D, H and W without overlap (kernel = stride, no bias) as one matrix product over patches.

  The gradient of XLA's strided 3D convolutions takes forty times longer on a CPU, mostly for the input.
  """

  features: int
  size: Sequence[int]
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    shape = (*self.size, x.shape[-1], self.features)
    kernel = self.param('kernel', uniform_fan_in(math.prod(shape[:-1])), shape, jnp.float32).astype(self.dtype)
    patches = x.reshape(x.shape[0], *(m for n, k in zip(x.shape[1:-1], self.size) for m in (n // k, k)), x.shape[-1])
    return jnp.einsum('bdphqwrc,pqrco->bdhwo', patches.astype(self.dtype), kernel)


class UNETRPP(nn.Module):
  """See `make`. Stage i has the blocks `stage{i}_{j}`, the decoder the released code's names: `up5` to `decoder2`."""

  main_output: ClassVar[int] = 0
  head_weights: ClassVar[tuple[float, ...]] = (1, 1 / 2, 1 / 4)

  num_classes: int
  size: str = 'full'
  epa_layout: str = 'released'
  deep_supervision: bool = True
  stem: Sequence[int] = (2, 4, 4)
  attention_dropout: float = 0.15
  channel_dropout: float = 0.1
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  constrain: Callable = identity

  @nn.compact
  def __call__(self, image, train: bool = False):
    check_image('unetrpp', image, strides(self))
    self._check_tokens(image)
    widths, mixtures, decoder_mixtures, blocks = SIZES[self.size]
    image = image.astype(self.dtype)

    def run(block, x):
      apply = lambda block, x: block(x, train)  # a closure, since rematerialisation would trace `train`
      return self.constrain((nn.remat(apply) if self.remat else apply)(block, x))

    def stage(name, x, projected, **inits):
      for i in range(blocks):
        x = run(
          EPABlock(
            projected,
            self.epa_layout,
            dropout=self.attention_dropout,
            channel_dropout=self.channel_dropout,
            dtype=self.dtype,
            constrain=self.constrain,
            name=f'{name}_{i}',
            **inits,
          ),
          x,
        )
      return x

    # The released code initialises the linear layers of the encoder so, and leaves the decoder's at PyTorch's default.
    inits = {'kernel_init': nn.initializers.normal(0.02), 'bias_init': nn.initializers.zeros}
    skips, x = [], image
    for i, (width, projected) in enumerate(zip(widths, mixtures)):
      groups = x.shape[-1] if i else 1
      x = PatchConv(width, (2, 2, 2) if i else self.stem, self.dtype, name=f'down{i}')(x)
      x = stage(f'stage{i}', GroupNorm(groups, name=f'down{i}_norm')(x), projected, **inits)
      skips.append(x)

    decoded = [skips.pop()]
    for name, skip in zip(range(len(skips) + 2, 2, -1), reversed(skips)):
      x = UpConv(skip.shape[-1], 2, dtype=self.dtype, name=f'up{name}')(decoded[-1]) + skip
      decoded.append(stage(f'decoder{name}', self.constrain(x), decoder_mixtures))
    width = widths[0] // 2
    skip = run(ResBlock(width, 'instance', dtype=self.dtype, name='encoder1'), image)
    x = UpConv(width, self.stem, dtype=self.dtype, name='up2')(decoded[-1]) + skip
    decoded.append(run(ResBlock(width, 'instance', dtype=self.dtype, name='decoder2'), self.constrain(x)))

    def head(i, x):
      logits = Conv(self.num_classes, 1, dtype=logits_dtype(self.dtype), name=f'out{i}')(x)
      return self.constrain(logits)

    heads = [head(i, x) for i, x in enumerate(decoded[: -4 if self.deep_supervision else -2 : -1], 1)]
    return heads if self.deep_supervision else heads[0]

  def _check_tokens(self, image):
    if not self.has_variable('params', 'stage0_0'):
      return
    voxels = self.get_variable('params', 'stage0_0')['pos_embed'].shape[1] * math.prod(self.stem)
    if voxels != math.prod(image.shape[1:-1]):
      sides = ' x '.join(map(str, image.shape[1:-1]))
      raise InputError(
        f'image of {sides} voxels',
        f'this unetrpp was made for images of {voxels:,} voxels: it has weights for each',
        'predict in windows of the size it was trained on, or train one for this size',
      )


def make(
  num_classes: int,
  *,
  size: str = 'full',
  epa_layout: str = 'released',
  deep_supervision: bool = True,
  stem: Sequence[int] = (2, 4, 4),
  attention_dropout: float = 0.15,
  channel_dropout: float = 0.1,
  dtype=jnp.float32,
  remat: bool = False,
  constrain: Callable = identity,
) -> UNETRPP:
  """UNETR++: image (B, D, H, W, Cin) -> logits, for images of the number of voxels it was initialised with.

  Args:
    num_classes: number of classes, background included.
    size: 'full' (four stages of 32 to 256 channels, three blocks each) or 'testing' (three of 8 to 32, one each).
    epa_layout: 'released', the published code, whose spatial attention mixes up tokens and channels when it lays them
      out (its weights need that), or 'fixed'. Its author found the same accuracy with both; sharded in space, 'released'
      sends every block's attended tokens to all devices, 'fixed' nothing of the kind.
    deep_supervision: True: a list of logits at full size, at 1 / stem and at 1 / (2 stem); the first is the answer.
      False: the first alone, with 1,372 parameters less at fourteen classes.
    stem: how much the first convolution reduces D, H and W; every side must be divisible by eight times that
      ('testing': four times).
    attention_dropout, channel_dropout: share of attention weights and of channels dropped in training.
    dtype: compute dtype; parameters, statistics, attention weights and logits are float32.
    remat: compute the blocks again in the backward pass instead of keeping what is inside them.
    constrain: applied to the features after each block, to the tokens and to the logits.

  Returns:
    The Linen module.

  Raises:
    InputError: a value that cannot work.
  """
  check_choice('size', size, tuple(SIZES))
  check_choice('epa_layout', epa_layout, LAYOUTS)
  for option, value in (('deep_supervision', deep_supervision), ('remat', remat)):
    check_choice(option, value, (True, False))
  stem = tuple(stem)
  if len(stem) != 3 or not all(isinstance(n, int) and n > 0 for n in stem):
    raise InputError(
      f'model option stem={stem!r}',
      'is not a stride for each of D, H and W',
      'give three positive integers, as (2, 4, 4)',
    )
  for option, value in (('attention_dropout', attention_dropout), ('channel_dropout', channel_dropout)):
    if not 0 <= value < 1:
      raise InputError(f'model option {option}={value!r}', 'is not a share to drop', 'give a number from 0 to below 1')
  return UNETRPP(
    num_classes,
    size,
    epa_layout,
    deep_supervision,
    stem,
    attention_dropout,
    channel_dropout,
    compute_dtype(dtype),
    remat,
    constrain,
  )


def strides(model: UNETRPP) -> tuple[int, ...]:
  """What D, H and W must be divisible by."""
  return tuple(_reduction(model) * n for n in model.stem)


def _reduction(model):
  return 2 ** (len(SIZES[model.size][0]) - 1)


def smallest_image(model: UNETRPP, channels: int = 1) -> tuple[int, ...]:
  """Shape (1, D, H, W, channels) of the smallest image the network takes: one token in the deepest stage."""
  return 1, *strides(model), channels


def torch_image(model: UNETRPP, arrays, channels: int) -> tuple[int, ...]:
  """Shape of an image with as many voxels as the PyTorch weights were made for."""
  table = arrays.get('unetr_pp_encoder.stages.0.0.pos_embed')
  deepest = 1 if table is None else max(table.shape[1] // _reduction(model) ** 3, 1)
  depth, height, width = strides(model)
  return 1, depth, height, deepest * width, channels


TORCH_NAMES = (
  (r'^down(\d)$', r'unetr_pp_encoder.downsample_layers.\1.0.conv'),
  (r'^down(\d)_norm$', r'unetr_pp_encoder.downsample_layers.\1.1'),
  (r'^stage(\d)_(\d)', r'unetr_pp_encoder.stages.\1.\2'),
  (r'^decoder2', 'decoder2.decoder_block.0'),
  (r'^decoder(\d)_(\d)', r'decoder\1.decoder_block.0.\2'),
  (r'^up(\d)$', r'decoder\1.transp_conv.conv'),
  (r'^out(\d)$', r'out\1.conv.conv'),
  (r'\.conv([123])$', r'.conv\1.conv'),
  (r'\.conv8$', '.conv8.1'),
  (r'\.project$', '.F'),
)
# E and F are two names of one layer; loading a state dict in PyTorch leaves it with the values of F, the later one.
TORCH_ALIASES = ((r'\.epa_block\.E\.', '.epa_block.F.'),)
TORCH_CLASSES = ('out1.conv.conv.weight',)
TORCH_CHANNELS = ('encoder1.conv1.conv.weight',)
