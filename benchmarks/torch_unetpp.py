"""UNet++ in PyTorch, for comparison: written from its description, with the parameter names of the reference code."""

import torch
from torch import nn
from torch_unet import FEATURES, ConvBlock


class UNetPP(nn.Module):
  """Image (B, Cin, H, W) -> logits (B, num_classes, H, W); a list of them with deep supervision, shallow to deep."""

  def __init__(self, channels, num_classes, features=FEATURES, deep_supervision=False):
    super().__init__()
    self.deepest, self.deep_supervision = len(features) - 1, deep_supervision
    for level, width in enumerate(features):
      self.add_module(f'conv{level}_0', ConvBlock(features[level - 1] if level else channels, width))
      for step in range(1, self.deepest - level + 1):
        self.add_module(f'conv{level}_{step}', ConvBlock(step * width + features[level + 1], width))
    self.pool = nn.MaxPool2d(2)
    self.up = nn.Upsample(scale_factor=2, mode='bilinear', align_corners=True)
    self.heads = [f'final{step}' for step in range(1, self.deepest + 1)] if deep_supervision else ['final']
    for name in self.heads:
      self.add_module(name, nn.Conv2d(features[0], num_classes, 1))

  def forward(self, x):
    rows = [[] for _ in range(self.deepest + 1)]
    for last in range(self.deepest + 1):
      rows[last].append(getattr(self, f'conv{last}_0')(self.pool(rows[last - 1][0]) if last else x))
      for step in range(1, last + 1):
        level = last - step
        inputs = torch.cat([*rows[level], self.up(rows[level + 1][step - 1])], 1)
        rows[level].append(getattr(self, f'conv{level}_{step}')(inputs))
    if self.deep_supervision:
      return [getattr(self, name)(x) for name, x in zip(self.heads, rows[0][1:])]
    return self.final(rows[0][-1])


def make(num_classes, channels=1, image_size=None, deep_supervision=False):
  """UNet++ at the paper's widths; it takes images of any size."""
  return UNetPP(channels, num_classes, deep_supervision=deep_supervision)
