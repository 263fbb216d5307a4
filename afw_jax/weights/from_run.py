"""Parameters to start from, of another run or a model file: the network, its heads where the organs are the same."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from afw_jax import models
from afw_jax.data.sets import channels
from afw_jax.errors import InputError
from afw_jax.inference import trained
from afw_jax.model_file import archive, networks

_log = logging.getLogger('afw_jax')

PyTree = Any


class Network(NamedTuple):
  """A network as checkpoints describe it.

  Attributes:
    name: of the network.
    options: that it is built with.
    input_size: spatial shape of its input.
    channels: of its input; None: not known yet.
  """

  name: str
  options: Mapping[str, Any]
  input_size: Sequence[int]
  channels: int | None = 1

  def variables(self, num_classes: int) -> dict:
    """Path -> shape and dtype of each variable, and the axis of the classes where it has one (else None)."""
    shapes = [self._shapes(n) for n in (num_classes, num_classes + 1)]
    return {path: (leaf, _class_axis(leaf.shape, shapes[1][path].shape)) for path, leaf in shapes[0].items()}

  def _shapes(self, num_classes: int) -> dict:
    model = models.build(self.name, num_classes, **self.options)
    return traverse_util.flatten_dict(models.abstract_variables(model, (1, *self.input_size, self.channels or 1)))


def _class_axis(shape: tuple[int, ...], wider: tuple[int, ...]) -> int | None:
  """The axis along which an array grows with the number of classes, as those of the output heads do."""
  return next((axis for axis, (n, m) in enumerate(zip(shape, wider)) if n != m), None)


def head_leaves(network: Network, num_classes: int) -> PyTree:
  """Which parameters belong to the output heads: those whose shape depends on the number of classes.

  Args:
    network: whose.
    num_classes: background included.

  Returns:
    A tree like the parameters of the network, of bools.
  """
  flat = network.variables(num_classes)
  return traverse_util.unflatten_dict(
    {path[1:]: axis is not None for path, (_, axis) in flat.items() if path[0] == 'params'}
  )


def check(path: str, network: Network) -> dict:
  """Checks that a run or a model file has the same network, but for its output heads.

  Args:
    path: workdir of the other run; or a model file, FILE/1, FILE/2, ... where it holds several networks.
    network: of this one.

  Returns:
    The meta of the checkpoint.

  Raises:
    InputError: there is no checkpoint, or it is of another network, size or number of channels.
  """
  try:
    meta = trained.meta_of(path)
  except InputError as error:
    raise InputError(f'model.init_from={path}', error.problem, error.cure) from error
  _match(path, network, meta, meta['model']['num_classes'])
  return meta


def load(path: str, network: Network, organs: Sequence[str], params: PyTree, batch_stats: PyTree) -> tuple:
  """Replaces initial parameters by those of another run, and logs which.

  Where both runs have the same organs, in any order, everything is taken, with the learned weights of the loss (which a
  model file does not have). Else the output heads and the weights of the loss stay as they are initialised.

  Args:
    path: workdir of the other run, whose best checkpoint is taken; or a model file, as in `check`.
    network: of this run.
    organs: of this run, without the background.
    params: {'net': ..., 'log_sigma_sq': (C,)}, freshly initialised.
    batch_stats: likewise.

  Returns:
    (params, batch_stats, meta of the checkpoint), with arrays on the host.

  Raises:
    InputError: as `check`, or the checkpoint is torn or altered.
  """
  variables, meta = trained.read_variables(path)
  theirs, ours = tuple(meta['data']['organs']), tuple(organs)
  same = set(theirs) == set(ours)
  order = np.array([0, *(1 + theirs.index(organ) for organ in ours)]) if same else None
  taken, new = _match(path, network, meta, len(ours) + 1, heads=same)
  flat = traverse_util.flatten_dict({'params': params['net'], 'batch_stats': batch_stats}, keep_empty_nodes=True)
  source = traverse_util.flatten_dict({k: variables[k] for k in ('params', 'batch_stats')})
  for key, axis in taken.items():
    flat[key] = source[key] if axis is None or order is None else np.take(source[key], order, axis)
  result = traverse_util.unflatten_dict(flat)
  sigma = variables.get('log_sigma_sq')
  _log.info('%s', _said(path, meta, network, theirs, ours, len(taken), new, has_sigma=sigma is not None))
  sigma = params['log_sigma_sq'] if sigma is None or order is None else sigma[order]
  return {'net': result['params'], 'log_sigma_sq': sigma}, result.get('batch_stats', {}), meta


def _said(
  path: str, meta: dict, network: Network, theirs: tuple, ours: tuple, taken: int, new: list[str], *, has_sigma: bool
) -> str:
  text = f'starts from step {meta["step"]} of {path}: {taken} arrays of its network'
  if set(theirs) == set(ours):
    text += ', its output and the weights of its loss' if has_sigma else ' with its output'
    text += ' (the same organs)'
    text += '' if has_sigma else '; new are the weights of the loss, which a model file does not have'
  else:
    only = lambda a, b: ', '.join(organ for organ in a if organ not in b) or 'none'
    text += f'; new are the output ({", ".join(new)}) and the weights of the loss, since the organs differ'
    text += f' (only here: {only(ours, theirs)}; only there: {only(theirs, ours)})'
  options = {**meta['model']['options']}
  unlike = [k for k, v in network.options.items() if k in options and options[k] != v]
  if unlike:
    text += '; other options of the network: ' + ', '.join(
      f'{k} {options[k]!r} there, {network.options[k]!r} here' for k in unlike
    )
  return text


def _match(path: str, network: Network, meta: dict, num_classes: int, *, heads: bool = False) -> tuple[dict, list[str]]:
  """(path of each variable to take -> axis of the classes, names of the new ones); InputError where others differ."""
  there = meta['model']
  if there['name'] != network.name:
    what = f'is a run of {there["name"]}, and this one trains {network.name}'
    raise InputError(path, what, 'Set model.name to that of the run, or leave model.init_from out.')
  several = channels.count(meta['data']['options'])
  if network.channels not in (None, several):
    what = f'its scans have {several} channel(s), and those of this run {network.channels}'
    cure = 'Start from a run with as many channels, or leave model.init_from out.'
    raise InputError(path, what, cure)
  ours = network._replace(channels=several).variables(num_classes)
  theirs = Network(there['name'], there['options'], there['input_size'], several).variables(there['num_classes'])
  if not heads:
    new = ['/'.join(key[1:]) for key, (_, axis) in ours.items() if axis is not None]
    ours, theirs = ({k: v for k, v in of.items() if v[1] is None} for of in (ours, theirs))
  else:
    new = []
  name = lambda key: '/'.join(key[1:])
  unlike = [f'{name(key)} is missing' for key in ours if key not in theirs]
  unlike += [f'{name(key)} is not needed' for key in theirs if key not in ours]
  for key in ours.keys() & theirs.keys():
    shapes = theirs[key][0].shape, ours[key][0].shape
    unlike += [f'{name(key)} is {shapes[0]}, not {shapes[1]}'] if shapes[0] != shapes[1] else []
  if unlike:
    sizes = [' x '.join(map(str, size)) for size in (there['input_size'], network.input_size)]
    what = f'its {network.name} is not the one of this run (inputs of {sizes[0]} there, {sizes[1]} here): '
    what += '; '.join(sorted(unlike)[:3]) + (f'; and {len(unlike) - 3} more' if len(unlike) > 3 else '')
    recorded = os.path.join(path, archive.META if networks.is_in_file(os.path.expanduser(path)) else 'config.json')
    cure = f'Give the same options as in {recorded} (model, data.size, train.patch_size).'
    raise InputError(path, what, cure)
  return {key: axis for key, (_, axis) in ours.items()}, new
