"""Command-line entry point: turns flags into one of the modes.

afw-jax --config=synapse --workdir=runs/synapse              (installed; `afw-jax --help` lists the modes)
python -m afw_jax.main --config=configs/synapse.py ...       (the same, in a clone)
"""

import errno
import logging
import os
import sys

from afw_jax.distributed import xla_flags
from afw_jax.errors import InputError, InputErrors
from afw_jax.system import terminal

terminal.open_missing_streams()
# Before jax is imported: it reads these variables then.
try:
  xla_flags.check_device_count()
except InputError as error:
  print(f'\nerror: {error}', file=sys.stderr)
  sys.exit(2)
xla_flags.set_cpu_flags()

import ml_collections  # noqa: E402
from absl import app, flags  # noqa: E402
from absl import logging as absl_logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from afw_jax import command_line, cross_validation, evaluate, import_run, predict, prepare, train  # noqa: E402
from afw_jax import workdir as run_folder  # noqa: E402
from afw_jax.config.check import check_config  # noqa: E402
from afw_jax.data.selection import scored_split  # noqa: E402
from afw_jax.distributed import devices, launchers, runtime  # noqa: E402
from afw_jax.planning import plan  # noqa: E402
from afw_jax.report import comparison, report  # noqa: E402
from afw_jax.system import atomic_files  # noqa: E402

MODES = ('all', 'prepare', 'train', 'evaluate', 'report', 'compare', 'predict', 'convert', 'plan')
_TRAINING_MODES = ('all', 'prepare', 'train', 'evaluate')
_MODES_OF_SEVERAL = ('compare', 'evaluate', 'predict')
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
_DEFAULT_CACHE = '~/.cache/afw_jax/xla'
_log = logging.getLogger('afw_jax')

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Name of a shipped config, or path of a config file.')
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Folder of the run; default: runs/NAME_OF_THE_CONFIG. compare, evaluate, predict: several with commas.',
)
_MODE = flags.DEFINE_enum('mode', 'all', MODES, 'What to do.')
_INPUT = flags.DEFINE_string(
  'input',
  None,
  'predict: a NIfTI file, a DICOM series folder, or a folder of scans. convert: a file of PyTorch weights.',
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'predict: a folder, or a .nii.gz file for one scan. evaluate, folds: a folder. compare: a .md file.'
)
_CHECKPOINT = flags.DEFINE_enum('checkpoint', 'best', ('best', 'last'), 'predict: which checkpoint.')
_PROBABILITIES = flags.DEFINE_bool('probabilities', False, 'predict: also write the probability of each organ.')
_LARGEST = flags.DEFINE_bool(
  'largest_component', False, 'predict: keep the largest connected component of each organ only.'
)
_OVERLAP = flags.DEFINE_float(
  'overlap', None, 'predict: overlap of neighbouring patches, as a share of their size; default: eval.overlap.', 0, 0.99
)
_MIRROR = flags.DEFINE_list(
  'mirror_axes', [], 'predict: spatial axes to mirror and average over (test-time augmentation).'
)
_TARGET = flags.DEFINE_string(
  'target', 'cpu', 'plan: the accelerator to compile for: cpu, a100_40, a100, h100, h200 or v5e.'
)
_DEVICES = flags.DEFINE_string(
  'devices', '', 'plan: numbers of devices, or meshes data x spatial: 1,8,4x2. Default: 1 to 16.'
)
_MEMORY = flags.DEFINE_float('memory_gib', None, 'plan: memory of one device, where it differs from the usual one.')
_STRICT = flags.DEFINE_bool('strict', False, 'predict: exit code 2 also where files were passed over as no scans.')
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'predict: make label maps again that are there, and replace files of others.'
)
_SHARD = flags.DEFINE_string(
  'shard', '', 'prepare: i/n, from 0: prepare every n-th case from the i-th on. Default: by the SLURM array task.'
)
_SCHEDULER = flags.DEFINE_string('scheduler', None, 'prepare: address or scheduler file of a Dask cluster.')
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'Distributed: HOST:PORT of process 0; auto: from the TPU metadata.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Distributed: number of processes; 1: a single process, whatever the environment says.'
)
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Distributed: rank of this process, from 0.')


