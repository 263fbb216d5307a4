"""Finds the config files that come with the package, so that a config can be given by name: --config=synapse."""

import importlib.util
import os
import pathlib

import ml_collections

from afw_jax.errors import InputError, did_you_mean

_PACKAGE = pathlib.Path(__file__).parents[1]
# Installed, the files lie inside the package; in a clone they lie beside it.
_FOLDERS = (_PACKAGE / 'configs', _PACKAGE.parent / 'configs')


def folder() -> pathlib.Path:
  """The folder of the shipped config files."""
  return next((path for path in _FOLDERS if path.is_dir()), _FOLDERS[0])


def names() -> list[str]:
  """Names of the shipped configs, sorted: of configs/synapse.py it is 'synapse'."""
  return sorted(path.stem for path in folder().glob('*.py') if not path.stem.startswith('_'))


def find_config(name: str) -> str:
  """The path of a config file.

  Args:
    name: a path, or the name of a shipped config; either may be followed by a colon and the argument of its
      `get_config`, as in 'abdomenct1k_3d:unetrpp'.

  Returns:
    The path, with the argument behind its colon. A file that exists comes before a shipped config of its name.

  Raises:
    InputError: neither a file nor a shipped config.
  """
  path, colon, argument = os.path.expanduser(name).partition(':')
  if not os.path.isfile(path):
    shipped = path if path in names() else ''
    if not shipped:
      raise InputError(
        f'--config={name}',
        'there is no such file and no shipped config of this name',
        f'{did_you_mean(path, names())}Shipped configs: {", ".join(names())}; or give the path of a .py file',
      )
    path = str(folder() / f'{shipped}.py')
  return f'{path}{colon}{argument}'


def load(name: str) -> ml_collections.ConfigDict:
  """The config of a shipped config file, for instance of 'abdomenct1k_3d:unetrpp'.

  Raises:
    InputError: there is no such config, or it has no such variant.
  """
  stem, _, variant = name.partition(':')
  if stem not in names():
    raise InputError(name, 'is not a shipped config', f'{did_you_mean(stem, names())}Use one of {", ".join(names())}.')
  spec = importlib.util.spec_from_file_location(f'afw_jax_shipped_{stem}', folder() / f'{stem}.py')
  if spec is None or spec.loader is None:
    raise InputError(folder() / f'{stem}.py', 'cannot be loaded', 'Install the package again.')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*filter(None, [variant]))
