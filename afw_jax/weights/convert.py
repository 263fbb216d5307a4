"""Converts PyTorch weights of the reference implementations into variables of the networks here.

What differs between networks is data in the module of each network:
  TORCH_NAMES     (pattern, replacement) pairs for `re.sub`, applied in turn to the dotted path of a Linen module; the
                  result is the path of PyTorch's module
  TORCH_CLASSES   keys of weights whose axis 0 is the number of classes (the first one present counts)
  TORCH_CHANNELS  keys of weights whose axis 1 is the number of image channels (likewise)
and, where a network needs them,
  TORCH_IGNORED   patterns of PyTorch's keys without a counterpart here: unused parameters, heads used in training only
  TORCH_ALIASES   (pattern, replacement) pairs for second names of shared parameters, used where the first is missing
  torch_image     (model, arrays, channels) -> shape of an image for which the parameters have the shapes of `arrays`
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from afw_jax import models
from afw_jax.errors import InputError

# Linen's name of a leaf -> PyTorch's; other leaves, such as position tables, have the same name in both.
LEAVES = {
  'kernel': 'weight',
  'transposed_kernel': 'weight',
  'scale': 'weight',
  'mean': 'running_mean',
  'var': 'running_var',
}
# Leaves whose last two axes are (in, out) channels -> where PyTorch has these; of linear layers and convolutions.
CHANNEL_AXES = {'kernel': (1, 0), 'transposed_kernel': (0, 1)}
IGNORED = r'(^|\.)num_batches_tracked$'


def from_torch(name: str, state_dict: Mapping[str, np.ndarray], **options) -> dict:
  """Converts a PyTorch state dict into variables for `afw_jax.models.build(name, ...)`.

  Args:
    name: the network, one of `models.MODELS`.
    state_dict: PyTorch's key -> numpy array, or anything `np.asarray` takes.
    **options: the options of `models.build`; by default `num_classes` is read from the weights.

  Returns:
    {'params': ..., 'batch_stats': ...} of float32 arrays; only the collections that the network has.

  Raises:
    InputError: an unknown network or option; or keys that are missing, unknown or of another shape than these options
      need, all of them listed.
  """
  options = dict(options)
  num_classes = options.pop('num_classes', None)
  models.check_options(name, options)
  module = models.module_of(name)
  arrays = _rename_aliases({key: np.asarray(value) for key, value in state_dict.items()}, module)
  model = models.build(name, num_classes or int(_axis_length(arrays, module.TORCH_CLASSES, 0, 2)), **options)
  channels = _axis_length(arrays, module.TORCH_CHANNELS, 1, 3)
  if hasattr(module, 'torch_image'):
    image = module.torch_image(model, arrays, channels)
  else:
    image = module.smallest_image(model, channels)
  needed = traverse_util.flatten_dict(models.abstract_variables(model, image))
  keys = {path: torch_key(path, module.TORCH_NAMES) for path in needed}
  shapes = {keys[path]: _torch_shape(path, leaf.shape) for path, leaf in needed.items()}
  problems = _mismatches(arrays, shapes, ignored='|'.join((IGNORED, *getattr(module, 'TORCH_IGNORED', ()))))
  if problems:
    made_with = ', '.join([f'num_classes={model.num_classes}', *(f'{k}={v!r}' for k, v in options.items())])
    raise InputError(
      f'PyTorch weights for {name}({made_with})',
      problems,
      'Give the network and the options these weights were made with',
    )
  return traverse_util.unflatten_dict({path: _from_torch_layout(path, arrays[key]) for path, key in keys.items()})


def torch_key(path: tuple[str, ...], names: tuple[tuple[str, str], ...]) -> str:
  """Returns PyTorch's key of a Linen variable.

  Args:
    path: collection, modules..., leaf.
    names: the network's TORCH_NAMES.
  """
  _, *modules, leaf = path
  module = '.'.join(modules)
  for pattern, replacement in names:
    module = re.sub(pattern, replacement, module)
  return '.'.join(part for part in (module, LEAVES.get(leaf, leaf)) if part)


def list_problems(keys_by_problem: Mapping[str, list[str]]) -> str:
  """Formats keys that do not fit: 'keys 2 missing: a, b; keys 1 unknown: c'; '' if all lists are empty."""
  return '; '.join(
    f'keys {len(keys)} {problem}: {", ".join(keys)}' for problem, keys in keys_by_problem.items() if keys
  )


def _mismatches(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], ignored: str) -> str:
  """What differs between the arrays of a file and the shapes needed; '' if nothing does."""
  return list_problems(
    {
      'missing': [key for key in shapes if key not in arrays],
      'unknown': [key for key in arrays if key not in shapes and not re.search(ignored, key)],
      'of another shape': [
        f'{key} is {arrays[key].shape}, not {shape}'
        for key, shape in shapes.items()
        if key in arrays and arrays[key].shape != shape
      ],
    }
  )


def _rename_aliases(arrays: dict[str, np.ndarray], module) -> dict[str, np.ndarray]:
  """The arrays with second names replaced by first ones, where the first one is missing."""
  for pattern, replacement in getattr(module, 'TORCH_ALIASES', ()):
    for alias in list(arrays):
      first = re.sub(pattern, replacement, alias)
      if first != alias:
        arrays.setdefault(first, arrays.pop(alias))
  return arrays


def _axis_length(arrays: Mapping[str, np.ndarray], keys: tuple[str, ...], axis: int, otherwise: int) -> int:
  """Length of an axis of the first key present; if there is none, the check of the keys reports it as missing."""
  found = [arrays[key].shape[axis] for key in keys if key in arrays and arrays[key].ndim > axis]
  return found[0] if found else otherwise


def _torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
  """(*kernel, in, out) -> (out, in, *kernel); of a transposed convolution (in, out, *kernel)."""
  if path[-1] not in CHANNEL_AXES:
    return shape
  return (*(shape[-2:][CHANNEL_AXES[path[-1]].index(axis)] for axis in (0, 1)), *shape[:-2])


def _from_torch_layout(path: tuple[str, ...], array: np.ndarray) -> jax.Array:
  array = array.astype(np.float32)
  return jnp.asarray(np.moveaxis(array, CHANNEL_AXES[path[-1]], (-2, -1)) if path[-1] in CHANNEL_AXES else array)
