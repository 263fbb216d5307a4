"""Files with the keys and shapes of the published ViT weights, at full and at testing size, with random values."""

import numpy as np

FULL = {'width': 64, 'depths': (3, 4, 9), 'hidden': 768, 'layers': 12, 'heads': 12, 'mlp': 3072, 'side': 14}
TINY = {'width': 8, 'depths': (1, 1, 1), 'hidden': 32, 'layers': 2, 'heads': 4, 'mlp': 64, 'side': 2}


def vit_file_shapes(width, depths, hidden, layers, heads, mlp, side):
  """Keys and shapes of R50+ViT-B_16.npz, from its description; 14 x 14 tokens and a class token at full size."""
  shapes = {'conv_root/kernel': (7, 7, 3, width)}

  def norm(key, channels):
    shapes.update({f'{key}/scale': (channels,), f'{key}/bias': (channels,)})

  def dense(key, kernel, bias):
    shapes.update({f'{key}/kernel': kernel, f'{key}/bias': bias})

  norm('gn_root', width)
  inputs = width
  for block, depth in enumerate(depths, 1):
    mid = width * 2 ** (block - 1)
    for unit in range(1, depth + 1):
      at = f'block{block}/unit{unit}'
      shapes.update(
        {
          f'{at}/conv1/kernel': (1, 1, inputs, mid),
          f'{at}/conv2/kernel': (3, 3, mid, mid),
          f'{at}/conv3/kernel': (1, 1, mid, 4 * mid),
        }
      )
      for i, channels in ((1, mid), (2, mid), (3, 4 * mid)):
        norm(f'{at}/gn{i}', channels)
      if unit == 1:
        shapes[f'{at}/conv_proj/kernel'] = (1, 1, inputs, 4 * mid)
        norm(f'{at}/gn_proj', 4 * mid)
      inputs = 4 * mid
  dense('embedding', (1, 1, inputs, hidden), (hidden,))
  shapes['Transformer/posembed_input/pos_embedding'] = (1, side**2 + 1, hidden)
  for i in range(layers):
    at = f'Transformer/encoderblock_{i}'
    norm(f'{at}/LayerNorm_0', hidden)
    for part in ('query', 'key', 'value'):
      dense(f'{at}/MultiHeadDotProductAttention_1/{part}', (hidden, heads, hidden // heads), (heads, hidden // heads))
    dense(f'{at}/MultiHeadDotProductAttention_1/out', (heads, hidden // heads, hidden), (hidden,))
    norm(f'{at}/LayerNorm_2', hidden)
    dense(f'{at}/MlpBlock_3/Dense_0', (hidden, mlp), (mlp,))
    dense(f'{at}/MlpBlock_3/Dense_1', (mlp, hidden), (hidden,))
  norm('Transformer/encoder_norm', hidden)
  return shapes


def classifier(hidden):
  return {
    'cls': np.zeros((1, 1, hidden)),
    'pre_logits/kernel': np.zeros((hidden, hidden)),
    'pre_logits/bias': np.zeros(hidden),
    'head/kernel': np.zeros((hidden, 7)),
    'head/bias': np.zeros(7),
  }


def draw(shapes, seed=0):
  rng = np.random.default_rng(seed)
  arrays = {}
  for key, shape in shapes.items():
    z = rng.standard_normal(shape).astype(np.float32)
    small = 0.01 if 'conv' in key else 1  # where dividing by std + 1e-5 and by sqrt(var + 1e-5) are not the same
    arrays[key] = (
      1 + 0.1 * z
      if key.endswith('scale')
      else small * z / np.float32(np.sqrt(np.prod(shape[:-1])))
      if key.endswith('kernel')
      else 0.1 * z
    )
  return arrays
