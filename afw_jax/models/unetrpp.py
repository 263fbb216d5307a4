"""UNETR++ in its Synapse configuration: efficient paired attention and 3x3x3 residual blocks at four resolutions.

Skips are added, not concatenated, and there are three heads. The network is bound to the number of voxels for which it
was initialised: every block has a table of positions and a layer that mixes all tokens, so that the number of
parameters depends on the image (42,952,850 at 64 x 128 x 128, 201,609,362 at 128 x 256 x 256).

References:
  Shaker A. et al. 2022. UNETR++: Delving into Efficient and Accurate 3D Medical Image Segmentation. arXiv:2212.04497.
"""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from afw_jax.errors import InputError
from afw_jax.models.layers import options
from afw_jax.models.layers.conv import Conv, uniform_fan_in
from afw_jax.models.layers.epa import LAYOUTS, EPABlock
from afw_jax.models.layers.norm import GroupNorm
from afw_jax.models.layers.residual import ResBlock
from afw_jax.models.layers.transposed import UpConv

SPATIAL_DIMS = 3
# channels of the encoder's stages, learned mixtures of tokens in each of them and in the decoder, EPA blocks per stage
SIZES = {'full': ((32, 64, 128, 256), (64, 64, 64, 32), 64, 3), 'testing': ((8, 16, 32), (8, 8, 4), 8, 1)}


class PatchConv(nn.Module):
  """Convolution of D, H and W without overlap (kernel = stride, no bias) as one matrix product over patches.

  On a CPU the gradient of XLA's strided 3D convolutions takes forty times longer, most of it for the input.
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
  """UNETR++; the fields are the arguments of `make`.

  Stage i of the encoder has the blocks `stage{i}_{j}`; the decoder has the names of the released code, `up5` to
  `decoder2`.
  """

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
  constrain: Callable = options.identity

  @nn.compact
  def __call__(self, image, train: bool = False):
    options.check_image('unetrpp', image, strides(self))
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

    # As in the released code; the linear layers of the decoder have PyTorch's default initialisation.
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
      logits = Conv(self.num_classes, 1, dtype=options.logits_dtype(self.dtype), name=f'out{i}')(x)
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
        f'this unetrpp was made for images of {voxels:,} voxels, and has weights for each of them',
        'Predict in windows of the size it was trained on, or train one for this size.',
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
  constrain: Callable = options.identity,
) -> UNETRPP:
  """Makes a UNETR++: image (B, D, H, W, Cin) -> logits, for images with the number of voxels it is initialised with.

  Args:
    num_classes: number of classes, background included.
    size: 'full' (four stages of 32 to 256 channels, three blocks each) or 'testing' (three of 8 to 32, one each).
    epa_layout: 'released' as in the published code, where a reshape mixes the token and channel axes of the spatial
      attention (its weights need that), or 'fixed'. The author reports the same accuracy for both. Sharded in space,
      'released' sends the attended tokens of every block to all devices, which 'fixed' does not.
    deep_supervision: True for a list of logits at full size, at 1 / stem and at 1 / (2 stem); the first is the
      prediction. False for the first alone, with 1,372 parameters less at fourteen classes.
    stem: strides of the first convolution along D, H and W; every side must be divisible by eight times that
      ('testing': four times).
    attention_dropout, channel_dropout: dropout rates of attention weights and of channels in training.
    dtype: compute dtype; parameters, statistics, attention weights and logits are float32.
    remat: whether activations inside the blocks are recomputed in the backward pass: less memory, more time.
    constrain: function applied to the features after each block, to the tokens and to the logits, for sharding in
      space.

  Returns:
    The Linen module; in training it needs the rng 'dropout' unless both rates are 0.

  Raises:
    InputError: an invalid option.
  """
  options.check_choice('size', size, tuple(SIZES))
  options.check_choice('epa_layout', epa_layout, LAYOUTS)
  options.check_flags(deep_supervision=deep_supervision, remat=remat)
  options.check_rates(attention_dropout=attention_dropout, channel_dropout=channel_dropout)
  stem = tuple(stem)
  if len(stem) != 3 or not all(isinstance(n, int) and n > 0 for n in stem):
    raise InputError(
      f'model option stem={stem!r}',
      'is not a stride for each of D, H and W',
      'Give three positive integers, for example (2, 4, 4).',
    )
  return UNETRPP(
    num_classes,
    size,
    epa_layout,
    deep_supervision,
    stem,
    attention_dropout,
    channel_dropout,
    options.compute_dtype(dtype),
    remat,
    constrain,
  )


def strides(model: UNETRPP) -> tuple[int, ...]:
  """The numbers by which D, H and W must be divisible."""
  return tuple(_reduction(model) * n for n in model.stem)


def _reduction(model):
  return 2 ** (len(SIZES[model.size][0]) - 1)


def smallest_image(model: UNETRPP, channels: int = 1) -> tuple[int, ...]:
  """Shape (1, D, H, W, channels) of the smallest image the network takes: one token in the deepest stage."""
  return 1, *strides(model), channels


def torch_image(model: UNETRPP, arrays, channels: int) -> tuple[int, ...]:
  """Shape of an image with as many voxels as the PyTorch weights were trained on."""
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
# E and F are two names of one layer; after loading a state dict in PyTorch it has the values of F, the later one.
TORCH_ALIASES = ((r'\.epa_block\.E\.', '.epa_block.F.'),)
TORCH_CLASSES = ('out1.conv.conv.weight',)
TORCH_CHANNELS = ('encoder1.conv1.conv.weight',)
