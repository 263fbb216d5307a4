"""Loads published pretrained encoders: replaces the encoder's parameters and leaves the decoder as initialised.

TransUNet's encoder comes from a Flax checkpoint (ImageNet-21k), VATransUNet's from a PyTorch one (ImageNet-1k):
  Dosovitskiy A., Beyer L., Kolesnikov A. et al., "An Image is Worth 16x16 Words", 2021, arXiv:2010.11929
  Guo M.-H., Lu C.-Z., Liu Z.-N., Cheng M.-M., Hu S.-M., "Visual Attention Network", 2022, arXiv:2202.09741
The keys needed from a file follow from the network's variables, so that every size of a network has a file that fits.
"""

import logging
import math
import os
import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from afw_jax import models
from afw_jax.errors import InputError
from afw_jax.models import transunet
from afw_jax.models.layers import positions
from afw_jax.weights import convert, files

VIT = 'https://storage.googleapis.com/vit_models/imagenet21k'
VAN = 'https://huggingface.co/Visual-Attention-Network/VAN-Tiny-original'
NETWORKS = ('transunet', 'vatransunet')

_log = logging.getLogger('afw_jax')

# (pattern, replacement) for `re.sub`, applied in turn to the path of a Linen variable joined by '/' -> the file's key.
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
VIT_DECODER = re.compile(r'^(conv_more|decoder\d|head)/')  # variables of TransUNet that the file does not have
VIT_UNUSED = re.compile(r'^(cls$|pre_logits/|head/)')  # keys of the file's classifier
VAN_PREFIX = 'van.'  # of the encoder in VATransUNet
# The first convolution of each encoder, which the published weights have for the three channels of a photograph.
STEMS = {
  'r50': ('params', 'resnet', 'root', 'conv', 'kernel'),
  'vit': ('params', 'patch_embeddings', 'kernel'),
  'vatransunet': ('params', 'van', 'patch_embed1', 'proj', 'kernel'),
}
VAN_UNUSED = re.compile(r'^head\.|num_batches_tracked$')

# Key in the file -> (path of the Linen variable, shape in the file with None for any length).
Needed = dict[str, tuple[tuple[str, ...], tuple[int | None, ...]]]


def check(name: str, path: str, *, encoder: str = 'r50') -> str:
  """Checks that a network has a published encoder and that its file is there.

  Args:
    name: the network.
    path: of the downloaded file.
    encoder: TransUNet's option of that name.

  Returns:
    The address where the weights are published.

  Raises:
    InputError: an unknown network, one without a published encoder, or no file at `path`.
  """
  models.module_of(name)
  if name not in NETWORKS:
    raise InputError(
      f'pretrained weights {path!r}',
      f'no pretrained encoder is published for {name}',
      f'Leave the option out, or use a network that has one: {", ".join(NETWORKS)}',
    )
  published = VAN if name == 'vatransunet' else f'{VIT}/{"R50%2BViT-B_16" if encoder == "r50" else "ViT-B_16"}.npz'
  if not os.path.isfile(path):
    raise InputError(
      path, 'no such file', f'The weights are published at {published} : download them and give the path of the file'
    )
  return published


def load(name: str, path: str, variables: dict, *, image_shape: tuple[int, ...] | None = None, **options) -> dict:
  """Replaces the encoder's parameters by published ones, and logs what was used.

  TransUNet's table of position embeddings is resized to the network's grid of tokens (bilinear, aligned corners),
  without the class token; both values of its option `reading` take the same parameters. The classifier in the file is
  not used.

  Args:
    name: the network, one of `NETWORKS`.
    path: 'R50+ViT-B_16.npz' for transunet ('ViT-B_16.npz' with encoder='vit'); 'van_tiny_754.pth.tar', or the same
      weights as .safetensors or .npz, for vatransunet.
    variables: freshly initialised, from `models.init`.
    image_shape: (H, W) of the images for which the variables were initialised; needed where H and W differ.
    **options: the options given to `models.build`.

  Returns:
    Variables of the same shapes, float32.

  Raises:
    InputError: no encoder is published for the network; no such file (says where to get it); or keys that are missing,
      unknown or of another shape than the network needs, all of them listed.
  """
  published = check(name, path, encoder=options.get('encoder', 'r50'))
  model = models.build(name, options.pop('num_classes', 2), **options)
  flat = traverse_util.flatten_dict(variables)
  if name == 'transunet':
    needed, unused = vit_shapes(flat, model.heads), VIT_UNUSED
  else:
    needed, unused = van_shapes(flat, models.module_of(name).TORCH_NAMES), VAN_UNUSED
  stem = STEMS[name if name == 'vatransunet' else options.get('encoder', 'r50')]
  needed = {k: (v, _of_rgb(shape, name) if v == stem else shape) for k, (v, shape) in needed.items()}
  arrays = files.read(path)
  used = {key: value for key, value in arrays.items() if not unused.search(key)}
  _check_keys(path, name, used, needed, published)

  new = dict(flat)
  for key, (variable, _) in needed.items():
    array = np.asarray(used[key], np.float32)
    if variable[-1] == 'position_embeddings':
      array = _fit_positions(path, array[:, 1:], flat[variable].shape[1], image_shape, model.position_grid)
    elif name == 'vatransunet' and variable[-1] in convert.CHANNEL_AXES:
      array = np.moveaxis(array, convert.CHANNEL_AXES[variable[-1]], (-2, -1))
    if variable == stem:
      array = _for_channels(array, flat[stem].shape[-2])
    new[variable] = jnp.asarray(array.reshape(flat[variable].shape))
  _log.info(
    'pretrained weights %s: %d arrays with %d numbers initialise the encoder of %s; %d arrays of the network are not '
    'in the file and keep their random initialisation; keys not used: %s',
    path,
    len(needed),
    sum(a.size for a in used.values()),
    name,
    len(flat) - len(needed),
    ', '.join(key for key in sorted(set(arrays) - set(used)) if not re.search(convert.IGNORED, key)) or 'none',
  )
  return traverse_util.unflatten_dict(new)


