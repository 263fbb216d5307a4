"""The 3D U-Net of nnU-Net, which is called `PlainConvUNet` there.

Each level is twice convolution 3x3x3, InstanceNorm, LeakyReLU; levels are joined by a strided convolution in the
encoder and by a transposed one in the decoder, followed by the concatenation [upsampled, skip]. nnU-Net's convolutions
have a bias, which the InstanceNorm after them removes again whatever its value; it is left out here.

References:
  Isensee F., Jaeger P.F., Kohl S.A.A., Petersen J., Maier-Hein K.H. 2021. nnU-Net: a self-configuring method for deep
    learning-based biomedical image segmentation. doi 10.1038/s41592-020-01008-z.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from afw_jax.models.layers import options
from afw_jax.models.layers.conv import Conv, he_normal
from afw_jax.models.layers.norm import InstanceNorm
from afw_jax.models.layers.transposed import UpConv

SPATIAL_DIMS = 3
SIZES = {'full': (32, 64, 128, 256, 320, 320), 'testing': (4, 6, 8)}
SLOPE = 0.01  # negative slope of LeakyReLU


def _initialisers(fan_in: int) -> dict:
  """nnU-Net's initialisation: He et al. for the weights, zero for the biases."""
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
        **_initialisers(27 * x.shape[-1]),
        dtype=self.dtype,
        name=f'conv{i}',
      )(x)
      x = nn.leaky_relu(InstanceNorm(affine=True, name=f'norm{i}')(x), SLOPE)
    return x


class UNet3D(nn.Module):
  """3D U-Net; the fields are the arguments of `make`.

  As in nnU-Net `encoder0` is the level at full size, and `decoder0` the deepest.
  """

  main_output: ClassVar[int] = 0

  num_classes: int
  features: Sequence[int] = SIZES['full']
  deep_supervision: bool = True
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  constrain: Callable = options.identity

  @property
  def head_weights(self) -> tuple[float, ...]:
    """Weights of the heads' losses: 1, 1/2, 1/4, ... (nnU-Net has one more, of weight 0, at the coarsest level)."""
    return tuple(0.5**i for i in range(len(self.features) - 2))

  @nn.compact
  def __call__(self, image, train: bool = False):
    deepest = len(self.features) - 1
    options.check_image('unet3d', image, (2**deepest,) * SPATIAL_DIMS)
    level_of = nn.remat(Level) if self.remat else Level

    def level(name, features, x, stride=1):
      return self.constrain(level_of(features, stride, self.dtype, name=name)(x))

    x, skips = image.astype(self.dtype), []
    for i, features in enumerate(self.features):
      x = level(f'encoder{i}', features, x, 2 if i else 1)
      skips.append(x)
    decoded = [skips.pop()]
    for i, skip in enumerate(reversed(skips)):
      x = UpConv(skip.shape[-1], use_bias=True, **_initialisers(8 * skip.shape[-1]), dtype=self.dtype, name=f'up{i}')(
        decoded[-1]
      )
      decoded.append(level(f'decoder{i}', skip.shape[-1], jnp.concatenate([x, skip], axis=-1)))

    def head(i):
      x = decoded[i + 1]
      return self.constrain(
        Conv(
          self.num_classes, 1, **_initialisers(x.shape[-1]), dtype=options.logits_dtype(self.dtype), name=f'head{i}'
        )(x)
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
  constrain: Callable = options.identity,
) -> UNet3D:
  """Makes a 3D U-Net: image (B, D, H, W, Cin) -> logits (B, D, H, W, num_classes), sides divisible by 32 (six levels).

  Args:
    num_classes: number of classes, background included.
    size: 'full' (32, 64, 128, 256, 320, 320 channels, nnU-Net's for large patches) or 'testing' (4, 6, 8).
    features: channels per level, instead of those of `size` (); any number of levels from three.
    deep_supervision: True for a list of logits at full size, 1/2, 1/4 and so on, one for each level of the decoder but
      the coarsest; the first is the prediction. False for the first alone.
    dtype: compute dtype; parameters, the norms' statistics and logits are float32.
    remat: whether activations inside the levels are recomputed in the backward pass: less memory, more time.
    constrain: function applied to the features after each level and to the logits, for sharding in space.

  Returns:
    The Linen module.

  Raises:
    InputError: an invalid option.
  """
  options.check_choice('size', size, tuple(SIZES))
  options.check_flags(deep_supervision=deep_supervision, remat=remat)
  features = options.channels_per_level(features, SIZES[size], least=3)
  return UNet3D(num_classes, features, deep_supervision, options.compute_dtype(dtype), remat, constrain)


def smallest_image(model: UNet3D, channels: int = 1) -> tuple[int, ...]:
  """Shape (1, D, H, W, channels) of the smallest image the network takes, enough to initialise it."""
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
# Biases without effect; heads, which nnU-Net makes for every level, used or not; second names of the same parameters.
TORCH_IGNORED = (r'\.convs\.\d+\.conv\.bias$', r'^decoder\.seg_layers\.', r'\.all_modules\.', r'^decoder\.encoder\.')