def main() -> None:
  """Runs the command line. A user error ends in one line on stderr and exit code 2."""
  terminal.keep_streams_open()
  if len(sys.argv) == 1 or {'-h', '-help', '--help'} & set(sys.argv[1:]):
    print(command_line.help_text(), end='')
    sys.exit(0 if sys.argv[1:] else 2)
  try:
    sys.argv = command_line.normalise(sys.argv)  # ml_collections reads the overridden keys from sys.argv itself
  except InputError as error:
    terminal.fail(str(error))
  app.run(_run, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, ImportError, OSError) as error:
    while error.args and isinstance(error.args[0], Exception):
      error = error.args[0]
    lines = [line.strip() for line in str(error.args[0] if error.args else error).splitlines() if line.strip()]
    last = lines[-1] if len(lines) > 1 else ''
    what = f'{lines[0].split("Error whilst")[0]} {last}'
    terminal.fail(f'{what} (--help lists the options and where the config keys are)')


def _run(argv: list[str]) -> None:
  try:
    if argv[1:]:
      raise InputError(argv[1], 'is not an option', 'Options start with --; see --help.')
    _dispatch()
    if lost := terminal.lost_output():
      terminal.fail(f'what was printed could not be written ({lost}), but the work is done. Free space on the disk.')
  except (InputError, InputErrors, FloatingPointError) as error:
    terminal.fail(str(error))
  except KeyboardInterrupt:
    sys.stdout.flush()
    print('interrupted', file=sys.stderr, flush=True)
    os._exit(130)
  except OSError as error:
    if error.errno not in _DISK_ERRORS:
      raise
    terminal.fail(
      f'{error.filename or _WORKDIR.value}: cannot be written ({error.strerror}). '
      'Free space on the disk or mend the permissions, then start the same command again: what was saved is kept.'
    )


