"""UNETR++ (Synapse) in PyTorch, for comparison: written from its description, with the names of the authors' code."""

import torch
from torch import nn
from torch.nn import functional as nnf

HEADS = 4


class Wrapped(nn.Module):
  """A convolution under the released code's extra name `conv`."""

  def __init__(self, conv):
    super().__init__()
    self.conv = conv

  def forward(self, x):
    return self.conv(x)


def conv(inputs, features, kernel, stride=1):
  padding = (kernel - 1) // 2 if stride == 1 else 0
  return Wrapped(nn.Conv3d(inputs, features, kernel, stride, padding, bias=False))


class ResBlock(nn.Module):
  def __init__(self, inputs, features, norm):
    super().__init__()
    self.conv1, self.conv2 = conv(inputs, features, 3), conv(features, features, 3)
    self.norm1, self.norm2 = norm(features), norm(features)
    self.widens = inputs != features
    if self.widens:
      self.conv3, self.norm3 = conv(inputs, features, 1), norm(features)

  def forward(self, x):
    y = nnf.leaky_relu(self.norm1(self.conv1(x)), 0.01)
    y = self.norm2(self.conv2(y))
    return nnf.leaky_relu(y + (self.norm3(self.conv3(x)) if self.widens else x), 0.01)


class EPA(nn.Module):
  def __init__(self, tokens, width, projected, dropout):
    super().__init__()
    self.temperature, self.temperature2 = (nn.Parameter(torch.ones(HEADS, 1, 1)) for _ in range(2))
    self.qkvv = nn.Linear(width, 4 * width, bias=False)
    self.E = self.F = nn.Linear(tokens, projected)
    self.out_proj, self.out_proj2 = nn.Linear(width, width // 2), nn.Linear(width, width // 2)
    self.drop = nn.Dropout(dropout)

  def forward(self, x):
    batch, tokens, width = x.shape
    q, k, v_channel, v_spatial = self.qkvv(x).view(batch, tokens, 4, HEADS, -1).permute(2, 0, 3, 4, 1)
    k_projected, v_projected = self.E(k), self.F(v_spatial)
    q, k = nnf.normalize(q, dim=-1), nnf.normalize(k, dim=-1)
    channel = self.drop((q @ k.transpose(-2, -1) * self.temperature).softmax(-1)) @ v_channel
    channel = channel.permute(0, 3, 1, 2).reshape(batch, tokens, width)
    spatial = self.drop((q.transpose(-2, -1) @ k_projected * self.temperature2).softmax(-1))
    spatial = spatial @ v_projected.transpose(-2, -1)
    spatial = spatial.permute(0, 3, 1, 2).reshape(
      batch, tokens, width
    )  # the released code's mix of tokens and channels
    return torch.cat([self.out_proj(spatial), self.out_proj2(channel)], -1)


class Block(nn.Module):
  def __init__(self, tokens, width, projected, dropout=0.15):
    super().__init__()
    self.gamma = nn.Parameter(torch.full((width,), 1e-6))
    self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
    self.norm = nn.LayerNorm(width)
    self.epa_block = EPA(tokens, width, projected, dropout)
    self.conv51 = ResBlock(width, width, nn.BatchNorm3d)
    self.conv8 = nn.Sequential(nn.Dropout3d(0.1), nn.Conv3d(width, width, 1))

  def forward(self, x):
    tokens = x.flatten(2).transpose(1, 2) + self.pos_embed
    tokens = tokens + self.gamma * self.epa_block(self.norm(tokens))
    x = tokens.transpose(1, 2).reshape(x.shape)
    return x + self.conv8(self.conv51(x))


class Encoder(nn.Module):
  def __init__(self, channels, grid, widths=(32, 64, 128, 256), stem=(2, 4, 4)):
    super().__init__()
    inputs, strides = (channels, *widths[:-1]), (stem, 2, 2, 2)
    self.downsample_layers = nn.ModuleList(
      nn.Sequential(conv(i, w, s, s), nn.GroupNorm(i if n else 1, w))
      for n, (i, w, s) in enumerate(zip(inputs, widths, strides))
    )
    self.stages = nn.ModuleList(
      nn.Sequential(*(Block(grid // 8**n, w, 32 if n == 3 else 64) for _ in range(3))) for n, w in enumerate(widths)
    )
    for module in self.modules():
      if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
          nn.init.zeros_(module.bias)

  def forward(self, x):
    skips = []
    for down, stage in zip(self.downsample_layers, self.stages):
      x = stage(down(x))
      skips.append(x)
    return skips


class Up(nn.Module):
  def __init__(self, inputs, features, stride, block):
    super().__init__()
    self.transp_conv = Wrapped(nn.ConvTranspose3d(inputs, features, stride, stride, bias=False))
    self.decoder_block = nn.ModuleList([block])

  def forward(self, x, skip):
    return self.decoder_block[0](self.transp_conv(x) + skip)


class UNETRPP(nn.Module):
  """Image (B, Cin, D, H, W) -> logits (B, num_classes, ...) at full size, 1/(2, 4, 4) and 1/(4, 8, 8)."""

  def __init__(self, channels, num_classes, image=(64, 128, 128)):
    super().__init__()
    grid = image[0] // 2 * (image[1] // 4) * (image[2] // 4)
    self.unetr_pp_encoder = Encoder(channels, grid)
    self.encoder1 = ResBlock(channels, 16, nn.InstanceNorm3d)
    for name, width, tokens in ((5, 128, grid // 64), (4, 64, grid // 8), (3, 32, grid)):
      blocks = nn.Sequential(*(Block(tokens, width, 64) for _ in range(3)))
      self.add_module(f'decoder{name}', Up(2 * width, width, 2, blocks))
    self.decoder2 = Up(32, 16, (2, 4, 4), ResBlock(16, 16, nn.InstanceNorm3d))
    for n, width in enumerate((16, 32, 64), 1):
      self.add_module(f'out{n}', nn.Sequential())
      getattr(self, f'out{n}').conv = Wrapped(nn.Conv3d(width, num_classes, 1))

  def forward(self, x):
    skip1, skip2, skip3, deepest = self.unetr_pp_encoder(x)
    up4 = self.decoder4(self.decoder5(deepest, skip3), skip2)
    up3 = self.decoder3(up4, skip1)
    return self.out1(self.decoder2(up3, self.encoder1(x))), self.out2(up3), self.out3(up4)


def make(num_classes, channels=1, image_size=(64, 128, 128)):
  """UNETR++ in its Synapse configuration, for volumes of exactly this size."""
  return UNETRPP(channels, num_classes, image_size)
