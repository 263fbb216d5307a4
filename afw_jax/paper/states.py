"""How far a run is, read from its folder."""

import glob
import os

from afw_jax.data.selection import scored_split
from afw_jax.errors import InputError
from afw_jax.paper.runs import Run
from afw_jax.report.runs import SETTINGS
from afw_jax.system import atomic_files
from afw_jax.training import checkpoint
from afw_jax.workdir import begun

_CURE = 'Delete the folder `cases` beside it, or restore a copy.'


def is_done(run: Run) -> bool:
  """Whether a run is trained to its end and scored as its config says.

  False where a file is damaged: starting the run again mends that, or says what is wrong.
  """
  try:
    return is_trained(run) and _is_scored(run)
  except InputError:
    return False


def is_trained(run: Run) -> bool:
  """Whether the last checkpoint of a run is that of its last step, validated where that was due."""
  if not begun(run.folder):
    return False
  last = os.path.join(run.folder, 'checkpoints', 'last')
  meta = checkpoint.read_meta(last)
  return (
    meta is not None and checkpoint.steps_in(last)[0] >= meta['total_steps'] and not meta.get('validation_due', False)
  )


def _is_scored(run: Run) -> bool:
  paths = glob.glob(os.path.join(glob.escape(run.folder), 'cases', '*.json'))
  splits_path = os.path.join(run.folder, 'splits.json')
  if not paths or not os.path.exists(splits_path):
    return False
  splits = atomic_files.read_json(splits_path, cure='Start the run again: it writes this file.')
  if run.config.eval.split not in splits:
    return False
  split = scored_split(splits, run.config.eval.split)
  record = atomic_files.read_json(sorted(paths)[0], cure=_CURE)  # an evaluation publishes all cases at once
  wanted = run.config.eval
  settings = {key: list(v) if isinstance(v := wanted[key], tuple) else v for key in SETTINGS}
  return (
    split is not None
    and len(paths) == len(splits[split])
    and record.get('split') == split
    and record.get('convention') == wanted.convention
    and record.get('nsd_tolerance_mm') == wanted.nsd_tolerance_mm
    and record.get('settings') == settings
    and record.get('checkpoint_step') in _steps(run)
  )


def _steps(run: Run) -> list[int]:
  """The step that the scores must be of: the newest of the checkpoint that is scored."""
  folders = (os.path.join(run.folder, 'checkpoints', name) for name in ('best', 'last'))
  best, last = (checkpoint.steps_in(folder)[:1] for folder in folders)
  return best if run.config.eval.checkpoint == 'best' and best else last


def problem_of(run: Run) -> InputError | None:
  """What keeps a run from being started at all: its data are not there."""
  data = run.config.data
  if os.path.isdir(data.root) or (data.store and os.path.isdir(data.store)):
    return None
  return InputError(
    data.root,
    f'there is no such folder, which the runs on {run.data} need',
    f'Give the folder of the scans: --config.{run.data}.data.root=FOLDER.',
  )
