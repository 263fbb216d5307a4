"""PyTorch weights of the reference implementations -> variables of ours.

What differs from network to network is data in the network's own module:
  TORCH_NAMES     (pattern, replacement) pairs for `re.sub`, applied in turn to our dotted module path, give PyTorch's
  TORCH_CLASSES   keys of weights whose axis 0 is the number of classes (the first one present counts)
  TORCH_CHANNELS  keys of weights whose axis 1 is the number of image channels (likewise)
and, where it needs them,
  TORCH_IGNORED   patterns of PyTorch's keys that may have no counterpart: dead parameters, heads that only train
  TORCH_ALIASES   (pattern, replacement) pairs for second names of shared parameters, which count where the first is missing
  torch_image     (model, arrays, channels) -> shape of an image for which the parameters have the shapes of `arrays`
"""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from afw_jax import models
from afw_jax.errors import InputError

# Our leaf's name -> PyTorch's; a leaf that is not here (a position table, say) is called the same in both.
LEAVES = {
  'kernel': 'weight',
  'transposed_kernel': 'weight',
  'scale': 'weight',
  'mean': 'running_mean',
  'var': 'running_var',
}
# Leaves with two channel axes, ours last -> where PyTorch has them; linear layers and convolutions alike.
CHANNEL_AXES = {'kernel': (1, 0), 'transposed_kernel': (0, 1)}
IGNORED = r'(^|\.)num_batches_tracked$'


def from_torch(name: str, state_dict: Mapping[str, np.ndarray], **options) -> dict:
  """Turns a PyTorch state dict into variables for `afw_jax.models.build(name, ...)`.

  Args:
    name: the network, one of `models.MODELS`.
    state_dict: PyTorch's key -> array, as numpy arrays (or anything `np.asarray` takes).
    **options: those given to `models.build`; `num_classes` is read from the weights when left out.

  Returns:
    {'params': ..., 'batch_stats': ...} of float32 arrays (only the collections the network has).

  Raises:
    InputError: listing every key that is unknown, missing or of another shape than these options need.
  """
  options = dict(options)
  num_classes = options.pop('num_classes', None)
  models.check_options(name, options)
  module = models.module_of(name)
  ignored = re.compile('|'.join((IGNORED, *getattr(module, 'TORCH_IGNORED', ()))))
  arrays = {key: np.asarray(value) for key, value in state_dict.items()}
  for alias, name_of in (
    (key, re.sub(*pair, key)) for pair in getattr(module, 'TORCH_ALIASES', ()) for key in [*arrays]
  ):
    if alias != name_of:
      arrays.setdefault(name_of, arrays.pop(alias))
  model = models.build(name, num_classes or int(_side(arrays, module.TORCH_CLASSES, 0, 2)), **options)
  channels = _side(arrays, module.TORCH_CHANNELS, 1, 3)
  image = (
    module.torch_image(model, arrays, channels)
    if hasattr(module, 'torch_image')
    else module.smallest_image(model, channels)
  )
  needed = traverse_util.flatten_dict(models.abstract_variables(model, image))

  keys = {path: torch_key(path, module.TORCH_NAMES) for path in needed}
  shapes = {keys[path]: _torch_shape(path, leaf.shape) for path, leaf in needed.items()}
  missing = [key for key in shapes if key not in arrays]
  unknown = [key for key in arrays if key not in shapes and not ignored.search(key)]
  wrong = [
    f'{key} is {arrays[key].shape}, not {shape}'
    for key, shape in shapes.items()
    if key in arrays and arrays[key].shape != shape
  ]
  problems = [
    f'{len(found)} {what}: {", ".join(found)}'
    for what, found in (('missing', missing), ('unknown', unknown), ('of another shape', wrong))
    if found
  ]
  if problems:
    made_with = ', '.join([f'num_classes={model.num_classes}', *(f'{k}={v!r}' for k, v in options.items())])
    raise InputError(
      f'PyTorch weights for {name}({made_with})',
      'keys ' + '; keys '.join(problems),
      'give the network and the options these weights were made with',
    )
  return traverse_util.unflatten_dict({path: _from_torch_layout(path, arrays[key]) for path, key in keys.items()})


def torch_key(path: tuple[str, ...], names) -> str:
  """PyTorch's key of our variable at `path` (collection, modules..., leaf)."""
  _, *modules, leaf = path
  module = '.'.join(modules)
  for pattern, replacement in names:
    module = re.sub(pattern, replacement, module)
  return '.'.join(part for part in (module, LEAVES.get(leaf, leaf)) if part)


def _side(arrays, keys, axis, otherwise):
  """Length of an axis of the first key present; without one the check of the keys will speak, whatever is taken."""
  found = [arrays[key].shape[axis] for key in keys if key in arrays and arrays[key].ndim > axis]
  return found[0] if found else otherwise


def _torch_shape(path, shape):
  """(*kernel, in, out) -> (out, in, *kernel), or (in, out, *kernel) where the convolution is transposed."""
  if path[-1] not in CHANNEL_AXES:
    return shape
  return (*(shape[-2:][CHANNEL_AXES[path[-1]].index(axis)] for axis in (0, 1)), *shape[:-2])


def _from_torch_layout(path, array):
  array = array.astype(np.float32)
  return jnp.asarray(np.moveaxis(array, CHANNEL_AXES[path[-1]], (-2, -1)) if path[-1] in CHANNEL_AXES else array)
