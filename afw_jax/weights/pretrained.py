"""Published weights of encoders -> our variables: the encoder's parameters are replaced, the decoder's stay as they are.

TransUNet's come from a Flax checkpoint (ImageNet-21k), VATransUNet's from a PyTorch one (ImageNet-1k). The key tables
follow the variables at hand, so that every size of a network has a file that fits it.
"""

import math
import os
import re

import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util

from afw_jax import models
from afw_jax.errors import InputError
from afw_jax.models import transunet
from afw_jax.models.layers import positions
from afw_jax.weights import convert, files

VIT = 'https://storage.googleapis.com/vit_models/imagenet21k'
VAN = 'https://huggingface.co/Visual-Attention-Network/VAN-Tiny-original'
NETWORKS = ('transunet', 'vatransunet')

# re.sub, in turn, on our path joined by '/'
VIT_NAMES = (
  (r'^resnet/root/(conv|gn)/', r'\1_root/'),
  (r'^resnet/block(\d)_unit(\d)/', r'block\1/unit\2/'),
  (r'^patch_embeddings/', 'embedding/'),
  (r'^position_embeddings$', 'Transformer/posembed_input/pos_embedding'),
  (r'^encoder_norm/', 'Transformer/encoder_norm/'),
  (r'^layer(\d+)/', r'Transformer/encoderblock_\1/'),
  (r'/attention_norm/', '/LayerNorm_0/'),
  (r'/attn/', '/MultiHeadDotProductAttention_1/'),
  (r'/out_proj/', '/out/'),
  (r'/ffn_norm/', '/LayerNorm_2/'),
  (r'/fc1/', '/MlpBlock_3/Dense_0/'),
  (r'/fc2/', '/MlpBlock_3/Dense_1/'),
)
VIT_OURS_ALONE = re.compile(r'^(conv_more|decoder\d|head)/')
VIT_FILES_ALONE = re.compile(r'^(cls$|pre_logits/|head/)')  # the classifier
VAN_PREFIX = 'van.'  # of the encoder in VATransUNet
VAN_FILES_ALONE = re.compile(r'^head\.|num_batches_tracked$')


def check(name: str, path: str, *, encoder: str = 'r50') -> str:
  """Where the encoder's weights are published; InputError where there are none, or no file at `path`."""
  models.module_of(name)
  if name not in NETWORKS:
    raise InputError(
      f'pretrained weights {path!r}',
      f'no published encoder exists for {name}',
      f'leave the option out, or take a network that has one: {", ".join(NETWORKS)}',
    )
  published = VAN if name == 'vatransunet' else f'{VIT}/{"R50%2BViT-B_16" if encoder == "r50" else "ViT-B_16"}.npz'
  if not os.path.isfile(path):
    raise InputError(
      path, 'no such file', f'The weights are published at {published} : download them and give the path'
    )
  return published


def load(name: str, path: str, variables: dict, *, image_shape: tuple[int, ...] | None = None, **options) -> dict:
  """Replaces the encoder's parameters by published ones; what was taken is logged.

  Both readings of TransUNet take the same parameters. Its class token's position is dropped, and the table of
  positions resized to the network's grid of tokens (bilinear, corners onto corners). Weights of a classifier in the
  file are left out.

  Args:
    name: the network, one of `NETWORKS`.
    path: 'R50+ViT-B_16.npz' for transunet ('ViT-B_16.npz' for its encoder 'vit'), 'van_tiny_754.pth.tar' or the same
      as .safetensors or .npz for vatransunet.
    variables: freshly initialised, as `models.init` returns them.
    image_shape: (H, W) of the images the variables were made for; needed where the grid of tokens is not a square.
    **options: those given to `models.build`.

  Returns:
    Variables of the same shapes, float32.

  Raises:
    InputError: no published encoder, no such file (it says where to get it), or keys that are unknown, missing or of
      another shape than the network needs, all listed.
  """
  published = check(name, path, encoder=options.get('encoder', 'r50'))
  model = models.build(name, options.pop('num_classes', 2), **options)
  ours = traverse_util.flatten_dict(variables)
  if name == 'transunet':
    needed, files_alone = vit_shapes(ours, model.heads), VIT_FILES_ALONE
  else:
    needed, files_alone = van_shapes(ours, models.module_of(name).TORCH_NAMES), VAN_FILES_ALONE
  arrays = files.read(path)
  taken = {key: value for key, value in arrays.items() if not files_alone.search(key)}
  _check_keys(path, name, taken, needed, published)

  new = dict(ours)
  for key, (ours_at, _) in needed.items():
    array = np.asarray(taken[key], np.float32)
    if ours_at[-1] == 'position_embeddings':
      array = _fit_positions(path, array[:, 1:], ours[ours_at].shape[1], image_shape, model.position_grid)
    elif name == 'vatransunet' and ours_at[-1] in convert.CHANNEL_AXES:
      array = np.moveaxis(array, convert.CHANNEL_AXES[ours_at[-1]], (-2, -1))
    new[ours_at] = jnp.asarray(array.reshape(ours[ours_at].shape))
  left = sorted(set(arrays) - set(taken))
  logging.info(
    '%s: %d arrays of %d numbers taken for the encoder of %s; not in the file and left as initialised: %d '
    'arrays; in the file and not used: %s',
    path,
    len(needed),
    sum(a.size for a in taken.values()),
    name,
    len(ours) - len(needed),
    ', '.join(left) or 'none',
  )
  return traverse_util.unflatten_dict(new)


