"""The 3D U-Net of nnU-Net (Isensee et al. 2021, its `PlainConvUNet`): two 3x3x3 convolutions with InstanceNorm and LeakyReLU
per level, halved by a strided convolution, doubled by a transposed one, [upsampled, skip] joined.

Its convolutions carry a bias that the InstanceNorm behind them takes out again whatever its value: left out.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from afw_jax.errors import InputError
from afw_jax.models.layers.conv import Conv, he_normal
from afw_jax.models.layers.norm import InstanceNorm
from afw_jax.models.layers.options import check_choice, check_image, compute_dtype, identity, logits_dtype
from afw_jax.models.layers.transposed import UpConv

SPATIAL_DIMS = 3
SIZES = {'full': (32, 64, 128, 256, 320, 320), 'testing': (4, 6, 8)}
SLOPE = 0.01  # of LeakyReLU below zero


def _starting(fan_in: int) -> dict:
  """nnU-Net's initialisation: He's of the weights, no biases."""
  return {'kernel_init': he_normal(fan_in, SLOPE), 'bias_init': nn.initializers.zeros}


class Level(nn.Module):
  """Twice convolution 3x3x3 (the first with a stride), InstanceNorm with scale and bias, LeakyReLU."""

  features: int
  stride: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    for i, stride in enumerate((self.stride, 1)):
      x = Conv(
        self.features,
        3,
        stride,
        padding=1,
        use_bias=False,
        **_starting(27 * x.shape[-1]),
        dtype=self.dtype,
        name=f'conv{i}',
      )(x)
      x = nn.leaky_relu(InstanceNorm(affine=True, name=f'norm{i}')(x), SLOPE)
    return x


class UNet3D(nn.Module):
  """See `make`. `encoder0` is at full size; `decoder0` is the deepest, as in nnU-Net."""

  main_output: ClassVar[int] = 0

  num_classes: int
  features: Sequence[int] = SIZES['full']
  deep_supervision: bool = True
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  constrain: Callable = identity

  @property
  def head_weights(self) -> tuple[float, ...]:
    """1, 1/2, 1/4, ... (nnU-Net makes one head more, at the coarsest level, and gives it the weight 0)."""
    return tuple(0.5**i for i in range(len(self.features) - 2))

  @nn.compact
  def __call__(self, image, train: bool = False):
    deepest = len(self.features) - 1
    check_image('unet3d', image, (2**deepest,) * SPATIAL_DIMS)
    level_of = nn.remat(Level) if self.remat else Level

    def level(name, features, x, stride=1):
      return self.constrain(level_of(features, stride, self.dtype, name=name)(x))

    x, skips = image.astype(self.dtype), []
    for i, features in enumerate(self.features):
      x = level(f'encoder{i}', features, x, 2 if i else 1)
      skips.append(x)
    decoded = [skips.pop()]
    for i, skip in enumerate(reversed(skips)):
      x = UpConv(skip.shape[-1], use_bias=True, **_starting(8 * skip.shape[-1]), dtype=self.dtype, name=f'up{i}')(
        decoded[-1]
      )
      decoded.append(level(f'decoder{i}', skip.shape[-1], jnp.concatenate([x, skip], axis=-1)))

    def head(i):
      x = decoded[i + 1]
      return self.constrain(
        Conv(self.num_classes, 1, **_starting(x.shape[-1]), dtype=logits_dtype(self.dtype), name=f'head{i}')(x)
      )

    return [head(i) for i in reversed(range(1, deepest))] if self.deep_supervision else head(deepest - 1)


def make(
  num_classes: int,
  *,
  size: str = 'full',
  features: Sequence[int] = (),
  deep_supervision: bool = True,
  dtype=jnp.float32,
  remat: bool = False,
  constrain: Callable = identity,
) -> UNet3D:
  """3D U-Net: image (B, D, H, W, Cin) -> logits (B, D, H, W, num_classes), sides divisible by 32 (six levels).

  Args:
    num_classes: number of classes, background included.
    size: 'full' (32, 64, 128, 256, 320, 320 channels, nnU-Net's for large patches) or 'testing' (4, 6, 8).
    features: channels per level, instead of those of `size` (); any number of levels from three.
    deep_supervision: True: a list of logits at full size, 1/2, 1/4 and so on, all levels of the decoder but the coarsest;
      the first is the answer. False: the first alone.
    dtype: compute dtype; parameters, the norms' statistics and logits are float32.
    remat: keep no level's inner activations for the backward pass but compute them again: less memory, more time.
    constrain: applied to the features after each level and to the logits.

  Returns:
    The Linen module.

  Raises:
    InputError: a value that cannot work.
  """
  check_choice('size', size, tuple(SIZES))
  for option, value in (('deep_supervision', deep_supervision), ('remat', remat)):
    check_choice(option, value, (True, False))
  features = tuple(features or SIZES[size])
  if len(features) < 3 or not all(isinstance(f, int) and f > 0 for f in features):
    raise InputError(
      f'model option features={features!r}',
      'is not a list of channels per level',
      f'give three or more positive integers, as {SIZES["full"]}',
    )
  return UNet3D(num_classes, features, deep_supervision, compute_dtype(dtype), remat, constrain)


def smallest_image(model: UNet3D, channels: int = 1) -> tuple[int, ...]:
  """Shape (1, D, H, W, channels) of the smallest image the network takes."""
  return (1, *(2 ** (len(model.features) - 1),) * SPATIAL_DIMS, channels)


TORCH_NAMES = (
  (r'^encoder(\d+)', r'encoder.stages.\1.0.convs'),
  (r'^decoder(\d+)', r'decoder.stages.\1.convs'),
  (r'\.conv(\d)$', r'.\1.conv'),
  (r'\.norm(\d)$', r'.\1.norm'),
  (r'^up(\d+)$', r'decoder.transpconvs.\1'),
  (r'^head(\d+)$', r'decoder.seg_layers.\1'),
)
TORCH_CLASSES = ('decoder.seg_layers.1.weight',)
TORCH_CHANNELS = ('encoder.stages.0.0.convs.0.conv.weight',)
# Dead biases; heads, which nnU-Net makes for every level, used or not; and second names of the same parameters.
TORCH_IGNORED = (r'\.convs\.\d+\.conv\.bias$', r'^decoder\.seg_layers\.', r'\.all_modules\.', r'^decoder\.encoder\.')
