"""The door: `python -m afw_jax.main --config=configs/synapse.py --workdir=runs/synapse`.

Modes: prepare, train, evaluate, report, compare, predict, convert, plan; all (the default) = prepare where there is no store, then
train, evaluate and report. The same command again goes on where it stopped.
"""

import errno
import glob
import logging
import os
import sys

from afw_jax.distributed import launchers, xla_flags

xla_flags.set_cpu_flags()  # before jax is imported

import jax  # noqa: E402
import ml_collections  # noqa: E402
from absl import app, flags  # noqa: E402
from absl import logging as absl_logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from afw_jax import evaluate, import_run, predict, train  # noqa: E402
from afw_jax import workdir as run_folder  # noqa: E402
from afw_jax.config import build  # noqa: E402
from afw_jax.data.preparation import dask_cluster, prepare  # noqa: E402
from afw_jax.distributed import runtime  # noqa: E402
from afw_jax.errors import InputError, InputErrors  # noqa: E402
from afw_jax.planning import plan  # noqa: E402
from afw_jax.report import report  # noqa: E402

_log = logging.getLogger('afw_jax')
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
MODES = ('all', 'prepare', 'train', 'evaluate', 'report', 'compare', 'predict', 'convert', 'plan')
_CONFIG = config_flags.DEFINE_config_file('config', None, 'Path of a config file, configs/*.py.', lock_config=True)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; by default runs/<name of the config>. compare: several, with commas.'
)
_MODE = flags.DEFINE_enum('mode', 'all', MODES, 'What to do.')
_SHARD = flags.DEFINE_string(
  'shard',
  '',
  'prepare: i/n, from 0: the i-th of n shares of the cases; several hosts do one each. By default as the SLURM array says.',
)
_SCHEDULER = flags.DEFINE_string(
  'scheduler', None, 'prepare: on the workers of a Dask cluster: its address or its scheduler file.'
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'Several processes: HOST:PORT of process 0, the same for all; auto: as the TPU says.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Several processes: how many; 1: this one alone, whatever the environment says.'
)
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Several processes: which this is, from 0.')
_TARGET = flags.DEFINE_string(
  'target', 'cpu', 'plan: for which devices: cpu, a100_40, a100, h100, h200 or v5e. None has to be there.'
)
_DEVICES = flags.DEFINE_string(
  'devices', '', 'plan: for how many, or for which meshes, data x spatial: 1,8,4x2. By default 1 to 16.'
)
_MEMORY = flags.DEFINE_float(
  'memory_gib', None, 'plan: memory of one device, where it differs from what such a device has.'
)
_INPUT = flags.DEFINE_string(
  'input', None, 'predict: a NIfTI file, a DICOM folder, or a folder of scans. convert: a file of PyTorch weights.'
)
_OUTPUT = flags.DEFINE_string('output', None, 'predict: a folder, or a .nii.gz file for one scan. compare: a .md file.')
_CHECKPOINT = flags.DEFINE_enum('checkpoint', 'best', ('best', 'last'), 'predict: which checkpoint.')
_PROBABILITIES = flags.DEFINE_bool('probabilities', False, 'predict: also write the probability of each organ.')
_LARGEST = flags.DEFINE_bool('largest_component', False, 'predict: keep the largest connected part of each organ only.')
_OVERLAP = flags.DEFINE_float(
  'overlap', None, 'predict: share of a window (3D) that its neighbour covers again; by default eval.overlap.', 0, 0.99
)
_MIRROR = flags.DEFINE_list('mirror_axes', [], 'predict: average over mirrored axes, 0 the first of the network.')