def _dispatch() -> None:
  _set_up_logging()
  mode, config = _MODE.value, _CONFIG.value
  workdirs = command_line.split_workdirs(_WORKDIR.value or '', several=mode in _MODES_OF_SEVERAL)
  pools = mode == 'evaluate' and len(workdirs) > 1
  if config is not None:
    command_line.expand_paths(config)
    if config.runtime.deterministic:
      xla_flags.set_deterministic()  # before the first array
  elif mode in (*_TRAINING_MODES, 'convert', 'plan') and not pools:
    raise InputError('--config', 'is not given', f'--mode={mode} needs one, for instance --config=demo.')
  if mode == 'plan':
    plan.plan(config, _TARGET.value, _DEVICES.value, _MEMORY.value)
    return
  if _SHARD.value and mode != 'prepare':
    raise InputError(
      '--shard',
      f'is an option of --mode=prepare, and this is --mode={mode}',
      'Prepare the shards first, then train without --shard.',
    )
  if _OUTPUT.value and mode in _TRAINING_MODES and not pools:
    raise InputError('--output', f'is not an option of --mode={mode} with one run', 'Its folder is the --workdir.')
  workdir, *others = workdirs or [_default_workdir()]
  process = launchers.resolve_process(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  computes = mode in ('all', 'train', 'evaluate', 'predict')
  if computes or (process and process.process_id is None):
    runtime.start(process, config.runtime.platform if computes and config is not None else '')
  elif process and process.process_id:
    return  # process 0 does the work of these modes alone
  elif mode in ('prepare', 'convert'):
    devices.start()  # any will do
  if computes:
    _log.info('running on %s', devices.describe())
  devices.keep_compiled_programs(config.runtime.compilation_cache if config is not None else _DEFAULT_CACHE)
  if pools:
    _pool(workdirs, config)
  elif mode in _TRAINING_MODES:
    _train_and_score(mode, config, workdir)
  elif mode == 'predict':
    _predict([workdir, *others])
  elif mode == 'compare':
    runtime.on_process_zero(lambda: _compare([workdir, *others]))
  else:
    runtime.on_process_zero(lambda: {'report': _report, 'convert': _convert}[mode](workdir))


def _set_up_logging() -> None:
  absl_logging.set_verbosity(absl_logging.INFO)
  absl_logging.get_absl_handler().setFormatter(None)
  absl_logging.get_absl_handler().python_handler.setStream(sys.stderr)
  for library in ('absl', 'jax'):  # Orbax logs every step of every save, jax every backend that is not installed
    logging.getLogger(library).setLevel(logging.WARNING)


def _default_workdir() -> str:
  if _CONFIG.value is None:
    raise InputError('--workdir', 'is not given', 'Name the folder of the run: --workdir=runs/NAME.')
  path = config_flags.get_config_filename(flags.FLAGS['config']).split(':')[0]
  return os.path.join('runs', os.path.splitext(os.path.basename(path))[0])


def _path(flag: flags.FlagHolder, cure: str) -> str:
  if not flag.value:
    raise InputError(f'--{flag.name}', 'is not given', cure)
  return os.path.expanduser(flag.value)


def _train_and_score(mode: str, config: ml_collections.ConfigDict, workdir: str) -> None:
  if mode != 'prepare':
    check_config(config, fresh=not run_folder.begun(workdir))  # before any long work
  with run_folder.claimed(workdir, config, hold=mode != 'prepare'):  # a preparation writes into the store only
    _stages(mode, config, workdir)


def _stages(mode: str, config: ml_collections.ConfigDict, workdir: str) -> None:
  store_dir = run_folder.store_path(config, workdir)
  if mode in ('all', 'prepare'):
    runtime.on_process_zero(
      lambda: prepare.prepare(
        config,
        workdir,
        store_dir,
        anew=mode == 'prepare',
        shard=_SHARD.value,
        scheduler=_SCHEDULER.value and os.path.expanduser(_SCHEDULER.value),
      )
    )
  else:
    runtime.on_process_zero(lambda: prepare.check_current(config, workdir, store_dir))
  if mode in ('all', 'train'):
    splits = train.train(config, workdir, store_dir)
    if mode == 'all' and scored_split(splits, config.eval.split) is None:
      print(f'Trained: {workdir}. The split {config.eval.split!r} has no case, so there are no scores and no report.')
      return
  if mode in ('all', 'evaluate'):
    evaluate.evaluate(config, workdir, store_dir)
    runtime.on_process_zero(lambda: _report(workdir))


def _convert(workdir: str) -> None:
  weights = _path(_INPUT, 'Give the file of weights: .safetensors, .npz, .pth or .pt.')
  check_config(_CONFIG.value)
  import_run.import_run(_CONFIG.value, workdir, weights)
  print(f'{weights} -> {workdir}: a run that predicts, evaluates or trains on.')


def _report(workdir: str) -> None:
  for line in report.summary(workdir):
    print(line)


def _pool(workdirs: list[str], config: ml_collections.ConfigDict | None) -> None:
  if config is not None:
    check_config(config)
  output = _path(_OUTPUT, 'Give a new folder for the pooled scores of the folds.')
  cross_validation.pool(workdirs, output, config)
  runtime.on_process_zero(lambda: _report(output))


def _compare(workdirs: list[str]) -> None:
  text = comparison.compare(workdirs)
  print(text)
  if _OUTPUT.value:
    atomic_files.write_text(os.path.expanduser(_OUTPUT.value), text)


def _predict(workdirs: list[str]) -> None:
  outcome = predict.predict_all(
    workdirs,
    _path(_INPUT, 'Give a scan (.nii, .nii.gz), a DICOM series folder, or a folder of scans.'),
    _path(_OUTPUT, 'Give a folder for the label maps, or a .nii.gz file for one scan.'),
    which=_CHECKPOINT.value,
    mirror_axes=tuple(int(axis) if axis.isdecimal() else axis for axis in _MIRROR.value),
    largest_component=_LARGEST.value,
    save_probabilities=_PROBABILITIES.value,
    overlap=_OVERLAP.value,
    overwrite=_OVERWRITE.value,
    matmul_precision=_CONFIG.value and _CONFIG.value.runtime.matmul_precision,
  )
  if runtime.process_index() == 0:
    print(command_line.prediction_text(outcome))
  failed = list(outcome.failed)
  if _STRICT.value and outcome.passed_over:
    cure = 'Move these files away, or predict without --strict.'
    failed.append(InputError('--strict', f'{len(outcome.passed_over)} files or folders were passed over', cure))
  if failed:
    runtime.barrier()
    if runtime.process_index():
      os._exit(2)  # process 0 says what failed
    raise failed[0] if len(failed) == 1 else InputErrors(failed)


if __name__ == '__main__':
  main()
