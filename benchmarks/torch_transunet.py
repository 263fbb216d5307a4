"""TransUNet (R50-ViT-B_16) in PyTorch, for comparison: written from its description, with the authors' names."""

import torch
import torch.nn.functional as F
from torch import nn

HIDDEN, LAYERS, HEADS, MLP, DECODER = 768, 12, 12, 3072, (512, 256, 128, 64, 16)


class StdConv(nn.Conv2d):
  def __init__(self, inputs, features, kernel_size, stride=1):
    super().__init__(inputs, features, kernel_size, stride, kernel_size // 2, bias=False)

  def forward(self, x):
    var, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
    return F.conv2d(x, (self.weight - mean) / torch.sqrt(var + 1e-5), None, self.stride, self.padding)


class Unit(nn.Module):
  def __init__(self, inputs, features, stride):
    super().__init__()
    wide = 4 * features
    self.conv1, self.gn1 = StdConv(inputs, features, 1), nn.GroupNorm(32, features, 1e-6)
    self.conv2, self.gn2 = StdConv(features, features, 3, stride), nn.GroupNorm(32, features, 1e-6)
    self.conv3, self.gn3 = StdConv(features, wide, 1), nn.GroupNorm(32, wide, 1e-6)
    self.project = stride != 1 or inputs != wide
    if self.project:
      self.downsample, self.gn_proj = StdConv(inputs, wide, 1, stride), nn.GroupNorm(wide, wide)

  def forward(self, x):
    y = torch.relu(self.gn1(self.conv1(x)))
    y = torch.relu(self.gn2(self.conv2(y)))
    return torch.relu(self.gn3(self.conv3(y)) + (self.gn_proj(self.downsample(x)) if self.project else x))


class ResNet(nn.Module):
  def __init__(self, channels, width=64, depths=(3, 4, 9)):
    super().__init__()
    self.root = nn.Sequential()
    self.root.add_module('conv', StdConv(channels, width, 7, 2))
    self.root.add_module('gn', nn.GroupNorm(32, width, 1e-6))
    self.body = nn.Sequential()
    inputs = width
    for block, depth in enumerate(depths):
      units, features = nn.Sequential(), width << block
      for i in range(depth):
        units.add_module(f'unit{i + 1}', Unit(inputs, features, 2 if block and not i else 1))
        inputs = 4 * features
      self.body.add_module(f'block{block + 1}', units)

  def forward(self, x):
    skips = [torch.relu(self.root(x))]
    x = F.max_pool2d(skips[0], 3, 2)
    for block in self.body:
      x = block(x)
      skips.append(x)
    (rows, columns), (h, w) = skips[0].shape[2:], skips[1].shape[2:]
    skips[1] = F.pad(skips[1], (0, columns // 2 - w, 0, rows // 2 - h))
    return x, skips[-2::-1]


class Attention(nn.Module):
  def __init__(self):
    super().__init__()
    self.query, self.key, self.value, self.out = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))

  def forward(self, x):
    q, k, v = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
    return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
  def __init__(self, dropout=0.1):
    super().__init__()
    self.attention_norm, self.ffn_norm = nn.LayerNorm(HIDDEN, 1e-6), nn.LayerNorm(HIDDEN, 1e-6)
    self.attn, self.ffn, self.dropout = Attention(), nn.ModuleDict(), nn.Dropout(dropout)
    self.ffn['fc1'], self.ffn['fc2'] = nn.Linear(HIDDEN, MLP), nn.Linear(MLP, HIDDEN)

  def forward(self, x):
    x = x + self.attn(self.attention_norm(x))
    y = self.dropout(F.gelu(self.ffn['fc1'](self.ffn_norm(x))))
    return x + self.dropout(self.ffn['fc2'](y))


def conv_bn_relu(inputs, features):
  return nn.Sequential(nn.Conv2d(inputs, features, 3, padding=1, bias=False), nn.BatchNorm2d(features), nn.ReLU())


class TransUNet(nn.Module):
  """Image (B, 1 or 3, side, side) -> logits (B, num_classes, side, side)."""

  def __init__(self, num_classes, side=224, channels=3, n_skip=3):
    super().__init__()
    self.n_skip = n_skip
    embeddings = nn.Module()
    embeddings.hybrid_model = ResNet(channels)
    embeddings.patch_embeddings = nn.Conv2d(1024, HIDDEN, 1)
    embeddings.position_embeddings = nn.Parameter(torch.zeros(1, (side // 16) ** 2, HIDDEN))
    embeddings.dropout = nn.Dropout(0.1)
    encoder = nn.Module()
    encoder.layer = nn.ModuleList(Layer() for _ in range(LAYERS))
    encoder.encoder_norm = nn.LayerNorm(HIDDEN, 1e-6)
    self.transformer = nn.ModuleDict({'embeddings': embeddings, 'encoder': encoder})
    skips = [*(512, 256, 64)[:n_skip], *(0,) * (4 - n_skip)]
    self.decoder = nn.ModuleDict({'conv_more': conv_bn_relu(HIDDEN, DECODER[0]), 'blocks': nn.ModuleList()})
    for inputs, skip, features in zip(DECODER, skips, DECODER[1:]):
      self.decoder['blocks'].append(
        nn.ModuleDict({'conv1': conv_bn_relu(inputs + skip, features), 'conv2': conv_bn_relu(features, features)})
      )
    self.segmentation_head = nn.Sequential(nn.Conv2d(DECODER[-1], num_classes, 3, padding=1))

  def forward(self, x):
    embeddings, encoder = self.transformer['embeddings'], self.transformer['encoder']
    x, skips = embeddings.hybrid_model(x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x)
    x = embeddings.patch_embeddings(x)
    grid = x.shape[2:]
    x = embeddings.dropout(x.flatten(2).transpose(1, 2) + embeddings.position_embeddings)
    for layer in encoder.layer:
      x = layer(x)
    x = encoder.encoder_norm(x).transpose(1, 2).unflatten(2, grid)
    x = self.decoder['conv_more'](x)
    for i, block in enumerate(self.decoder['blocks']):
      x = F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=True)
      x = torch.cat([x, skips[i]], 1) if i < self.n_skip else x
      x = block['conv2'](block['conv1'](x))
    return self.segmentation_head(x)


def make(num_classes, channels=1, image_size=(224, 224)):
  """R50-ViT-B_16 with three skips, for square images of this side; MLP initialised as the released code does."""
  network = TransUNet(num_classes, image_size[0])
  for layer in network.transformer['encoder'].layer:
    for linear in layer.ffn.values():
      nn.init.xavier_uniform_(linear.weight)
      nn.init.normal_(linear.bias, std=1e-6)
  return network
