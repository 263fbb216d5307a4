"""The networks of a model file as those of runs: their paths, their meta and their weights."""

import os
from typing import Any

import jax

from afw_jax.errors import InputError
from afw_jax.model_file import archive, content, program
from afw_jax.weights import files


def names(workdir: str) -> list[str]:
  """The networks at a path: each of a model file as FILE/1, FILE/2, ...; the path itself where there is one alone.

  Raises:
    InputError: a file that is not a model file.
  """
  if not os.path.isfile(workdir):
    return [workdir]
  count = len(content.networks_of(workdir, archive.read_meta(workdir)))
  return [workdir] if count == 1 else [f'{workdir}/{i}' for i in range(1, count + 1)]


def is_in_file(workdir: str) -> bool:
  """Whether a path is a model file, or names a network in one."""
  return os.path.isfile(_split(workdir)[0])


def read(workdir: str) -> tuple[dict, dict]:
  """(meta of the model file, entry of the network) of one network.

  Args:
    workdir: a model file with one network, or FILE/1, FILE/2, ...

  Raises:
    InputError: no model file, no such network, or several where one was asked for.
  """
  path, number = _split(workdir)
  meta = archive.read_meta(path)
  networks = content.networks_of(path, meta)
  if number is None and len(networks) > 1:
    cure = f'Name one of them ({path}/1, ...), or predict with the average of all.'
    raise InputError(path, f'holds {len(networks)} networks', cure)
  if number is not None and not 1 <= number <= len(networks):
    raise InputError(workdir, f'is not there: {path} holds {len(networks)} networks', f'Use {path}/1.')
  return meta, networks[(number or 1) - 1]


def read_weights(workdir: str, abstract: Any) -> Any:
  """The variables of one network, {'params':, 'batch_stats':}.

  Args:
    workdir: as in `read`.
    abstract: of the network, from `models.abstract_variables`; leaves with a sharding are put onto its devices.

  Raises:
    InputError: damaged weights, or weights of another network.
  """
  path, _ = _split(workdir)
  meta, network = read(workdir)
  where = f'{path}/{network["weights"]}'
  weights = files.parse_safetensors(archive.read(path, meta, network['weights']), where)
  shape_of = lambda arrays: {name: (tuple(a.shape), str(a.dtype)) for name, a in arrays.items()}
  wanted, found = shape_of(program.flat(abstract)), shape_of(weights)
  if differing := sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name)):
    name = differing[0]
    what = f'{len(differing)} arrays are not those of the network; {name} is {found.get(name)}, not {wanted.get(name)}'
    raise InputError(where, what, 'Export the model again (--mode=export).')
  put = lambda leaf, array: jax.device_put(array, leaf.sharding)
  return {'batch_stats': {}, **jax.tree.map(put, abstract, program.nested(weights, abstract))}


def _split(workdir: str) -> tuple[str, int | None]:
  """(model file, number of the network); (path, None) of any other path."""
  folder, name = os.path.split(workdir)
  return (folder, int(name)) if name.isascii() and name.isdecimal() and os.path.isfile(folder) else (workdir, None)
