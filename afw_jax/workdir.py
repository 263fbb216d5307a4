"""The folder of a run: it belongs to one config, and says which."""

import contextlib
import difflib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator

import ml_collections

from afw_jax.errors import InputError
from afw_jax.training import metric_writer

_log = logging.getLogger('afw_jax')

# What may change between two starts in one workdir without changing what was trained.
FREE = ('eval', 'mesh', 'runtime', 'data.root', 'data.store')


def _used(config: dict) -> dict:
  """Without the options of networks, losses and augmentations that are not the chosen ones: they train nothing."""
  chosen = lambda part: {k: v for k, v in part.items() if not isinstance(v, dict) or k == part.get('name')}
  return {
    **config,
    **{section: chosen(config[section]) for section in ('model', 'loss', 'augment') if section in config},
  }


def _flat(tree: dict, prefix: str = '') -> dict:
  out = {}
  for key, value in tree.items():
    path = f'{prefix}{key}'
    if path not in FREE:
      out |= _flat(value, path + '.') if isinstance(value, dict) else {path: value}
  return out


def claim(workdir: str, config: ml_collections.ConfigDict) -> None:
  """Writes config.json and environment.json, or checks that the config is the one the workdir was made with.

  Raises:
    InputError: the workdir belongs to another config; names every difference.
  """
  path = os.path.join(workdir, 'config.json')
  new = json.loads(config.to_json_best_effort())
  if os.path.exists(path):
    old, now = _flat(_used(read_config(workdir))), _flat(_used(new))
    differing = [
      f'{k} was {old.get(k, "absent")!r}, is {now.get(k, "absent")!r}'
      for k in sorted(old | now)
      if old.get(k, '') != now.get(k, '')
    ]
    if differing and begun(workdir):  # a workdir in which nothing was trained yet takes the new config
      raise InputError(
        path,
        'this workdir belongs to another config: ' + '; '.join(differing),
        'Choose another --workdir, or start with the values it was made with.',
      )
  metric_writer.write_json(path, new)
  metric_writer.write_json(os.path.join(workdir, 'environment.json'), metric_writer.environment())


@contextlib.contextmanager
def hold(workdir: str) -> Iterator[None]:
  """Keeps the workdir to the one process that trains in it; the system lets go of it when that ends, however it ends.

  Raises:
    InputError: another one trains in it.
  """
  path = os.path.join(workdir, '.lock')
  with open(path, 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise InputError(
        workdir,
        'another process is training in it',
        f'Wait for it or choose another --workdir. If none is, remove {path}.',
      ) from error
    except OSError as error:  # some network disks know no locks
      _log.warning('%s cannot be locked (%s): see that no two runs use it', workdir, error.strerror)
    yield


def begun(workdir: str) -> bool:
  """Whether something was trained in it."""
  last = os.path.join(workdir, 'checkpoints', 'last')
  return os.path.isdir(last) and bool(os.listdir(last))


def read_config(workdir: str) -> dict:
  """The config a workdir was made with.

  Raises:
    InputError: there is none.
  """
  path = os.path.join(workdir, 'config.json')
  if not os.path.exists(path):
    known = [d for d in _siblings(workdir) if os.path.exists(os.path.join(d, 'config.json'))]
    near = difflib.get_close_matches(workdir, known, n=1, cutoff=0.5)
    hint = f' Did you mean {near[0]}?' if near else ''
    raise InputError(
      workdir, 'this is not the workdir of a run (it has no config.json)', f'Give the --workdir of a trained run.{hint}'
    )
  with open(path) as f:
    return json.load(f)


def _siblings(workdir: str) -> list[str]:
  parent = os.path.dirname(os.path.abspath(workdir))
  return [os.path.join(os.path.dirname(workdir), d) for d in os.listdir(parent)] if os.path.isdir(parent) else []


def store_path(config: ml_collections.ConfigDict, workdir: str) -> str:
  """Folder of the prepared scans of a config; runs that need the same voxels share one store."""
  if config.data.store:
    return config.data.store
  options = json.loads(config.data.to_json_best_effort())
  options = {key: options[key] for key in ('dataset', 'size', 'spacing_mm', 'fit', 'interpolation')}
  options['root'] = os.path.abspath(config.data.root)
  digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]
  return os.path.join(os.path.dirname(os.path.abspath(workdir)), 'stores', f'{config.data.dataset}-{digest}')
