"""MONAI's UNETR, for comparison, as its authors train it: perceptron patch embedding and residual blocks."""

from monai.networks.nets import UNETR


def make(num_classes, channels=1, image_size=(96, 96, 96), **options):
  """MONAI's UNETR for volumes of exactly this size; `options` are those of MONAI, such as feature_size or qkv_bias."""
  return UNETR(channels, num_classes, image_size, **{'proj_type': 'perceptron', **options})
