"""UNet as in section 2.1 of the AFW-Dice paper: five levels of two 3x3 convolutions, bilinear upsampling, skips.

Each block is twice convolution 3x3, BatchNorm, ReLU; levels are joined by max pooling and by corner-aligned bilinear
upsampling without a convolution, followed by the concatenation [skip, upsampled].

References:
  Ronneberger O., Fischer P., Brox T. 2015. U-Net: Convolutional Networks for Biomedical Image Segmentation.
    arXiv:1505.04597.
  Guo Y., Lin J., Pan J., Jiang T. 2024. Segmentation of Abdominal CT images with Asymmetric Focal Weighted Dice loss.
    doi 10.20169/j.issn.2095-2163.240703.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from afw_jax.models.layers import options
from afw_jax.models.layers.conv import Conv
from afw_jax.models.layers.norm import BatchNorm
from afw_jax.models.layers.pooling import max_pool
from afw_jax.models.layers.upsample import upsample_2x

SPATIAL_DIMS = 2
SIZES = {'full': (32, 64, 128, 256, 512), 'testing': (4, 8, 16, 32, 64)}


class ConvBlock(nn.Module):
  """Twice convolution 3x3 (with bias), BatchNorm, ReLU."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool = False):
    for i in (1, 2):
      x = Conv(self.features, 3, bias_gradient=not train, dtype=self.dtype, name=f'conv{i}')(x)
      x = nn.relu(BatchNorm(name=f'bn{i}')(x, train=train))
    return x


def conv_blocks(net: nn.Module, train: bool) -> Callable:
  """block(level, step, x) of a UNet or UNet++: its ConvBlock `conv{level}_{step}`, applied and constrained.

  Call it inside the compact `__call__` of `net`.

  Args:
    net: the network, with the fields features, dtype, remat and constrain.
    train: whether BatchNorm uses the statistics of the batch.
  """
  block_of = nn.remat(ConvBlock, static_argnums=(2,)) if net.remat else ConvBlock

  def block(level, step, x):
    x = block_of(net.features[level], dtype=net.dtype, name=f'conv{level}_{step}')(x, train)
    return net.constrain(x)

  return block


class UNet(nn.Module):
  """UNet; the fields are the arguments of `make`.

  Block (i, j) is `conv{i}_{j}`: level i (at 1 / 2^i of the image size), j steps along the decoder.
  """

  num_classes: int
  features: Sequence[int] = SIZES['full']
  repeat_to_rgb: bool = False
  head_kernel: int = 1
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  constrain: Callable = options.identity

  @nn.compact
  def __call__(self, image, train: bool = False):
    deepest = len(self.features) - 1
    options.check_image('unet', image, (2**deepest,) * 2)
    x = image.astype(self.dtype)
    x = options.gray_to_rgb(x) if self.repeat_to_rgb else x
    block = conv_blocks(self, train)

    skips = []
    for level in range(deepest):
      skips.append(block(level, 0, x))
      x = max_pool(skips[-1])
    x = block(deepest, 0, x)
    for level in reversed(range(deepest)):
      x = block(level, deepest - level, jnp.concatenate([skips[level], upsample_2x(x, self.constrain)], axis=-1))
    logits = Conv(self.num_classes, self.head_kernel, dtype=options.logits_dtype(self.dtype), name='head')(x)
    return self.constrain(logits)


def make(
  num_classes: int,
  *,
  recipe: str = 'paper',
  size: str = 'full',
  features: Sequence[int] = (),
  head_kernel: int = 1,
  dtype=jnp.float32,
  remat: bool = False,
  constrain: Callable = options.identity,
) -> UNet:
  """Makes a UNet: image (B, H, W, Cin) -> logits (B, H, W, num_classes), H and W divisible by 16 (five levels).

  Args:
    num_classes: number of classes, background included.
    recipe: 'paper', or 'released' for the authors' code, which repeats a one-channel image to three channels.
      At nine classes 7,852,233 parameters for one channel, 7,852,809 for three.
    size: 'full' (32, 64, 128, 256, 512 channels) or 'testing' (4, 8, 16, 32, 64).
    features: channels per level, instead of those of `size` (); any number of levels from two.
    head_kernel: 1, or 3 as in the variant of the authors' code with a 3x3 head (2,304 parameters more).
    dtype: compute dtype; parameters, running statistics and logits are float32.
    remat: whether activations inside the blocks are recomputed in the backward pass: less memory, more time.
    constrain: function applied to the features after each block, for sharding in space.

  Returns:
    The Linen module.

  Raises:
    InputError: an invalid option.
  """
  options.check_choice('recipe', recipe, ('paper', 'released'))
  options.check_choice('size', size, tuple(SIZES))
  options.check_choice('head_kernel', head_kernel, (1, 3))
  options.check_flags(remat=remat)
  features = options.channels_per_level(features, SIZES[size])
  return UNet(num_classes, features, recipe == 'released', head_kernel, options.compute_dtype(dtype), remat, constrain)


def smallest_image(model: UNet, channels: int = 1) -> tuple[int, ...]:
  """Shape (1, H, W, channels) of the smallest image the network takes, enough to initialise it."""
  side = 2 ** (len(model.features) - 1)
  return 1, side, side, channels


TORCH_NAMES = ((r'^head$', 'seg_head.0'),)
TORCH_CLASSES = ('seg_head.0.weight',)
TORCH_CHANNELS = ('conv0_0.conv1.weight',)
