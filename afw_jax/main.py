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
from afw_jax.system import allocator, terminal

terminal.open_missing_streams()
# Before jax is imported: it reads these variables then.
try:
  xla_flags.check_device_count()
except InputError as error:
  print(f'\nerror: {error}', file=sys.stderr)
  sys.exit(2)
xla_flags.set_cpu_flags()
if xla_flags.is_for_cpu():
  allocator.keep_freed_memory()

import ml_collections  # noqa: E402
from absl import app, flags  # noqa: E402
from absl import logging as absl_logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from afw_jax import (  # noqa: E402
  check,
  command_line,
  cross_validation,
  evaluate,
  export_model,
  import_run,
  options,
  predict,
  prepare,
  train,
  view,
)
from afw_jax import workdir as run_folder  # noqa: E402
from afw_jax.config.check import check_config  # noqa: E402
from afw_jax.data.selection import scored_split  # noqa: E402
from afw_jax.distributed import devices, launchers, runtime  # noqa: E402
from afw_jax.paper import paper  # noqa: E402
from afw_jax.planning import plan  # noqa: E402
from afw_jax.report import comparison, report  # noqa: E402
from afw_jax.report.blocks import markdown  # noqa: E402
from afw_jax.report.page import pages  # noqa: E402

_TRAINING_MODES = ('all', 'prepare', 'train', 'evaluate')
_MODES_OF_SEVERAL = ('compare', 'evaluate', 'predict', 'export')
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
_DEFAULT_CACHE = '~/.cache/afw_jax/xla'
_log = logging.getLogger('afw_jax')


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
  app.run(_run, flags_parser=options.parse)


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
      f'{error.filename or options.WORKDIR.value}: cannot be written ({error.strerror}). '
      'Free space on the disk or mend the permissions, then start the same command again: what was saved is kept.'
    )


def _dispatch() -> None:
  _set_up_logging()
  mode, config = options.MODE.value, options.CONFIG.value
  workdirs = command_line.split_workdirs(options.WORKDIR.value or '', several=mode in _MODES_OF_SEVERAL)
  for workdir in workdirs if mode not in ('predict', 'export') else ():
    if os.path.isfile(workdir):
      cure = f'A model file becomes a run by --mode=import --input={workdir} --workdir=FOLDER.'
      raise InputError(workdir, f'is a file, and --mode={mode} takes the folder of a run', cure)
  pools = mode == 'evaluate' and len(workdirs) > 1
  if config is None and mode in (*_TRAINING_MODES, 'check', 'convert', 'plan', 'paper') and not pools:
    raise InputError('--config', 'is not given', f'--mode={mode} needs one, for instance --config=demo.')
  options.check(mode, config)
  if mode == 'paper':
    _paper(config, (workdirs or [_default_workdir()])[0])
    return
  if config is not None:
    command_line.expand_paths(config)
    if config.runtime.deterministic:
      xla_flags.set_deterministic()  # before the first array
  if mode == 'plan':
    plan.plan(config, options.TARGET.value, options.DEVICES.value, options.MEMORY.value)
    return
  if options.OUTPUT.value and mode in _TRAINING_MODES and not pools:
    raise InputError('--output', f'is not an option of --mode={mode} with one run', 'Its folder is the --workdir.')
  workdir, *others = workdirs or [_default_workdir()]
  process = launchers.resolve_process(options.COORDINATOR.value, options.NUM_PROCESSES.value, options.PROCESS_ID.value)
  computes = mode in ('all', 'train', 'evaluate', 'predict')
  if computes or (process and process.process_id is None):
    runtime.start(process, config.runtime.platform if computes and config is not None else '')
  elif process and process.process_id:
    return  # process 0 does the work of these modes alone
  elif mode in ('prepare', 'convert', 'export', 'import'):
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
  elif mode in ('compare', 'export'):
    runtime.on_process_zero(lambda: {'compare': _compare, 'export': _export}[mode]([workdir, *others]))
  elif mode == 'check':
    memory = options.MEMORY.value
    resampled = options.RESAMPLE.value
    runtime.on_process_zero(lambda: check.check(config, workdir, options.TARGET.value, memory, resampled))
  else:
    alone = {'report': _report, 'convert': _convert, 'import': _import, 'view': _view}[mode]
    runtime.on_process_zero(lambda: alone(workdir))


