"""A workdir with scores, as an evaluation leaves it, without a training."""

import math
import pathlib

from afw_jax.report.runs import POOLED
from afw_jax.system import atomic_files
from afw_jax.system.file_names import file_name

ORGANS = ('liver', 'gall_bladder')
DSC = {'a': (0.9, 0.5), 'b': (0.8, 0.0), 'c': (0.7, None)}  # None: in neither
CONFIG = {
  'data': {'dataset': 'synapse'},
  'model': {'name': 'unet'},
  'loss': {'name': 'ce_afw', 'ce_afw': {'gamma': 0.25}, 'ce_dice': {'squared': False}},
}
SETTINGS = {'checkpoint': 'best', 'mirror_axes': [], 'overlap': 0.5, 'largest_component': False}


def organ_scores(dsc: float | None) -> dict:
  absent, missed = dsc is None, bool(dsc == 0)
  values = {
    'dsc': dsc,
    'hd_mm': 9.0,
    'hd95_pooled_mm': 30.0 if missed else 10 * (1 - (dsc or 0)),
    'hd95_max_mm': 6.0,
    'assd_mm': 1.5,
    'nsd': 0.75,
  }
  return {k: math.nan if absent else v for k, v in values.items()} | {
    'missed': missed,
    'false_positive': False,
    'absent': absent,
    'true_voxels': 0 if absent else 100,
    'pred_voxels': 0,
    'true_ml': 1.25,
    'pred_ml': 0.0,
  }


def make_pooled(folder: pathlib.Path, dsc: dict = DSC, *, count: int = 2, unfinished: tuple = (), **extra) -> str:
  """As `make_run`, for pooled folds of a cross-validation: case i was held out in fold i modulo `count`."""
  held = {'split': 'val', 'training_split': 'val', **extra}
  cases = {f'{k + 1}/{count}': list(dsc)[k::count] for k in range(count)}
  for k, (fold, ids) in enumerate(cases.items()):
    make_run(folder, {case: dsc[case] for case in ids}, **{'fold': fold, 'checkpoint_step': 100 + k, **held})
  steps = lambda fold: {'step': 5, 'total_steps': 9 if fold in unfinished else 5}
  entries = [{'fold': fold, 'cases': ids, **steps(fold)} for fold, ids in cases.items()]
  atomic_files.write_json(folder / POOLED, {'folds': entries})
  return str(folder)


def make_run(folder: pathlib.Path, dsc: dict = DSC, *, config: dict = CONFIG, names: tuple = ORGANS, **extra) -> str:
  """Writes config.json and cases/*.json; `extra` are keys of every case, None leaves one out. Returns the workdir."""
  atomic_files.write_json(folder / 'config.json', config)
  for case, values in dsc.items():
    record = {
      'case': case,
      'convention': 'strict',
      'spacing_mm': [3, 1, 1],
      'nsd_tolerance_mm': 2.0,
      'split': 'test',
      'training_split': 'test',
      'settings': SETTINGS,
      'checkpoint_step': 100,
      'organs': list(names),
      'scores': {o: organ_scores(v) for o, v in zip(names, values)},
    } | extra
    kept = {key: value for key, value in record.items() if value is not None}
    atomic_files.write_json(folder / 'cases' / f'{file_name(case)}.json', kept)
  return str(folder)
