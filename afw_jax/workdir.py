"""The working directory of a run: config.json, environment.json and the lock that keeps it to one run at a time."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Collection, Iterator

import jax
import ml_collections

import afw_jax
from afw_jax.config import default_config
from afw_jax.distributed import runtime
from afw_jax.errors import InputError, did_you_mean
from afw_jax.report.runs import POOLED
from afw_jax.system import atomic_files, locks

PACKAGES = (
  'afw_jax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'numpy',
  'scipy',
  'nibabel',
  'pydicom',
  'highdicom',
)
_CURE = 'Wait until it ends, or choose another --workdir.'
_PATIENCE_S = 300  # for others that claim the workdir at the same time: the tasks of an array, each a moment
# What may change between two starts in one workdir without changing what was trained.
FREE = ('eval', 'mesh', 'runtime', 'tracker', 'data.root', 'data.store')


def _used(config: dict) -> dict:
  """The config without the options of networks, losses and augmentations that are not used."""
  chosen = lambda part: {k: v for k, v in part.items() if not isinstance(v, dict) or k == part.get('name')}
  return {
    **config,
    **{section: chosen(config[section]) for section in ('model', 'loss', 'augment') if section in config},
  }


def _completed(config: dict) -> dict:
  """A config with the defaults of keys that the version that wrote it did not have: they keep what it did."""

  def filled(defaults: dict, values: dict) -> dict:
    both = lambda k: isinstance(defaults.get(k), dict) and isinstance(values[k], dict)
    return {**defaults, **{k: filled(defaults[k], values[k]) if both(k) else values[k] for k in values}}

  return filled(json.loads(default_config().to_json_best_effort()), config)


def _flat(tree: dict, prefix: str = '') -> dict:
  out = {}
  for key, value in tree.items():
    path = f'{prefix}{key}'
    if path not in FREE:
      out |= _flat(value, path + '.') if isinstance(value, dict) else {path: value}
  return out


@contextlib.contextmanager
def claimed(
  workdir: str, config: ml_collections.ConfigDict, *, hold: bool = True, alone: bool = False
) -> Iterator[None]:
  """Makes a workdir the one of this config, and keeps other runs out of it while the block runs.

  The workdir is locked first, then its config.json is compared with `config`, and only then config.json and
  environment.json are written: a run that is refused changes nothing. The operating system frees the locks when the
  process ends, however it ends. Of several processes of one run, process 0 holds them. There are two: `.claiming` is
  held while these files are compared and written, `.lock` also while the block runs.

  Args:
    workdir: made if missing.
    config: of the run.
    hold: False frees the locks before the block runs, which then must not write into the workdir. So the shards of one
      preparation, which write into the store only, may run at the same time.
    alone: True where only this process comes here, and not all processes of the run.

  Raises:
    InputError: another run uses the workdir, it belongs to another config (every difference is named), it cannot be
      written, or the processes of this run were given different workdirs or configs.
  """
  workdir, versions = os.path.expanduser(workdir), environment()  # found out before: starting a GPU takes seconds
  with contextlib.ExitStack() as lock:

    def claim() -> None:
      with locks.locked(os.path.join(workdir, '.claiming'), patience_s=_PATIENCE_S, cure=_CURE):
        lock.enter_context(locks.locked(os.path.join(workdir, '.lock'), patience_s=0, cure=_CURE))
        _claim(workdir, config, versions)
        if not hold:
          lock.close()

    if alone:
      claim()
    else:
      runtime.check_same('--workdir', workdir)
      runtime.check_same('--config', config.to_json_best_effort())
      runtime.on_process_zero(claim)
      runtime.check_shared(os.path.join(workdir, 'config.json'))
    yield


def _claim(workdir: str, config: ml_collections.ConfigDict, versions: dict) -> None:
  path = os.path.join(workdir, 'config.json')
  if os.path.exists(os.path.join(workdir, POOLED)):
    raise InputError(workdir, 'holds the pooled scores of a cross-validation', 'Choose another --workdir.')
  new = json.loads(config.to_json_best_effort())
  # Where nothing was trained yet, the new config takes over.
  differing = differences(read_config(workdir), new) if os.path.exists(path) and begun(workdir) else {}
  if differing:
    raise InputError(
      path,
      'this workdir belongs to another config: '
      + '; '.join(f'{k} was {a!r}, is {b!r}' for k, (a, b) in differing.items()),
      'Choose another --workdir, or start with the values it was made with.',
    )
  atomic_files.write_json(path, new)
  atomic_files.write_json(os.path.join(workdir, 'environment.json'), versions)


def differences(old: dict, now: dict, *, but: Collection[str] = ()) -> dict[str, tuple]:
  """Key -> its values in two configs as JSON where these differ; without `FREE` and options that are not used.

  Args:
    old: one config.
    now: the other.
    but: other keys that may differ.
  """
  old, now = ({k: v for k, v in _flat(_used(_completed(config))).items() if k not in but} for config in (old, now))
  differing = [k for k in sorted(old | now) if old.get(k, '') != now.get(k, '')]
  return {k: (old.get(k, 'absent'), now.get(k, 'absent')) for k in differing}


def environment() -> dict:
  """Versions of the packages, devices, and the flags that decide the bits of a run."""
  installed = {d.metadata['Name']: d.version for d in importlib.metadata.distributions()}
  return {
    'python': platform.python_version(),
    'platform': platform.platform(),
    'cpu_count': os.cpu_count(),
    'packages': {name: installed.get(name, 'not installed') for name in PACKAGES} | {'afw_jax': afw_jax.__version__},
    'devices': [str(d) for d in jax.devices()],
    'processes': jax.process_count(),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'nproc': os.environ.get('NPROC', ''),
  }


def begun(workdir: str) -> bool:
  """Whether a workdir holds a checkpoint."""
  last = os.path.join(workdir, 'checkpoints', 'last')
  return os.path.isdir(last) and bool(os.listdir(last))


def read_config(workdir: str) -> dict:
  """The config a workdir was made with.

  Raises:
    InputError: there is none, or it is damaged.
  """
  path = os.path.join(workdir, 'config.json')
  if not os.path.exists(path):
    known = [d for d in _siblings(workdir) if os.path.exists(os.path.join(d, 'config.json'))]
    raise InputError(
      workdir,
      'is not the workdir of a run (it has no config.json)',
      f'{did_you_mean(workdir, known)}Give the --workdir of a trained run.',
    )
  return atomic_files.read_json(path, cure='Restore a copy of it, or choose another --workdir.')


def recorded_config(workdir: str) -> ml_collections.ConfigDict:
  """`read_config` for starting again from it: keys of later versions have their defaults."""
  return completed(read_config(workdir))


def completed(config: dict) -> ml_collections.ConfigDict:
  """A config that is recorded as JSON, with the defaults of keys of later versions."""
  return ml_collections.ConfigDict(_completed(config))


def _siblings(workdir: str) -> list[str]:
  parent = os.path.dirname(os.path.abspath(workdir))
  return [os.path.join(os.path.dirname(workdir), d) for d in os.listdir(parent)] if os.path.isdir(parent) else []


def store_path(config: ml_collections.ConfigDict, workdir: str) -> str:
  """Folder of the prepared scans of a config; runs that need the same voxels share one store."""
  if config.data.store:
    return config.data.store
  options = json.loads(config.data.to_json_best_effort())
  usual = default_config().data
  masks = {key: options.get(key, usual[key]) for key in ('organs', 'overlap')}
  choices = {key: value for key, value in masks.items() if value != usual[key]}  # other stores keep their names
  options = choices | {key: options[key] for key in ('dataset', 'size', 'spacing_mm', 'fit', 'interpolation')}
  options['root'] = os.path.abspath(config.data.root)
  digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]
  return os.path.join(os.path.dirname(os.path.abspath(workdir)), 'stores', f'{config.data.dataset}-{digest}')


def in_use(workdir: str) -> bool:
  """Whether a run holds a workdir, or is about to; nothing is written."""
  # Who claims a workdir holds `.claiming`, for which others wait, and then takes `.lock`, for which nobody waits: it
  # must not be taken from a run by this look.
  with locks.probed(os.path.join(workdir, '.claiming')) as claiming:
    if claiming:
      return True
    with locks.probed(os.path.join(workdir, '.lock')) as held:
      return held