def _of_rgb(shape: tuple[int | None, ...], name: str) -> tuple[int | None, ...]:
  """The shape of the first convolution in the file."""
  return (shape[0], 3, *shape[2:]) if name == 'vatransunet' else (*shape[:-2], 3, shape[-1])


def _for_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
  """The first convolution, (*size, 3, out), for images of another number of channels.

  The three channels are repeated in turn, and scaled by 3 / channels, which keeps the size of the output: the usual
  practice, as in timm.
  """
  if channels == 3:
    return kernel
  _log.info(
    'the first convolution is for 3 channels: repeated in turn for %d, and scaled by 3 / %d', channels, channels
  )
  return kernel[..., np.arange(channels) % 3, :] * np.float32(3 / channels)


def vit_shapes(flat: Mapping, heads: int) -> Needed:
  """Returns what TransUNet's encoder needs from the Flax checkpoint.

  Args:
    flat: TransUNet's variables, flattened by path.
    heads: the number of attention heads.
  """
  needed = {}
  for path, leaf in flat.items():
    key, shape = '/'.join(path[1:]), tuple(leaf.shape)
    if path[0] != 'params' or VIT_DECODER.search(key):
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


def van_shapes(flat: Mapping, names: tuple[tuple[str, str], ...]) -> Needed:
  """Returns what VATransUNet's encoder needs from the PyTorch checkpoint.

  Args:
    flat: VATransUNet's variables, flattened by path.
    names: its TORCH_NAMES.
  """
  needed = {}
  for path, leaf in flat.items():
    key = convert.torch_key(path, names)
    if key.startswith(VAN_PREFIX):
      shape = tuple(leaf.shape)
      if path[-1] in convert.CHANNEL_AXES:
        shape = np.moveaxis(np.broadcast_to(0, shape), (-2, -1), convert.CHANNEL_AXES[path[-1]]).shape
      needed[key.removeprefix(VAN_PREFIX)] = path, shape
  return needed


def _check_keys(path: str, name: str, used: Mapping[str, np.ndarray], needed: Needed, published: str) -> None:
  present = [(key, used[key], shape) for key, (_, shape) in needed.items() if key in used]
  problems = convert.list_problems(
    {
      'missing': [key for key in needed if key not in used],
      'unknown': [key for key in used if key not in needed],
      'of another shape': [
        f'{key} is {array.shape}, not {tuple("any" if n is None else n for n in shape)}'.replace("'", '')
        for key, array, shape in present
        if not _fits(array.shape, shape)
      ],
      'not of finite numbers': [
        key for key, array, _ in present if array.dtype.kind not in 'fiu' or not np.isfinite(array).all()
      ],
    }
  )
  if problems:
    raise InputError(
      path,
      f'does not fit the encoder of {name}: {problems}',
      f'Give the file published at {published}, and images of three channels or one',
    )


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
  """Whether the shapes agree; None is any length, and a vector may have leading ones (some files' GroupNorm has)."""
  if len(wanted) == 1 and shape[:-1] == (1,) * (len(shape) - 1):
    shape = shape[-1:]
  return len(shape) == len(wanted) and all(w in (None, n) for n, w in zip(shape, wanted))


def _fit_positions(
  path: str,
  table: np.ndarray,
  tokens: int,
  image_shape: tuple[int, ...] | None,
  position_grid: tuple[int, int] | None,
) -> np.ndarray:
  """Resizes the file's square table (1, side * side, C), without its class token, to the network's `tokens`."""
  side = math.isqrt(table.shape[1])
  if not side or side * side != table.shape[1]:
    raise InputError(
      path,
      f'its table of position embeddings has {table.shape[1]} tokens besides the class token, which is not a square',
      'Give a file trained on square images',
    )
  if position_grid is None and image_shape is not None:
    position_grid = tuple(n // transunet.PATCH for n in image_shape)
  grid = (math.isqrt(tokens),) * 2 if position_grid is None else tuple(position_grid)
  if math.prod(grid) != tokens:
    raise InputError(
      f'a table of {tokens} position embeddings',
      f'does not fit a grid of {grid[0]} x {grid[1]} tokens',
      'Give image_shape, the size of the images for which the variables were initialised',
    )
  if grid != (side, side):
    _log.info('%s: position embeddings resized from %d x %d to %d x %d tokens', path, side, side, *grid)
  return np.asarray(positions.resize_table(jnp.asarray(table), (side, side), grid))
