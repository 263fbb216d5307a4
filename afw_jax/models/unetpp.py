"""UNet++, a UNet whose skips pass through nested convolution blocks.

Each block takes all earlier blocks of its level and the upsampled block from the level below. Published networks of
this name differ in norm, upsampling, depth and heads; this one has the blocks of `afw_jax.models.unet`: BatchNorm,
corner-aligned bilinear upsampling, concatenation [earlier blocks of the level, upsampled].

References:
  Zhou Z., Siddiquee M.M.R., Tajbakhsh N., Liang J. 2020. UNet++: Redesigning Skip Connections to Exploit Multiscale
    Features in Image Segmentation. arXiv:1912.05074.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from afw_jax.models.layers import options
from afw_jax.models.layers.conv import Conv
from afw_jax.models.layers.pooling import max_pool
from afw_jax.models.layers.upsample import upsample_2x
from afw_jax.models.unet import conv_blocks

SPATIAL_DIMS = 2
SIZES = {'full': (32, 64, 128, 256, 512), 'testing': (4, 8, 16)}


class UNetPP(nn.Module):
  """UNet++; the fields are the arguments of `make`.

  Block (i, j) is `conv{i}_{j}`: level i (at 1 / 2^i of the image size), j steps along it.
  """

  main_output: ClassVar[int] = -1

  num_classes: int
  features: Sequence[int] = SIZES['full']
  deep_supervision: bool = False
  repeat_to_rgb: bool = False
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  constrain: Callable = options.identity

  @property
  def head_weights(self) -> tuple[float, ...]:
    """Weights of the heads' losses in training: equal, since the published training takes the mean of these losses."""
    return (1.0,) * (len(self.features) - 1)

  @nn.compact
  def __call__(self, image, train: bool = False):
    deepest = len(self.features) - 1
    options.check_image('unetpp', image, (2**deepest,) * 2)
    x = image.astype(self.dtype)
    x = options.gray_to_rgb(x) if self.repeat_to_rgb else x
    block = conv_blocks(self, train)

    # rows[i] has the blocks (i, 0), (i, 1), ...; block (i, j) needs (i, 0..j-1) and (i + 1, j - 1): by diagonals.
    rows = [[] for _ in self.features]
    for last in range(deepest + 1):
      rows[last].append(block(last, 0, max_pool(rows[last - 1][0]) if last else x))
      for step in range(1, last + 1):
        level = last - step
        below = upsample_2x(rows[level + 1][step - 1], self.constrain)
        rows[level].append(block(level, step, jnp.concatenate([*rows[level], below], axis=-1)))

    def head(name, x):
      logits = Conv(self.num_classes, 1, dtype=options.logits_dtype(self.dtype), name=name)(x)
      return self.constrain(logits)

    if self.deep_supervision:
      return [head(f'head{step}', rows[0][step]) for step in range(1, deepest + 1)]
    return head('head', rows[0][-1])


def make(
  num_classes: int,
  *,
  deep_supervision: bool = False,
  size: str = 'full',
  features: Sequence[int] = (),
  repeat_to_rgb: bool = False,
  dtype=jnp.float32,
  remat: bool = False,
  constrain: Callable = options.identity,
) -> UNetPP:
  """Makes a UNet++: image (B, H, W, Cin) -> logits (B, H, W, num_classes), H and W divisible by 16 (five levels).

  Args:
    num_classes: number of classes, background included.
    deep_supervision: True for a list of full-size logits, one head on each of the blocks (0, 1), (0, 2), ..., from
      shallow to deep; the last is the prediction. At nine classes 9,164,484 parameters for three channels, without it
      9,163,593.
    size: 'full' (32, 64, 128, 256, 512 channels: four heads) or 'testing' (4, 8, 16: two).
    features: channels per level, instead of those of `size` (); any number of levels from two.
    repeat_to_rgb: whether a one-channel image is repeated to three channels, as the AFW-Dice authors do for their UNet.
    dtype: compute dtype; parameters, running statistics and logits are float32.
    remat: whether activations inside the blocks are recomputed in the backward pass: less memory, more time.
    constrain: function applied to the features after each block and to the logits, for sharding in space.

  Returns:
    The Linen module.

  Raises:
    InputError: an invalid option.
  """
  options.check_flags(deep_supervision=deep_supervision, repeat_to_rgb=repeat_to_rgb, remat=remat)
  options.check_choice('size', size, tuple(SIZES))
  features = options.channels_per_level(features, SIZES[size])
  return UNetPP(num_classes, features, deep_supervision, repeat_to_rgb, options.compute_dtype(dtype), remat, constrain)


def smallest_image(model: UNetPP, channels: int = 1) -> tuple[int, ...]:
  """Shape (1, H, W, channels) of the smallest image the network takes, enough to initialise it."""
  side = 2 ** (len(model.features) - 1)
  return 1, side, side, channels


TORCH_NAMES = ((r'^head', 'final'),)
TORCH_CLASSES = ('final.weight', 'final1.weight')
TORCH_CHANNELS = ('conv0_0.conv1.weight',)
