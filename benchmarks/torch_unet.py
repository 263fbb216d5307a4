"""The paper's UNet in PyTorch, for comparison: written from its description, with the authors' names."""

import torch
from torch import nn

FEATURES = (32, 64, 128, 256, 512)


class ConvBlock(nn.Module):
  def __init__(self, inputs, features):
    super().__init__()
    self.conv1, self.bn1 = nn.Conv2d(inputs, features, 3, padding=1), nn.BatchNorm2d(features)
    self.conv2, self.bn2 = nn.Conv2d(features, features, 3, padding=1), nn.BatchNorm2d(features)

  def forward(self, x):
    x = torch.relu(self.bn1(self.conv1(x)))
    return torch.relu(self.bn2(self.conv2(x)))


class UNet(nn.Module):
  """Image (B, Cin, H, W) -> logits (B, num_classes, H, W)."""

  def __init__(self, channels, num_classes, features=FEATURES):
    super().__init__()
    self.deepest = len(features) - 1
    for level, width in enumerate(features):
      self.add_module(f'conv{level}_0', ConvBlock(features[level - 1] if level else channels, width))
    for level in range(self.deepest):
      inputs = features[level] + features[level + 1]
      self.add_module(f'conv{level}_{self.deepest - level}', ConvBlock(inputs, features[level]))
    self.pool = nn.MaxPool2d(2)
    self.up = nn.Upsample(scale_factor=2, mode='bilinear', align_corners=True)
    self.seg_head = nn.Sequential(nn.Conv2d(features[0], num_classes, 1))

  def forward(self, x):
    skips = []
    for level in range(self.deepest):
      skips.append(getattr(self, f'conv{level}_0')(x))
      x = self.pool(skips[-1])
    x = getattr(self, f'conv{self.deepest}_0')(x)
    for level in reversed(range(self.deepest)):
      x = getattr(self, f'conv{level}_{self.deepest - level}')(torch.cat([skips[level], self.up(x)], 1))
    return self.seg_head(x)


def make(num_classes, channels=1, image_size=None):
  """UNet at the paper's widths; it takes images of any size."""
  return UNet(channels, num_classes)