def _paper(config: ml_collections.ConfigDict, workdir: str) -> None:
  process = launchers.resolve_process(options.COORDINATOR.value, options.NUM_PROCESSES.value, options.PROCESS_ID.value)
  if process and process.num_processes != 1:
    cure = 'Start it once, or as the tasks of a job array (--shard=i/n).'
    raise InputError('--mode=paper', 'was started as several processes of one run', cure)
  paper.make(
    config,
    workdir,
    options.SEEDS.value,
    shard=options.SHARD.value,
    dry_run=options.DRY_RUN.value,
    collect_only=options.COLLECT.value,
  )


def _set_up_logging() -> None:
  absl_logging.set_verbosity(absl_logging.INFO)
  absl_logging.get_absl_handler().setFormatter(None)
  absl_logging.get_absl_handler().python_handler.setStream(sys.stderr)
  for library in ('absl', 'jax'):  # Orbax logs every step of every save, jax every backend that is not installed
    logging.getLogger(library).setLevel(logging.WARNING)


def _default_workdir() -> str:
  if options.CONFIG.value is None:
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
        resample_dicom=options.RESAMPLE.value,
        shard=options.SHARD.value,
        scheduler=options.SCHEDULER.value and os.path.expanduser(options.SCHEDULER.value),
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
  weights = _path(options.INPUT, 'Give the file of weights: .safetensors, .npz, .pth or .pt.')
  check_config(options.CONFIG.value)
  import_run.import_run(options.CONFIG.value, workdir, weights)
  print(f'{weights} -> {workdir}: a run that predicts, evaluates or trains on.')


def _export(workdirs: list[str]) -> None:
  output = _path(options.OUTPUT, 'Give the model file to write: --output=model.zip.')
  path, found = export_model.export_model(
    workdirs, output, which=options.CHECKPOINT.value, overwrite=options.OVERWRITE.value
  )
  print(f'{", ".join(workdirs)} -> {path}: {found}.')


def _import(workdir: str) -> None:
  model = _path(options.INPUT, 'Give the model file: --input=model.zip.')
  for made in import_run.import_model(model, workdir):
    print(f'{model} -> {made}: a run that predicts, evaluates or trains on.')


def _report(workdir: str) -> None:
  for line in report.summary(workdir):
    print(line)


def _pool(workdirs: list[str], config: ml_collections.ConfigDict | None) -> None:
  if config is not None:
    check_config(config)
  output = _path(options.OUTPUT, 'Give a new folder for the pooled scores of the folds.')
  cross_validation.pool(workdirs, output, config)
  runtime.on_process_zero(lambda: _report(output))


def _view(workdir: str) -> None:
  view.view(workdir, options.PORT.value)


def _compare(workdirs: list[str]) -> None:
  blocks = comparison.collect(workdirs)
  print(markdown(blocks))
  if options.OUTPUT.value:
    pages.write_beside(os.path.expanduser(options.OUTPUT.value), blocks)


def _predict(workdirs: list[str]) -> None:
  output = _path(options.OUTPUT, 'Give a folder for the label maps, or a .nii.gz file for one scan.')
  page = pages.place_beside(output) if options.PAGE.value else ''
  outcome = predict.predict_all(
    workdirs,
    _path(options.INPUT, 'Give a scan (.nii, .nii.gz), a DICOM series folder, or a folder of scans.'),
    output,
    which=options.CHECKPOINT.value,
    mirror_axes=tuple(int(axis) if axis.isdecimal() else axis for axis in options.MIRROR.value),
    largest_component=options.LARGEST.value,
    save_probabilities=options.PROBABILITIES.value,
    overlap=options.OVERLAP.value,
    overwrite=options.OVERWRITE.value,
    file_format=options.FORMAT.value,
    resample_dicom=options.RESAMPLE.value,
    matmul_precision=options.CONFIG.value and options.CONFIG.value.runtime.matmul_precision,
  )
  if runtime.process_index() == 0:
    print(command_line.prediction_text(outcome))
    if page:
      print(f'Page: {pages.write_predictions(page)}')
  failed = list(outcome.failed)
  if options.STRICT.value and outcome.passed_over:
    cure = 'Move these files away, or predict without --strict.'
    failed.append(InputError('--strict', f'{len(outcome.passed_over)} files or folders were passed over', cure))
  if failed:
    runtime.barrier()
    if runtime.process_index():
      os._exit(2)  # process 0 says what failed
    raise failed[0] if len(failed) == 1 else InputErrors(failed)


if __name__ == '__main__':
  main()
