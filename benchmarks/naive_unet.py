"""The same UNet as one would first write it in Flax: nn.BatchNorm, nn.max_pool, and upsampling by gathers."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

FEATURES = (32, 64, 128, 256, 512)


class ConvBlock(nn.Module):
  features: int

  @nn.compact
  def __call__(self, x, train):
    for i in (1, 2):
      x = nn.Conv(self.features, (3, 3), padding=1, name=f'conv{i}')(x)
      x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f'bn{i}')(x))
    return x


class UNet(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train=False):
    skips, deepest = [], len(FEATURES) - 1
    for level in range(deepest):
      skips.append(ConvBlock(FEATURES[level], name=f'conv{level}_0')(x, train))
      x = nn.max_pool(skips[-1], (2, 2), (2, 2))
    x = ConvBlock(FEATURES[-1], name=f'conv{deepest}_0')(x, train)
    for level in reversed(range(deepest)):
      x = jnp.concatenate([skips[level], upsample(upsample(x, 1), 2)], -1)
      x = ConvBlock(FEATURES[level], name=f'conv{level}_{deepest - level}')(x, train)
    return nn.Conv(self.num_classes, (1, 1), name='head')(x)


def upsample(x, axis):
  n = x.shape[axis]
  at = np.arange(2 * n) * (n - 1) / (2 * n - 1)
  low = np.floor(at).astype(int)
  part = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
  return jnp.take(x, low, axis) * (1 - part) + jnp.take(x, np.minimum(low + 1, n - 1), axis) * part