def main() -> None:
  """Entry of the command line: a mistake of the user's ends in one clear line and exit code 2."""
  app.run(_run, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, ImportError, OSError) as error:
    while error.args and isinstance(error.args[0], Exception):
      error = error.args[0]
    lines = [line.strip() for line in str(error.args[0] if error.args else error).splitlines() if line.strip()]
    _fail(
      f'{lines[0].split("Error whilst")[0]} {lines[-1] if len(lines) > 1 else ""} '
      '(options: --help; the keys of a config and their defaults: configs/common.py)'
    )
  path = (
    config_flags.get_config_filename(flags.FLAGS['config']).split(':')[0] if flags.FLAGS['config'].present else None
  )
  if path is not None and not os.path.isfile(path):
    near = sorted(glob.glob('configs/*.py'))
    _fail(
      f'--config={path}: no such file. '
      + (f'Use one of {", ".join(near)}.' if near else 'Run from the folder that holds configs/.')
    )
  return rest


def _run(argv: list[str]) -> None:
  try:
    if argv[1:]:
      raise InputError(argv[1], 'is not an option', 'Options start with --; see --help.')
    _dispatch()
  except (InputError, InputErrors, FloatingPointError) as error:
    _fail(str(error))
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr, flush=True)
    os._exit(130)
  except OSError as error:
    if error.errno not in _DISK:
      raise
    _fail(
      f'{error.filename or _WORKDIR.value}: cannot be written ({error.strerror}). '
      'Free space on the disk or mend the permissions, then start the same command again: what was saved is kept.'
    )


def _fail(message: str) -> None:
  sys.stdout.flush()
  sys.stderr.flush()
  # Threads that still read or write (checkpoints, events) would write into this line: it leaves by a way of its own.
  terminal = os.dup(2)
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  os.write(terminal, f'\nerror: {message}\n'.encode())
  os._exit(2)


