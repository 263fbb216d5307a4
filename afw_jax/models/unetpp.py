"""UNet++ (Zhou et al. 2019): a UNet whose skips pass through a nest of convolution blocks, each of which sees all blocks
before it on its level and the upsampled one from the level below.

Of the networks of this name (they differ in norm, upsampling, depth and heads) this is the one with the blocks of the
paper's UNet: BatchNorm, corner-aligned bilinear upsampling, concatenation [earlier blocks of the level, upsampled].
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from afw_jax.errors import InputError
from afw_jax.models.layers.conv import Conv
from afw_jax.models.layers.options import check_choice, check_image, compute_dtype, identity, logits_dtype
from afw_jax.models.layers.pooling import max_pool
from afw_jax.models.layers.upsample import upsample_2x
from afw_jax.models.unet import ConvBlock

SPATIAL_DIMS = 2
SIZES = {'full': (32, 64, 128, 256, 512), 'testing': (4, 8, 16)}


class UNetPP(nn.Module):
  """See `make`. Block (i, j) is `conv{i}_{j}`: level i (halved i times), j steps along it."""

  main_output: ClassVar[int] = -1

  num_classes: int
  features: Sequence[int] = SIZES['full']
  deep_supervision: bool = False
  repeat_to_rgb: bool = False
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  constrain: Callable = identity

  @property
  def head_weights(self) -> tuple[float, ...]:
    """Weights of the heads' losses in training: equal, as the published training takes the mean of the heads' losses."""
    return (1.0,) * (len(self.features) - 1)

  @nn.compact
  def __call__(self, image, train: bool = False):
    deepest = len(self.features) - 1
    check_image('unetpp', image, (2**deepest,) * 2)
    x = image.astype(self.dtype)
    if self.repeat_to_rgb and x.shape[-1] == 1:
      x = jnp.repeat(x, 3, axis=-1)

    block_of = nn.remat(ConvBlock, static_argnums=(2,)) if self.remat else ConvBlock

    def block(level, step, x):
      x = block_of(self.features[level], dtype=self.dtype, name=f'conv{level}_{step}')(x, train)
      return self.constrain(x)

    # rows[i] holds blocks (i, 0), (i, 1), ...; block (i, j) needs (i, 0..j-1) and (i + 1, j - 1): diagonal by diagonal.
    rows = [[] for _ in self.features]
    for last in range(deepest + 1):
      rows[last].append(block(last, 0, max_pool(rows[last - 1][0]) if last else x))
      for step in range(1, last + 1):
        level = last - step
        below = upsample_2x(rows[level + 1][step - 1], self.constrain)
        rows[level].append(block(level, step, jnp.concatenate([*rows[level], below], axis=-1)))

    def head(name, x):
      logits = Conv(self.num_classes, 1, dtype=logits_dtype(self.dtype), name=name)(x)
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
  constrain: Callable = identity,
) -> UNetPP:
  """UNet++: (B, H, W, Cin) -> float32 logits (B, H, W, num_classes); H and W divisible by 16 (2^(levels - 1)).

  Args:
    num_classes: number of classes, background included.
    deep_supervision: True: a list of full-size logits, one head on each of the blocks (0, 1), (0, 2), ..., shallow to
      deep; the last is the answer. At nine classes 9,164,484 parameters for three channels, without it 9,163,593.
    size: 'full' (32, 64, 128, 256, 512 channels: four heads) or 'testing' (4, 8, 16: two).
    features: channels per level, instead of those of `size` (); any number of levels from two.
    repeat_to_rgb: repeat a one-channel image to three channels, as the paper's authors do for their UNet.
    dtype: compute dtype; parameters, running statistics and logits are float32.
    remat: compute the blocks again in the backward pass instead of keeping what is inside them.
    constrain: applied to the features after each block, and to the logits.

  Returns:
    The Linen module.

  Raises:
    InputError: a value that cannot work.
  """
  for option, value in (('deep_supervision', deep_supervision), ('repeat_to_rgb', repeat_to_rgb), ('remat', remat)):
    check_choice(option, value, (True, False))
  check_choice('size', size, tuple(SIZES))
  features = tuple(features or SIZES[size])
  if len(features) < 2 or not all(isinstance(f, int) and f > 0 for f in features):
    raise InputError(
      f'model option features={features!r}',
      'is not a list of channels per level',
      f'give two or more positive integers, as {SIZES["full"]}',
    )
  return UNetPP(num_classes, features, deep_supervision, repeat_to_rgb, compute_dtype(dtype), remat, constrain)


def smallest_image(model: UNetPP, channels: int = 1) -> tuple[int, ...]:
  """Shape (1, H, W, channels) of the smallest image the network takes: enough to initialise it."""
  side = 2 ** (len(model.features) - 1)
  return 1, side, side, channels


TORCH_NAMES = ((r'^head', 'final'),)
TORCH_CLASSES = ('final.weight', 'final1.weight')
TORCH_CHANNELS = ('conv0_0.conv1.weight',)