def vit_shapes(ours: dict, heads: int) -> dict[str, tuple[tuple[str, ...], tuple[int | None, ...]]]:
  """Key of the Flax checkpoint -> (our path, shape there; None: any length) for TransUNet's flattened variables."""
  needed = {}
  for path, leaf in ours.items():
    key, shape = '/'.join(path[1:]), tuple(leaf.shape)
    if path[0] != 'params' or VIT_OURS_ALONE.search(key):
      continue
    if re.search(r'/attn/(query|key|value)/', key):
      shape = (*shape[:-1], heads, shape[-1] // heads)
    elif key.endswith('/attn/out_proj/kernel'):
      shape = (heads, shape[0] // heads, shape[1])
    elif key == 'position_embeddings':
      shape = (1, None, shape[-1])
    for pattern, replacement in VIT_NAMES:
      key = re.sub(pattern, replacement, key)
    needed[key] = path, shape
  return needed


def van_shapes(ours: dict, names) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
  """PyTorch's key in VAN -> (our path, shape there) for VATransUNet's flattened variables and its TORCH_NAMES."""
  needed = {}
  for path, leaf in ours.items():
    key = convert.torch_key(path, names)
    if key.startswith(VAN_PREFIX):
      shape = tuple(leaf.shape)
      if path[-1] in convert.CHANNEL_AXES:
        shape = np.moveaxis(np.broadcast_to(0, shape), (-2, -1), convert.CHANNEL_AXES[path[-1]]).shape
      needed[key.removeprefix(VAN_PREFIX)] = path, shape
  return needed


def _check_keys(path, name, taken, needed, published):
  missing = [key for key in needed if key not in taken]
  unknown = [key for key in taken if key not in needed]
  both = [(key, taken[key], shape) for key, (_, shape) in needed.items() if key in taken]
  wrong = [
    f'{key} is {array.shape}, not {tuple("any" if n is None else n for n in shape)}'.replace("'", '')
    for key, array, shape in both
    if not _fits(array.shape, shape)
  ]
  bad = [key for key, array, _ in both if array.dtype.kind not in 'fiu' or not np.isfinite(array).all()]
  problems = [
    f'{len(found)} {what}: {", ".join(found)}'
    for what, found in (
      ('missing', missing),
      ('unknown', unknown),
      ('of another shape', wrong),
      ('not of finite numbers', bad),
    )
    if found
  ]
  if problems:
    raise InputError(
      path,
      f'does not fit the encoder of {name}: keys ' + '; keys '.join(problems),
      f'Give the file published at {published}, and images of three channels or one',
    )


def _fits(shape, wanted):
  """Equal, but for None in `wanted` and for ones in front of a vector (some files hold GroupNorm's so)."""
  if len(wanted) == 1 and shape[:-1] == (1,) * (len(shape) - 1):
    shape = shape[-1:]
  return len(shape) == len(wanted) and all(w in (None, n) for n, w in zip(shape, wanted))


def _fit_positions(path, table, tokens, image_shape, position_grid):
  """The file's square table, class token dropped, on the grid of the network's `tokens`."""
  side = math.isqrt(table.shape[1])
  if not side or side * side != table.shape[1]:
    raise InputError(
      path,
      f'its table of positions has {table.shape[1]} tokens besides the class token, which is no square',
      'Give a file trained on square images',
    )
  if position_grid is None and image_shape is not None:
    position_grid = tuple(n // transunet.PATCH for n in image_shape)
  grid = (math.isqrt(tokens),) * 2 if position_grid is None else tuple(position_grid)
  if math.prod(grid) != tokens:
    raise InputError(
      f'a table of {tokens} positions',
      f'a grid of {grid[0]} x {grid[1]} tokens is not what it was made for',
      'give image_shape: the size of the images that the variables were initialised with',
    )
  if grid != (side, side):
    logging.info('%s: table of positions resized from %d x %d to %d x %d', path, side, side, *grid)
  return np.asarray(positions.resize_table(jnp.asarray(table), (side, side), grid))