def _dispatch() -> None:
  mode, config, workdir = _MODE.value, _CONFIG.value, _WORKDIR.value
  absl_logging.set_verbosity(absl_logging.INFO)
  absl_logging.get_absl_handler().setFormatter(None)
  for library in ('absl', 'jax'):  # Orbax tells every step of every save, jax every backend that is not there
    logging.getLogger(library).setLevel(logging.WARNING)
  if config is not None and config.runtime.deterministic:
    xla_flags.set_deterministic()  # before the first array
  if mode == 'plan':
    if config is None:
      raise InputError('--config', 'is not given', '--mode=plan needs one, for instance --config=configs/demo.py.')
    plan.plan(config, _TARGET.value, _DEVICES.value, _MEMORY.value)
    return
  if _SHARD.value and mode != 'prepare':
    raise InputError(
      '--shard',
      f'divides the preparing, and this is --mode={mode}',
      'Prepare the shares with --mode=prepare, then train without --shard.',
    )
  place = launchers.resolve_process(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  if mode in ('all', 'train', 'evaluate', 'predict') or (
    place and place.process_id is None
  ):  # which it is, the others know
    runtime.start(place)
  elif place and place.process_id:
    return  # nothing to share out
  if workdir is None:
    if _CONFIG.value is None:
      raise InputError('--workdir', 'is not given', 'Say where the run lies: --workdir=runs/NAME.')
    path = config_flags.get_config_filename(flags.FLAGS['config'])
    workdir = os.path.join('runs', os.path.splitext(os.path.basename(path.split(':')[0]))[0])
  if mode == 'predict':
    _predict(workdir)
  elif mode == 'report':
    runtime.on_process_zero(lambda: _report(workdir))
  elif mode == 'compare':
    runtime.on_process_zero(lambda: _compare(workdir.split(',')))
  elif config is None:
    raise InputError('--config', 'is not given', f'--mode={mode} needs one, for instance --config=configs/demo.py.')
  elif mode == 'convert':
    runtime.on_process_zero(lambda: _convert(config, workdir))
  else:
    _train_and_score(mode, config, workdir)


def _cache(folder: str) -> None:
  """Compiled programs are kept, so that the next start of the same run begins at once."""
  if folder and not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    jax.config.update('jax_compilation_cache_dir', os.path.expanduser(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def _train_and_score(mode: str, config: ml_collections.ConfigDict, workdir: str) -> None:
  _cache(config.runtime.compilation_cache)
  if mode != 'prepare':
    build.check(config, fresh=not run_folder.begun(workdir))  # before any long work
  with run_folder.claimed(workdir, config, hold=mode != 'prepare'):  # a preparation writes into the store only
    _stages(mode, config, workdir)


def _stages(mode: str, config: ml_collections.ConfigDict, workdir: str) -> None:
  store_dir = run_folder.store_path(config, workdir)
  if mode in ('all', 'prepare'):
    runtime.on_process_zero(
      lambda: _prepare(
        config.data, store_dir, config.runtime.workers, anew=mode == 'prepare', begun=run_folder.begun(workdir)
      )
    )
  if mode in ('all', 'train'):
    train.train(config, workdir, store_dir)
  if mode in ('all', 'evaluate'):
    evaluate.evaluate(config, workdir, store_dir)
    runtime.on_process_zero(lambda: _report(workdir))


def _prepare(data: ml_collections.ConfigDict, store_dir: str, workers: int, *, anew: bool, begun: bool) -> None:
  choices = build.data_choices(data)
  if os.path.exists(os.path.join(store_dir, 'dataset.json')) and not anew:
    differing = prepare.differences(store_dir, data.dataset, data.root, **choices)
    if differing:
      raise InputError(
        store_dir,
        f'this store was prepared otherwise: {differing} (in the store, wanted)',
        'Choose another data.store, or prepare it anew with --mode=prepare.',
      )
    new = [] if begun or not os.path.isdir(data.root) else prepare.added(store_dir, data.dataset, data.root, **choices)
    if not new:  # a run that has begun keeps to the cases it began with
      return
    _log.info('%d scans are new in %s (%s ...): preparing them', len(new), data.root, new[0])
  index = prepare.prepare(
    data.dataset,
    data.root,
    store_dir,
    workers=workers or None,
    scheduler=_SCHEDULER.value,
    shard=dask_cluster.parse_shard(_SHARD.value, os.environ) if anew else None,
    **choices,
  )
  if index is None:  # other shards are still at work
    return
  for case_id, reason in index['excluded'].items():
    _log.warning('left out: %s (%s)', case_id, reason)
  for note in index['notes']:
    _log.info('%s', note)
  _log.info('prepared %s into %s', ', '.join(f'{len(ids)} {part}' for part, ids in index['splits'].items()), store_dir)


def _convert(config: ml_collections.ConfigDict, workdir: str) -> None:
  if not _INPUT.value:
    raise InputError('--input', 'is not given', 'Give the file of weights: .safetensors, .npz, .pth or .pt.')
  build.check(config)
  import_run.import_run(config, workdir, _INPUT.value)
  print(f'{_INPUT.value} -> {workdir}: predict or evaluate with it, or train on from it.')


def _report(workdir: str) -> None:
  for line in report.summary(workdir):
    print(line)


def _compare(workdirs: list[str]) -> None:
  text = report.compare(workdirs)
  print(text)
  if _OUTPUT.value:
    with open(_OUTPUT.value, 'w') as f:
      f.write(text)


def _predict(workdir: str) -> None:
  if not (_INPUT.value and _OUTPUT.value):
    raise InputError(
      '--input and --output', 'are both needed to predict', 'Give a scan or a folder of scans, and where to write.'
    )
  _cache('~/.cache/afw_jax/xla')
  rows = predict.predict(
    workdir,
    _INPUT.value,
    _OUTPUT.value,
    which=_CHECKPOINT.value,
    mirror_axes=tuple(int(a) if a.isdecimal() else a for a in _MIRROR.value),
    largest_component=_LARGEST.value,
    save_probabilities=_PROBABILITIES.value,
    overlap=_OVERLAP.value,
  )
  if runtime.process_index():
    return
  organs = list(rows[0]['volume_ml'])
  print('\nOrgan volumes, mL\n' + ''.join(f'{name:>14}' for name in ('scan', *organs)))
  for row in rows:
    print(f'{row["scan"][-14:]:>14}' + ''.join(f'{row["volume_ml"][organ]:14.1f}' for organ in organs))
  print(f'\nLabel maps: {rows[0]["output"]}' + (f' and {len(rows) - 1} more' if len(rows) > 1 else ''))


if __name__ == '__main__':
  main()
