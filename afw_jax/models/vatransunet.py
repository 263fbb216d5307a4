"""VATransUNet: a VAN-B0 encoder (visual attention network) with stride 2 in every stage, and TransUNet's decoder.

As in the authors' code. The encoder is `afw_jax.models.layers.van`. The decoder has a 3x3 convolution to 512 channels,
four blocks that concatenate [features, skip] and convolve twice (the first without upsampling), one more block at full
size, and a last convolution.

References:
  Jiang T., Xu T., Li X. 2022. VA-TransUNet: A U-shaped Medical Image Segmentation Network with Visual Attention. ICCPR,
    doi 10.1145/3581807.3581826.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from afw_jax.models.layers import options
from afw_jax.models.layers.conv import Conv
from afw_jax.models.layers.decoder import ConvBnRelu, DecoderBlock
from afw_jax.models.layers.van import VAN, VAN_B0, Stage

SPATIAL_DIMS = 2
# stages of the encoder; channels of the decoder: at the deepest level, then of its blocks from deep to shallow
SIZES = {
  'full': (VAN_B0, (512, 256, 128, 64, 16)),
  'testing': ((Stage(4, 1, 2), Stage(4, 1, 2), Stage(8, 1, 2), Stage(8, 1, 2)), (16, 8, 8, 4, 4)),
}


class Decoder(nn.Module):
  """Decoder: feature maps of the encoder, from shallow to deep -> features at twice the size of the shallowest."""

  features: Sequence[int]
  dtype: jnp.dtype = jnp.float32
  constrain: Callable = options.identity

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
  """VATransUNet; the fields are the arguments of `make`, and the numbers of `SIZES`."""

  num_classes: int
  stages: Sequence[Stage]
  decoder_features: Sequence[int]
  drop_path_rate: float = 0.1
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  constrain: Callable = options.identity

  @nn.compact
  def __call__(self, image, train: bool = False):
    options.check_image('vatransunet', image, (2 ** len(self.stages),) * 2)
    x = options.gray_to_rgb(image.astype(self.dtype))
    maps = VAN(self.stages, self.drop_path_rate, self.dtype, self.remat, self.constrain, name='van')(x, train=train)
    x = Decoder(self.decoder_features, self.dtype, self.constrain, name='decoder')(maps, train=train)
    logits = Conv(self.num_classes, 3, dtype=options.logits_dtype(self.dtype), name='head')(x)
    return self.constrain(logits)


def make(
  num_classes: int,
  *,
  size: str = 'full',
  drop_path_rate: float = 0.1,
  dtype=jnp.float32,
  remat: bool = False,
  constrain: Callable = options.identity,
) -> VATransUNet:
  """Makes a VATransUNet: image (B, H, W, Cin) -> logits (B, H, W, num_classes), H and W divisible by 16.

  A one-channel image is repeated to three channels, for which the pretrained encoder was trained. At nine classes
  8,189,209 parameters, 3,848,800 of them in the encoder.

  Args:
    num_classes: number of classes, background included.
    size: 'full' (VAN-B0) or 'testing' (one block per stage, 4 to 8 channels).
    drop_path_rate: stochastic depth: probability, in [0, 1), that a branch of the encoder's last block is dropped for a
      sample in training; it grows linearly from zero at the first block.
    dtype: compute dtype; parameters, running statistics and logits are float32.
    remat: whether activations inside the blocks of the encoder are recomputed in the backward pass.
    constrain: function applied to the features after each block, for sharding in space.

  Returns:
    The Linen module; in training it needs the rng 'dropout' unless drop_path_rate is 0.

  Raises:
    InputError: an invalid option.
  """
  options.check_choice('size', size, tuple(SIZES))
  options.check_rates(drop_path_rate=drop_path_rate)
  options.check_flags(remat=remat)
  stages, decoder_features = SIZES[size]
  return VATransUNet(
    num_classes, stages, decoder_features, drop_path_rate, options.compute_dtype(dtype), remat, constrain
  )


def smallest_image(model: VATransUNet, channels: int = 1) -> tuple[int, ...]:
  """Shape (1, H, W, channels) of the smallest image the network takes, enough to initialise it."""
  side = 2 ** len(model.stages)
  return 1, side, side, channels


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
