"""Training: runs the epochs of a config, with validation, checkpoints and metrics, and resumes where it was stopped."""

import contextlib
import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Callable

import jax
import ml_collections

from afw_jax import models
from afw_jax.config import build, initial
from afw_jax.config.program import Program, make_program
from afw_jax.data import pipeline, resources, run_record, store, usual
from afw_jax.data.selection import Selection, scored_split
from afw_jax.data.sets import channels
from afw_jax.data.sets.case_files import abbreviate
from afw_jax.distributed import runtime, sharding, signals
from afw_jax.errors import InputError
from afw_jax.inference import forward, segmentation, validation
from afw_jax.system.atomic_files import write_json
from afw_jax.training import checkpoint, checkpoint_writer, metric_writer, progress, step, tracker

_log = logging.getLogger('afw_jax')


@dataclasses.dataclass(frozen=True)
class _Data:
  """The training data of a run.

  Attributes:
    description: of the data, as its checkpoints record it.
    selection: its cases, their split and their intensity windows.
    source: the training samples.
    class_names: background included.
    steps_per_epoch: steps of one epoch.
    total_steps: steps of all epochs.
  """

  description: dict
  selection: Selection
  source: pipeline.Source
  class_names: tuple[str, ...]
  steps_per_epoch: int
  total_steps: int


def train(config: ml_collections.ConfigDict, workdir: str, store_dir: str) -> dict[str, list[str]]:
  """Trains until the configured number of epochs; goes on from the last checkpoint where there is one.

  The caller keeps other runs out of the workdir (`workdir.claimed`).

  Args:
    config: as `config.default_config` describes it.
    workdir: where checkpoints, metrics.jsonl and TensorBoard events go.
    store_dir: the prepared data.

  Returns:
    The split of the run: 'train', 'val' and 'test' -> case ids.

  Raises:
    InputError: the data or the checkpoints do not fit the config, or a file cannot be read or written.
    FloatingPointError: a loss or gradient is not finite; names step, cases and class terms.
    SystemExit: interrupted by Ctrl-C (130) or SIGTERM (143), after saving.
  """
  workdir, store_dir = os.path.expanduser(workdir), os.path.expanduser(store_dir)
  last, best = (os.path.join(workdir, 'checkpoints', name) for name in ('last', 'best'))
  data = _read_data(config, store_dir, last)
  splits = data.selection.splits
  runtime.on_process_zero(lambda: write_json(os.path.join(workdir, 'splits.json'), splits))
  if scored_split(splits, config.eval.split) is None:
    _log.warning(
      'the split %r has no case: nothing will be scored after the training. To score, give cases a share with '
      'data.fractions, or choose another split with --config.eval.split',
      config.eval.split,
    )
  several = channels.count(data.description['options'])
  program = make_program(config, build.mesh(config), data.class_names, data.steps_per_epoch, channels=several)
  init_key, run_key = jax.random.split(jax.random.key(config.seed))

  fresh = lambda: initial.initial_state(config, program, data.class_names[1:], init_key)
  state, best_dsc, due = _resumed(last, data, program) or (fresh(), None, False)
  start = int(state.step)
  if start >= data.total_steps and not due:
    _log.info('training is finished already (%d steps)', start)
    return splits

  meta = _meta(config, data, program)
  score = _make_score(config, store_dir, data, program)
  batches = _batches(config, data, program.mesh, start)
  with signals.graceful_shutdown() as asked:
    with (
      checkpoint_writer.opened(last, keep=2) as last_manager,
      checkpoint_writer.opened(best, keep=1) as best_manager,
      contextlib.closing(_open_records(config, workdir, data, program.schedule, start, best_dsc, due)) as records,
    ):

      def validate(done: int) -> float | None:
        """Scores the state, keeps it where it is the best so far, and returns the best DSC."""
        scores = score(state)
        better = math.isfinite(scores['val/dsc']) and (best_dsc is None or scores['val/dsc'] > best_dsc)
        highest = scores['val/dsc'] if better else best_dsc
        records.validated(done, scores, highest)
        if better:
          checkpoint_writer.save(best_manager, state, {**meta, 'best_dsc': highest})
          checkpoint_writer.finish(best_manager)  # before `last` says that it is there
        records.restart_clock(done)
        return highest

      if due:
        best_dsc = validate(start)
      for done in range(start + 1, data.total_steps + 1):
        before = time.perf_counter()
        batch = next(batches)
        wait_s = time.perf_counter() - before
        picked = batch.pop('index')
        state, aux = program.train_step(state, sharding.put_batch(batch, program.mesh), run_key)
        records.step(done, aux, picked, wait_s)
        epoch_ends = done % (config.train.validate_every_epochs * data.steps_per_epoch) == 0
        validate_now = epoch_ends or done == data.total_steps
        exit_code = asked(done)
        if not (validate_now or exit_code or done % config.train.checkpoint_every_steps == 0):
          continue

        records.flush()  # a checkpoint never holds what a non-finite step made
        due = validate_now and bool(splits['val'])
        if due and not exit_code:
          best_dsc, due = validate(done), False
        checkpoint_writer.save(last_manager, state, {**meta, 'best_dsc': best_dsc, 'validation_due': due})
        if exit_code:
          break
      else:
        exit_code = None

    if exit_code:
      _log.warning('interrupted: saved at step %d of %d; the same command goes on from here', done, data.total_steps)
      raise SystemExit(exit_code)
    if exit_code := asked(data.total_steps + 1):  # during the last validation
      _log.warning('interrupted: training is finished and saved; the same command goes on from here')
      raise SystemExit(exit_code)
  return splits


