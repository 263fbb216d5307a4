"""VATransUNet in PyTorch, for comparison: written from its description, with the names of the authors' code."""

import torch
from torch import nn
from torch.nn import functional

# channels, blocks, MLP ratio of the encoder's stages; channels of the decoder's blocks
STAGES = ((32, 3, 8), (64, 3, 8), (160, 5, 4), (256, 2, 4))
DEEPEST, WIDTHS = 512, (256, 128, 64, 16)


def conv(inputs, outputs, k=1, dilation=1, depthwise=False, stride=1):
  layer = nn.Conv2d(inputs, outputs, k, stride, dilation * (k - 1) // 2, dilation, outputs if depthwise else 1)
  nn.init.normal_(layer.weight, 0, (2 / (k * k * (1 if depthwise else outputs))) ** 0.5)
  nn.init.zeros_(layer.bias)
  return layer


class LargeKernelAttention(nn.Module):
  def __init__(self, c):
    super().__init__()
    self.conv0, self.conv_spatial = conv(c, c, 5, depthwise=True), conv(c, c, 7, dilation=3, depthwise=True)
    self.conv1 = conv(c, c)

  def forward(self, x):
    return x * self.conv1(self.conv_spatial(self.conv0(x)))


class Attention(nn.Module):
  def __init__(self, c):
    super().__init__()
    self.proj_1, self.spatial_gating_unit, self.proj_2 = conv(c, c), LargeKernelAttention(c), conv(c, c)

  def forward(self, x):
    return x + self.proj_2(self.spatial_gating_unit(functional.gelu(self.proj_1(x))))


class DepthwiseConv(nn.Module):
  def __init__(self, c):
    super().__init__()
    self.dwconv = conv(c, c, 3, depthwise=True)

  def forward(self, x):
    return self.dwconv(x)


class Mlp(nn.Module):
  def __init__(self, c, hidden):
    super().__init__()
    self.fc1, self.dwconv, self.fc2 = conv(c, hidden), DepthwiseConv(hidden), conv(hidden, c)

  def forward(self, x):
    return self.fc2(functional.gelu(self.dwconv(self.fc1(x))))


class Block(nn.Module):
  def __init__(self, c, ratio, drop_rate):
    super().__init__()
    self.drop_rate = drop_rate
    self.norm1, self.attn = nn.BatchNorm2d(c), Attention(c)
    self.norm2, self.mlp = nn.BatchNorm2d(c), Mlp(c, ratio * c)
    self.layer_scale_1, self.layer_scale_2 = (nn.Parameter(torch.full((c,), 1e-2)) for _ in range(2))

  def drop_path(self, x):
    if not self.training or not self.drop_rate:
      return x
    return x * x.new_empty(len(x), 1, 1, 1).bernoulli_(1 - self.drop_rate).div_(1 - self.drop_rate)

  def forward(self, x):
    x = x + self.drop_path(self.layer_scale_1[:, None, None] * self.attn(self.norm1(x)))
    return x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
  def __init__(self, inputs, c, k):
    super().__init__()
    self.proj, self.norm = conv(inputs, c, k, stride=2), nn.BatchNorm2d(c)

  def forward(self, x):
    return self.norm(self.proj(x))


class VAN(nn.Module):
  def __init__(self, drop_path_rate):
    super().__init__()
    rates = iter(torch.linspace(0, drop_path_rate, sum(depth for _, depth, _ in STAGES)).tolist())
    inputs = 3
    for i, (c, depth, ratio) in enumerate(STAGES, 1):
      self.add_module(f'patch_embed{i}', PatchEmbed(inputs, c, 7 if i == 1 else 3))
      self.add_module(f'block{i}', nn.Sequential(*(Block(c, ratio, next(rates)) for _ in range(depth))))
      self.add_module(f'norm{i}', nn.LayerNorm(c, eps=1e-6))
      inputs = c

  def forward(self, x):
    maps = []
    for i in range(1, len(STAGES) + 1):
      x = getattr(self, f'block{i}')(getattr(self, f'patch_embed{i}')(x))
      x = getattr(self, f'norm{i}')(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
      maps.append(x)
    return maps


def conv_norm_relu(inputs, outputs):
  return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class DecoderBlock(nn.Module):
  def __init__(self, inputs, outputs, upsample=True):
    super().__init__()
    self.upsample = upsample
    self.conv1, self.conv2 = conv_norm_relu(inputs, outputs), conv_norm_relu(outputs, outputs)

  def forward(self, x, skip=None):
    if self.upsample:
      x = functional.interpolate(x, scale_factor=2, mode='bilinear', align_corners=True)
    return self.conv2(self.conv1(x if skip is None else torch.cat([x, skip], 1)))


class Decoder(nn.Module):
  def __init__(self):
    super().__init__()
    skips = [c for c, _, _ in reversed(STAGES)]
    self.conv_more = conv_norm_relu(skips[0], DEEPEST)
    self.block_list = nn.ModuleList(
      DecoderBlock(x + skip, width, i > 0) for i, (x, skip, width) in enumerate(zip((DEEPEST, *WIDTHS), skips, WIDTHS))
    )
    self.fin_conv, self.fin_conv2 = DecoderBlock(WIDTHS[-1], WIDTHS[-1]), conv_norm_relu(WIDTHS[-1], WIDTHS[-1])

  def forward(self, maps):
    x = self.conv_more(maps[-1])
    for block, skip in zip(self.block_list, reversed(maps)):
      x = block(x, skip)
    return self.fin_conv2(self.fin_conv(x))


class VATransUNet(nn.Module):
  """Image (B, 1 or 3, H, W) -> logits (B, num_classes, H, W)."""

  def __init__(self, num_classes, drop_path_rate=0.1):
    super().__init__()
    self.van, self.decoder = VAN(drop_path_rate), Decoder()
    self.seg_head = nn.Sequential(nn.Conv2d(WIDTHS[-1], num_classes, 3, padding=1))

  def forward(self, x):
    return self.seg_head(self.decoder(self.van(x.repeat(1, 3, 1, 1) if x.shape[1] == 1 else x)))


def make(num_classes, channels=1, image_size=None, drop_path_rate=0.0):
  """VATransUNet, nine classes giving 8,189,209 parameters; its authors train with a drop path rate of 0.1."""
  return VATransUNet(num_classes, drop_path_rate)
