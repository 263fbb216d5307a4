"""Cross-validation: evaluates the runs of all folds and pools the held-out cases, each of them once."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Sequence

import ml_collections

from afw_jax import evaluate, prepare
from afw_jax import workdir as run_folder
from afw_jax.config import build
from afw_jax.data import run_record, store
from afw_jax.data.sets.case_files import abbreviate
from afw_jax.data.sets.split import Fold, parse_fold
from afw_jax.distributed import runtime
from afw_jax.errors import InputError
from afw_jax.inference import trained
from afw_jax.report.runs import POOLED, SETTINGS
from afw_jax.system import atomic_files, locks
from afw_jax.system.file_names import file_name
from afw_jax.training import checkpoint

_log = logging.getLogger('afw_jax')

_LOCK, _STAGING = '.lock', '.pooling'  # in the output
_EVALUATED = '.folds'  # in the output: results of the folds until all are there
_ALIKE = ('convention', 'nsd_tolerance_mm', *SETTINGS)  # options of an evaluation that decide its scores


@dataclasses.dataclass(frozen=True)
class _Run:
  """The run of one fold.

  Attributes:
    workdir: of the run.
    config: to evaluate it with.
    fold: that it holds out.
    meta: of the checkpoint that is scored.
    steps_done: of the training, by its last checkpoint.
  """

  workdir: str
  config: ml_collections.ConfigDict
  fold: Fold
  meta: dict
  steps_done: int

  @property
  def name(self) -> str:
    """'K/N'."""
    return f'{self.fold.number}/{self.fold.count}'

  @property
  def splits(self) -> dict[str, list[str]]:
    """Part -> the cases that it was trained and validated with."""
    return self.meta['data']['splits']


def pool(workdirs: Sequence[str], output: str, config: ml_collections.ConfigDict | None = None) -> None:
  """Scores every case by the network of the fold that held it out, and puts the results of all folds into one folder.

  Writes OUTPUT/cases, predictions and pictures, as an evaluation does, OUTPUT/config.json (without a fold) and
  OUTPUT/folds.json (the runs); `report` and `compare` read the folder like that of a run. The results that a run has in
  its workdir are taken where they are those of its held-out cases, its checkpoint as it is now and the same options; if
  not, the run is evaluated, and its workdir stays as it is. After an interruption the same call goes on.

  Args:
    workdirs: of the runs of all folds, in any order.
    output: folder of the pooled results.
    config: whose `eval`, `runtime`, `data.root` and `data.store` are used; None: those of each run.

  Raises:
    InputError: a fold is missing or given twice, a workdir is not the run of a fold, or the runs differ in more than
      the fold: config, cases, organs, options of the evaluation; or one cannot be evaluated (see `evaluate.evaluate`).
  """
  output = os.path.expanduser(output)
  runtime.check_same('--workdir', list(workdirs))
  runtime.check_same('--output', output)
  runs = _complete([_read(workdir, config) for workdir in workdirs])
  for run in runs[1:]:
    _check_alike(run, runs[0])
  run_record.check_folds({run.workdir: run.meta['data'] for run in runs})
  _check_output(output)
  with contextlib.ExitStack() as lock:
    cure = 'Wait until it ends, or choose another --output.'
    held = locks.locked(os.path.join(output, _LOCK), patience_s=0, cure=cure)
    runtime.on_process_zero(lambda: lock.enter_context(held))
    runtime.check_shared(os.path.join(output, _LOCK))
    sources = [_results(run, output) for run in runs]
    runtime.on_process_zero(lambda: _publish(runs, sources, output))


def _read(workdir: str, config: ml_collections.ConfigDict | None) -> _Run:
  """The run of a fold; raises InputError where the workdir holds none."""
  workdir = os.path.expanduser(workdir)
  own = run_folder.recorded_config(workdir)
  fold = parse_fold(own.data.fold)
  if fold is None:
    raise InputError(
      workdir,
      'is not the run of a fold (its data.fold is empty)',
      'Give the workdirs of all folds of one cross-validation (--config.data.fold=1/5, 2/5, ...).',
    )
  used = own
  if config is not None:
    used = config.copy_and_resolve_references()
    used.data.fold = own.data.fold
    _check_same_config(workdir, own, 'the --config', used)
  if used.eval.split == 'train':
    raise InputError('eval.split', "is 'train', but the held-out cases are pooled", "Use 'val'.")
  used.eval.split = 'val'
  meta = trained.read_meta(workdir, used.eval.checkpoint)[1]
  recorded = meta['data']
  if recorded['splits'] is None or recorded.get('fold', '') != own.data.fold:
    raise InputError(
      workdir,
      f'its checkpoint was not trained with the fold {own.data.fold} of its config.json',
      'Restore its config.json, or train this fold in a new --workdir.',
    )
  return _Run(workdir, used, fold, meta, trained.read_meta(workdir, 'last')[1]['step'])


def _complete(runs: list[_Run]) -> list[_Run]:
  """The runs in the order of their folds; raises InputError where these are not the N folds of N."""
  by_number: dict[int, _Run] = {}
  for run in runs:
    if run.fold.count != runs[0].fold.count:
      what = f'holds out fold {run.name}, {runs[0].workdir} {runs[0].name}: they are of other cross-validations'
      raise InputError(run.workdir, what, 'Give the folds of one.')
    other = by_number.setdefault(run.fold.number, run)
    if other is not run:
      raise InputError(run.workdir, f'holds out fold {run.name}, and so does {other.workdir}', 'Give each fold once.')
  count = runs[0].fold.count
  if missing := [f'{k}/{count}' for k in range(1, count + 1) if k not in by_number]:
    there = ', '.join(by_number[k].name for k in sorted(by_number))
    raise InputError(
      '--workdir',
      f'the fold(s) {", ".join(missing)} are missing, only {there} are given',
      'Add their workdirs: every case is to be held out once.',
    )
  return [by_number[k] for k in sorted(by_number)]


def _check_same_config(
  workdir: str, own: ml_collections.ConfigDict, where: str, other: ml_collections.ConfigDict
) -> None:
  """Raises InputError where the config of a run differs from another in more than the fold."""
  old, now = (json.loads(config.to_json_best_effort()) for config in (own, other))
  if differing := run_folder.differences(old, now, but=('data.fold',)):
    shown = '; '.join(f'{key} is {one!r}, there {another!r}' for key, (one, another) in differing.items())
    raise InputError(workdir, f'has another config than {where}: {shown}', 'Folds may differ in data.fold only.')


def _check_alike(run: _Run, first: _Run) -> None:
  """Raises InputError where two folds were not trained alike or are not to be evaluated alike."""
  _check_same_config(run.workdir, run.config, first.workdir, first.config)
  options, others = (json.loads(r.config.eval.to_json_best_effort()) for r in (run, first))
  for key in _ALIKE:
    if (one := options[key]) != (other := others[key]):
      raise InputError(
        run.workdir,
        f'has eval.{key} {one!r}, {first.workdir} has {other!r}',
        'Give the options for all folds: --config=... of the runs, and --config.eval....',
      )
  now, then = run.meta['data'], first.meta['data']
  for key, (one, other) in run_record.differences(now, then, ('name', 'organs', 'output_ids', 'options')).items():
    raise InputError(
      run.workdir, f'was trained with {key} {one}, {first.workdir} with {other}', 'Train all folds on the same data.'
    )


def _check_output(output: str) -> None:
  """Raises InputError where a folder holds anything but pooled results: it could be lost."""
  if os.path.exists(os.path.join(output, POOLED)):
    return
  try:
    others = sorted(set(os.listdir(output)) - {_LOCK, _EVALUATED, _STAGING})
  except FileNotFoundError:
    return
  except OSError as error:
    raise InputError(
      output, f'is no folder that can be used ({error.strerror})', 'Give a new one as --output.'
    ) from error
  if others:
    what = f'holds other files ({abbreviate(others)}), and no pooled results'
    raise InputError(output, what, 'Give a new folder as --output.')


def _results(run: _Run, output: str) -> str:
  """The folder with the results of a fold, which is evaluated if there are none yet."""
  store_dir = run_folder.store_path(run.config, run.workdir)
  runtime.on_process_zero(lambda: prepare.check_current(run.config, run.workdir, store_dir))
  index = runtime.from_process_zero(lambda: store.read_index(store_dir))
  contents = build.selection(run.config, index, run.meta).contents
  made_by = {case: evaluate.made_by(run.config, run.meta, contents[case]) for case in run.splits['val']}
  made_by = json.loads(atomic_files.to_json({case: {**made, 'fold': run.name} for case, made in made_by.items()}))
  evaluated = os.path.join(output, _EVALUATED, file_name(run.name))
  places = (run.workdir, evaluated, output)
  found = runtime.from_process_zero(lambda: next((p for p in places if _is_current(p, made_by)), None))
  if found is None:
    _log.info('fold %s: evaluating %s', run.name, run.workdir)
    evaluate.evaluate(run.config, run.workdir, store_dir, evaluated)
    if not runtime.from_process_zero(lambda: _is_current(evaluated, made_by)):
      cure = 'Wait until its training has ended, then start the same command again.'
      raise InputError(run.workdir, 'got another checkpoint while it was evaluated', cure)
    return evaluated
  _log.info('fold %s: the scores in %s are current', run.name, found)
  return found


def _is_current(folder: str, made_by: dict[str, dict]) -> bool:
  """Whether a folder has whole results of all cases, made from what they would be made from now."""
  for case, wanted in made_by.items():
    path = os.path.join(folder, 'cases', f'{file_name(case)}.json')
    if not os.path.exists(path) or not os.path.exists(_label_map(folder, case)):
      return False
    try:
      there = atomic_files.read_json(path, cure='')
    except InputError:  # damaged: made again
      return False
    if any(there.get(key) != value for key, value in {**wanted, 'case': case, 'split': 'val'}.items()):
      return False
  return True


def _label_map(folder: str, case: str) -> str:
  return os.path.join(folder, 'predictions', f'{file_name(case)}.nii.gz')


def _publish(runs: Sequence[_Run], sources: Sequence[str], output: str) -> None:
  """Copies the results of all folds into the output, in place of what was there."""
  staging = os.path.join(output, _STAGING)
  shutil.rmtree(staging, ignore_errors=True)
  with atomic_files.write_errors(output):
    for name in evaluate.RESULTS:
      os.makedirs(os.path.join(staging, name))
    for run, source in zip(runs, sources):
      for case in run.splits['val']:
        for name, ending in zip(evaluate.RESULTS, ('.json', '.nii.gz', '.png')):
          path = os.path.join(name, file_name(case) + ending)
          if os.path.exists(os.path.join(source, path)):  # not every case has a picture
            shutil.copyfile(os.path.join(source, path), os.path.join(staging, path))
    shutil.rmtree(os.path.join(output, 'cases'), ignore_errors=True)  # without them nothing is reported
    config = runs[0].config.copy_and_resolve_references()
    config.data.fold = ''
    atomic_files.write_json(os.path.join(output, POOLED), {'folds': [_entry(run) for run in runs]})
    atomic_files.write_json(os.path.join(output, 'config.json'), json.loads(config.to_json_best_effort()))
    atomic_files.write_json(os.path.join(output, 'environment.json'), run_folder.environment())
    evaluate.publish(output, staging)
  shutil.rmtree(os.path.join(output, _EVALUATED), ignore_errors=True)
  for run in runs:
    if run.steps_done < run.meta['total_steps']:
      _log.warning(
        'fold %s is not trained to its end: %d of %d steps', run.name, run.steps_done, run.meta['total_steps']
      )


def _entry(run: _Run) -> dict:
  return {
    'fold': run.name,
    'workdir': os.path.abspath(run.workdir),
    'cases': run.splits['val'],
    'checkpoint_step': run.meta['step'],
    'checkpoint_sha256': checkpoint.digest(run.meta),
    'step': run.steps_done,
    'total_steps': run.meta['total_steps'],
  }
