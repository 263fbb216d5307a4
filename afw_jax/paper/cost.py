"""What the runs that are missing need: data, steps, operations and GPU hours, found out without training or writing."""

import os
import shlex
from collections.abc import Iterator, Sequence

from afw_jax import workdir as run_folder
from afw_jax.config import build
from afw_jax.data import pipeline, store
from afw_jax.data.sets import public
from afw_jax.errors import InputError, InputErrors
from afw_jax.paper import schedule, states
from afw_jax.paper.runs import Run, check_folder, shown_command
from afw_jax.planning import measure

ASSUMED_TFLOPS = 50  # float32 with products in TF32 on an A100 or H100, as UNets of this size reach in practice


def lines(runs: Sequence[Run]) -> Iterator[str]:
  """The lines of --dry_run, one after the other: each missing run with what it needs and its command.

  Args:
    runs: of this process.

  Raises:
    InputError: a folder holds a run of another config.
  """
  for run in runs:
    check_folder(run)
  missing = [run for run in runs if not states.is_done(run)]
  running = sum(schedule.is_running(run) for run in missing)
  yield (
    f'{len(runs)} runs: {len(runs) - len(missing)} done, {len(missing)} missing, of which {running} are running. '
    'Nothing is trained or written.'
  )
  tflops: dict[tuple, float | None] = {}
  hours, unknown = 0.0, 0
  for run in missing:
    kind = run.data, run.config.model.name
    if kind not in tflops:
      tflops[kind] = tflop_of_step(run)
    steps = steps_of(run)
    if steps and tflops[kind]:
      needed = steps * tflops[kind] / ASSUMED_TFLOPS / 3600
      hours += needed
    else:
      needed, unknown = None, unknown + 1
    yield f'\n# {run.name}: {_needs(run, steps, tflops[kind], needed)}'
    yield shown_command(run)
  if missing:
    yield (
      f'\nAll that is missing: {hours:.3g} GPU hours at an assumed {ASSUMED_TFLOPS} TFLOP/s, without validation and '
      'scoring'
      + (f', and {unknown} runs whose steps or organs are known once their data are prepared' if unknown else '')
    )


def _needs(run: Run, steps: int | None, tflop: float | None, hours: float | None) -> str:
  data = run.config.data
  there = '' if states.problem_of(run) is None else ', which is not there'
  words = [f'{data.dataset} in {shlex.quote(data.root)}{there}']
  words.append(f'{steps:,} steps' if steps else f'{run.config.train.epochs} epochs')
  words += [f'{tflop:.3g} TFLOP each'] if tflop else []
  words += [f'{hours:.2g} GPU hours'] if hours is not None else []
  return ', '.join(words)


def steps_of(run: Run) -> int | None:
  """The number of training steps; None where it depends on scans that are not prepared yet."""
  train = run.config.train
  if train.steps_per_epoch:
    return train.epochs * train.steps_per_epoch
  folder = run_folder.store_path(run.config, run.folder)
  if os.path.exists(os.path.join(folder, 'dataset.json')):
    try:
      selection = build.selection(run.config, store.read_index(folder))
    except (InputError, InputErrors):  # it is not prepared for this run yet
      return None
    source = pipeline.make_source(
      folder,
      selection.splits['train'],
      selection.windows,
      patch_size=tuple(train.patch_size) or None,
      foreground=train.foreground,
      crops_per_case=train.crops_per_case,
    )
    return train.epochs * pipeline.steps_per_epoch(len(source), train.batch_size)
  data = run.config.data
  if data.num_cases and data.fractions and len(data.size or train.patch_size) == 3:
    volumes = round(data.num_cases * data.fractions[0] / sum(data.fractions)) * train.crops_per_case
    return train.epochs * pipeline.steps_per_epoch(volumes, train.batch_size)
  if data.dataset == 'synapse':  # the published training cases, whose slices are known
    slices = sum(public.TRANSUNET_TRAIN_SLICES.values())
    return train.epochs * pipeline.steps_per_epoch(slices, train.batch_size)
  return None


def tflop_of_step(run: Run) -> float | None:
  """TFLOP of one training step, as --mode=plan counts them; None where the organs are those of a folder not there."""
  if run.config.data.dataset == 'folder' and not os.path.isdir(run.config.data.root):
    return None
  return measure.count_flops(run.config) / 1e12
