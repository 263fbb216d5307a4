"""VATransUNet (Jiang et al., ICCPR 2022; the authors' code): a VAN-B0 encoder with all strides 2, and TransUNet's decoder.

The encoder is `afw_jax.models.van`. The decoder has a 3x3 convolution to 512 channels, four blocks that concatenate
[features, skip] and convolve twice (the first without upsampling), one more block at full size, and a last convolution.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from afw_jax.errors import InputError
from afw_jax.models.layers.conv import Conv
from afw_jax.models.layers.decoder import ConvBnRelu, DecoderBlock
from afw_jax.models.layers.options import check_choice, check_image, compute_dtype, identity, logits_dtype
from afw_jax.models.layers.van import VAN, VAN_B0, Stage

# the encoder's stages; the decoder's channels: at the deepest level, then of its blocks from deep to shallow
SIZES = {
  'full': (VAN_B0, (512, 256, 128, 64, 16)),
  'testing': ((Stage(4, 1, 2), Stage(4, 1, 2), Stage(8, 1, 2), Stage(8, 1, 2)), (16, 8, 8, 4, 4)),
}


class Decoder(nn.Module):
  """The encoder's maps (shallow to deep) -> features at twice the size of the shallowest."""

  features: Sequence[int]
  dtype: jnp.dtype = jnp.float32
  constrain: Callable = identity

  @nn.compact
  def __call__(self, maps, *, train: bool = False):
    deepest, *widths = self.features
    x = self.constrain(ConvBnRelu(deepest, self.dtype, name='conv_more')(maps[-1], train))
    for i, (width, skip) in enumerate(zip(widths, reversed(maps))):
      x = DecoderBlock(width, i > 0, self.dtype, self.constrain, name=f'block{i}')(x, skip, train)
      x = self.constrain(x)
    x = self.constrain(
      DecoderBlock(widths[-1], dtype=self.dtype, constrain=self.constrain, name='fin_conv')(x, None, train)
    )
    return self.constrain(ConvBnRelu(widths[-1], self.dtype, name='fin_conv2')(x, train))


class VATransUNet(nn.Module):
  """See `make`."""

  num_classes: int
  stages: Sequence[Stage]
  decoder_features: Sequence[int]
  drop_path_rate: float = 0.1
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  constrain: Callable = identity

  @nn.compact
  def __call__(self, image, train: bool = False):
    check_image('vatransunet', image, (2 ** len(self.stages),) * 2)
    x = image.astype(self.dtype)
    if x.shape[-1] == 1:
      x = jnp.repeat(x, 3, axis=-1)
    maps = VAN(self.stages, self.drop_path_rate, self.dtype, self.remat, self.constrain, name='van')(x, train=train)
    x = Decoder(self.decoder_features, self.dtype, self.constrain, name='decoder')(maps, train=train)
    logits = Conv(self.num_classes, 3, dtype=logits_dtype(self.dtype), name='head')(x)
    return self.constrain(logits)


def make(
  num_classes: int,
  *,
  size: str = 'full',
  drop_path_rate: float = 0.1,
  dtype=jnp.float32,
  remat: bool = False,
  constrain: Callable = identity,
) -> VATransUNet:
  """VATransUNet: image (B, H, W, Cin) -> logits (B, H, W, num_classes), H and W divisible by 16.

  A one-channel image is repeated to three channels, as the pretrained encoder wants it. At nine classes 8,189,209
  parameters, 3,848,800 of them the encoder's.

  Args:
    num_classes: number of classes, background included.
    size: 'full' (VAN-B0) or 'testing' (one block per stage, 4 to 8 channels).
    drop_path_rate: probability, in [0, 1), that a sample skips a branch of the encoder's last block in training; it
      grows linearly from zero at the first block. Drawn from the rng 'dropout'.
    dtype: compute dtype; parameters, running statistics and logits are float32.
    remat: compute each block of the encoder again in the backward pass instead of keeping what is inside.
    constrain: applied to the features after each block.

  Returns:
    The Linen module.

  Raises:
    InputError: a value that cannot work.
  """
  check_choice('size', size, tuple(SIZES))
  if isinstance(drop_path_rate, bool) or not isinstance(drop_path_rate, int | float) or not 0 <= drop_path_rate < 1:
    raise InputError(
      f'model option drop_path_rate={drop_path_rate!r}',
      'is not a probability below one',
      'give a number in [0, 1), as 0.1',
    )
  stages, decoder_features = SIZES[size]
  return VATransUNet(num_classes, stages, decoder_features, drop_path_rate, compute_dtype(dtype), remat, constrain)


def smallest_image(model: VATransUNet, channels: int = 1) -> tuple[int, ...]:
  """Shape (1, H, W, channels) of the smallest image the network takes: enough to initialise it."""
  side = 2 ** len(model.stages)
  return 1, side, side, channels


SPATIAL_DIMS = 2
TORCH_NAMES = (
  (r'^head$', 'seg_head.0'),
  (r'^van\.block(\d+)_(\d+)', r'van.block\1.\2'),
  (r'\.dwconv$', '.dwconv.dwconv'),
  (r'^decoder\.block(\d+)', r'decoder.block_list.\1'),
  (r'^(decoder\..*)\.conv$', r'\1.0'),
  (r'^(decoder\..*)\.bn$', r'\1.1'),
)
TORCH_CLASSES = ('seg_head.0.weight',)
TORCH_CHANNELS = ('van.patch_embed1.proj.weight',)  # three for a one-channel image, which is repeated
