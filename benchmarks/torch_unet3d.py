"""nnU-Net's 3D U-Net, for comparison, as planned for large patches, without its coarser heads."""

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet


def make(num_classes, channels=1, image_size=None):
  """PlainConvUNet with six levels; any `image_size` divisible by 32."""
  return PlainConvUNet(
    channels,
    6,
    [32, 64, 128, 256, 320, 320],
    torch.nn.Conv3d,
    3,
    [1, 2, 2, 2, 2, 2],
    2,
    num_classes,
    2,
    conv_bias=True,
    norm_op=torch.nn.InstanceNorm3d,
    norm_op_kwargs={'eps': 1e-5, 'affine': True},
    nonlin=torch.nn.LeakyReLU,
    nonlin_kwargs={'inplace': True},
    deep_supervision=False,
  )
