"""UNet (Ronneberger et al. 2015) in the form of the paper's section 2.1: two 3x3 convolutions with BatchNorm per block,
max pooling, corner-aligned bilinear upsampling without a convolution, concatenation [skip, upsampled].
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from afw_jax.errors import InputError
from afw_jax.models.layers.conv import Conv
from afw_jax.models.layers.norm import BatchNorm
from afw_jax.models.layers.options import check_choice, check_image, compute_dtype, identity, logits_dtype
from afw_jax.models.layers.pooling import max_pool
from afw_jax.models.layers.upsample import upsample_2x

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


class UNet(nn.Module):
  """See `make`. Block (i, j) is `conv{i}_{j}`: level i (halved i times), j steps along the decoder."""

  num_classes: int
  features: Sequence[int] = SIZES['full']
  repeat_to_rgb: bool = False
  head_kernel: int = 1
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  constrain: Callable = identity

  @nn.compact
  def __call__(self, image, train: bool = False):
    deepest = len(self.features) - 1
    check_image('unet', image, (2**deepest,) * 2)
    x = image.astype(self.dtype)
    if self.repeat_to_rgb and x.shape[-1] == 1:
      x = jnp.repeat(x, 3, axis=-1)

    block_of = nn.remat(ConvBlock, static_argnums=(2,)) if self.remat else ConvBlock

    def block(level, step, x):
      x = block_of(self.features[level], dtype=self.dtype, name=f'conv{level}_{step}')(x, train)
      return self.constrain(x)

    skips = []
    for level in range(deepest):
      skips.append(block(level, 0, x))
      x = max_pool(skips[-1])
    x = block(deepest, 0, x)
    for level in reversed(range(deepest)):
      x = block(level, deepest - level, jnp.concatenate([skips[level], upsample_2x(x, self.constrain)], axis=-1))
    logits = Conv(self.num_classes, self.head_kernel, dtype=logits_dtype(self.dtype), name='head')(x)
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
  constrain: Callable = identity,
) -> UNet:
  """UNet: image (B, H, W, Cin) -> logits (B, H, W, num_classes), H and W divisible by 16 (five levels).

  Args:
    num_classes: number of classes, background included.
    recipe: 'paper', or 'released': the authors' code, which repeats a one-channel image to three channels.
      At nine classes 7,852,233 parameters for one channel, 7,852,809 for three.
    size: 'full' (32, 64, 128, 256, 512 channels) or 'testing' (4, 8, 16, 32, 64).
    features: channels per level, instead of those of `size` (); any number of levels from two.
    head_kernel: 1, or 3 as in the variant of the authors' code with a 3x3 head (2,304 parameters more).
    dtype: compute dtype; parameters, running statistics and logits are float32.
    remat: keep no block's inner activations for the backward pass but compute them again: less memory, more time.
    constrain: applied to the features after each block.

  Returns:
    The Linen module.

  Raises:
    InputError: a value that cannot work.
  """
  check_choice('recipe', recipe, ('paper', 'released'))
  check_choice('size', size, tuple(SIZES))
  check_choice('head_kernel', head_kernel, (1, 3))
  features = tuple(features or SIZES[size])
  if len(features) < 2 or not all(isinstance(f, int) and f > 0 for f in features):
    raise InputError(
      f'model option features={features!r}',
      'is not a list of channels per level',
      f'give two or more positive integers, as {SIZES["full"]}',
    )
  return UNet(num_classes, features, recipe == 'released', head_kernel, compute_dtype(dtype), remat, constrain)


def smallest_image(model: UNet, channels: int = 1) -> tuple[int, ...]:
  """Shape (1, H, W, channels) of the smallest image the network takes: enough to initialise it."""
  side = 2 ** (len(model.features) - 1)
  return 1, side, side, channels


SPATIAL_DIMS = 2
TORCH_NAMES = ((r'^head$', 'seg_head.0'),)
TORCH_CLASSES = ('seg_head.0.weight',)
TORCH_CHANNELS = ('conv0_0.conv1.weight',)
