"""What the benchmarks against PyTorch share: the options under which both sides do the same work, and the loss."""

# network -> options without randomness, of one head: then both sides do the same work
SAME_WORK = {
  'unet': {},
  'unetpp': {},
  'transunet': {'dropout_rate': 0.0},
  'vatransunet': {'drop_path_rate': 0.0},
  'unet3d': {'deep_supervision': False},
  'unetr': {},
  'unetrpp': {'attention_dropout': 0.0, 'channel_dropout': 0.0},
}
RATE, MOMENTUM = 0.01, 0.9


def main_head(logits):
  """The logits at full size: UNETR++ returns three heads, of which they are the first."""
  return logits[0] if isinstance(logits, (list, tuple)) else logits


def loss_torch(logits, label):
  """Cross-entropy + Dice over the whole batch (`losses.make_loss('ce_dice')`), of logits (B, C, *S)."""
  import torch

  p, space = torch.softmax(logits, 1), (0, *range(2, logits.ndim))
  truth = torch.nn.functional.one_hot(label, logits.shape[1]).movedim(-1, 1).to(p.dtype)
  dice = (2 * (p * truth).sum(space) + 1e-5) / ((p + truth).sum(space) + 1e-5)
  return 1 - dice.mean() + torch.nn.functional.cross_entropy(logits, label)


def without_dropout(model):
  """The PyTorch network with all of its dropout rates at 0."""
  import torch

  for layer in model.modules():
    if isinstance(layer, torch.nn.modules.dropout._DropoutNd):
      layer.p = 0.0
  return model