def _read_data(config: ml_collections.ConfigDict, store_dir: str, last: str) -> _Data:
  """The data of a run; of one that has checkpoints, the cases that they were trained on."""
  index, recorded = runtime.from_process_zero(lambda: (store.read_index(store_dir), checkpoint.read_meta(last)))
  selection = build.selection(config, index, recorded)
  description = {**run_record.data_record(index, selection), 'usual': usual.usual_of_training(index, selection)}
  description |= runtime.from_process_zero(lambda: initial.seen_before(config, recorded, description))
  _check_same_data(last, recorded, description)
  resources.raise_open_files()  # all cases stay open
  source = pipeline.make_source(
    store_dir,
    selection.splits['train'],
    selection.windows,
    patch_size=tuple(config.train.patch_size) or None,
    foreground=config.train.foreground,
    crops_per_case=config.train.crops_per_case,
  )
  steps = config.train.steps_per_epoch or pipeline.steps_per_epoch(len(source), config.train.batch_size)
  return _Data(
    description=description,
    selection=selection,
    source=source,
    class_names=('background', *index['organs']),
    steps_per_epoch=steps,
    total_steps=config.train.epochs * steps,
  )


def _resumed(folder: str, data: _Data, program: Program) -> tuple[step.TrainState, float | None, bool] | None:
  """(state, best DSC, whether the state is still to be validated) of the last checkpoint; None without one."""
  restored = checkpoint.restore_state(folder, program.abstract_state())
  if restored is None:
    return None
  state, meta = restored
  _log.info('resumed from step %d of %d', int(state.step), data.total_steps)
  return state, meta['best_dsc'], meta.get('validation_due', False)


def _check_same_data(folder: str, recorded: dict | None, data: dict) -> None:
  """Raises InputError if the checkpoints of a run were trained on other data than the run has now."""
  recorded = recorded['data'] if recorded else data
  for key, (was, now) in run_record.differences(recorded, data, ('organs', 'options', 'splits')).items():
    raise InputError(
      folder,
      f'its checkpoints were trained with {key} {was}, the data now has {now}',
      'Choose another --workdir for the changed data.',
    )
  if changed := run_record.changed_cases(recorded, data, ('train', 'val')):
    raise InputError(
      folder,
      f'its checkpoints were trained with other scans or labels of {abbreviate(changed)} than the store has now',
      'Choose another --workdir for the changed data, or restore the old files and run --mode=prepare.',
    )


def _meta(config: ml_collections.ConfigDict, data: _Data, program: Program) -> dict:
  """What every checkpoint says about its run."""
  return {
    'config': json.loads(config.to_json_best_effort()),
    'total_steps': data.total_steps,
    'model': {
      'name': config.model.name,
      'num_classes': len(data.class_names),
      'options': program.model_options,
      'input_size': program.input_size,
    },
    'data': data.description,
  }


def _make_score(
  config: ml_collections.ConfigDict, store_dir: str, data: _Data, program: Program
) -> Callable[[step.TrainState], dict[str, float]]:
  """state -> scores of the validation cases; every process scores a part of them on its own devices."""
  own = runtime.local_mesh(program.mesh.shape['spatial'])
  model = program.model.clone(constrain=sharding.make_constrain(own))
  predict_step = models.at_precision(config.runtime.matmul_precision, forward.make_predict_step(model))
  predict_step = sharding.jit_over_mesh(own, predict_step)
  options = segmentation.Options(program.input_size, config.eval.batch_size, config.eval.overlap)
  return lambda state: validation.validate(
    predict_step,
    runtime.local_copy(step.variables_of(state), own),
    store_dir,
    data.selection.splits['val'],
    data.selection.windows,
    contents=data.selection.contents,
    organs=data.class_names[1:],
    options=options,
    overhang=usual.overhang_of(data.description),
  )


def _batches(config: ml_collections.ConfigDict, data: _Data, mesh: jax.sharding.Mesh, start: int):
  """This process's rows of the batches from step `start` on."""
  rank, world = sharding.data_shard(mesh)
  return pipeline.train_batches(
    data.source,
    batch_size=config.train.batch_size,
    seed=config.seed,
    start_step=start,
    rank=rank,
    world=world,
    prefetch=config.runtime.prefetch,
  )


def _open_records(
  config: ml_collections.ConfigDict,
  workdir: str,
  data: _Data,
  schedule: Callable,
  start: int,
  best_dsc: float | None,
  validation_due: bool,
) -> progress.Progress:
  run = progress.Run(
    class_names=data.class_names,
    batch_size=config.train.batch_size,
    steps_per_epoch=data.steps_per_epoch,
    total_steps=data.total_steps,
    log_every=config.train.log_every_steps,
    schedule=schedule,
    case_of=lambda i: str(data.source.records[i][0]),
  )
  record = json.loads(config.to_json_best_effort())
  writer = metric_writer.MetricWriter(
    workdir,
    start_step=start,
    validation_due=validation_due,
    open_tracker=config.tracker and (lambda: tracker.Tracker(config.tracker, workdir, record)),
  )
  return progress.Progress(run, writer, start_step=start, best_dsc=best_dsc)
