"""Reads the scores of an evaluated run, or the pooled ones of a cross-validation, from a workdir as arrays."""

import glob
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from afw_jax.errors import InputError
from afw_jax.metrics import SCORES, UNITS
from afw_jax.report import case_records
from afw_jax.report.case_records import CURE, FLAGS, VOLUMES
from afw_jax.system import atomic_files

SETTINGS = ('checkpoint', 'mirror_axes', 'overlap', 'largest_component')
# Scores that are infinite for an organ in one of the two masks only. JSON has no infinity: the files hold null.
INFINITE = {'monai': ('hd_mm', 'assd_mm')}
# In a workdir that holds the pooled scores of a cross-validation: {'folds': [{'fold': 'K/N', 'workdir':, 'cases': [case
# ids], 'step':, 'total_steps':} for each]}.
POOLED = 'folds.json'


class Run(NamedTuple):
  """The scores of one run.

  Attributes:
    workdir: folder of the run.
    dataset, network, loss, loss_options: from its config; 'not recorded' where the config does not say.
    split: the split that was scored.
    convention, unit, nsd_tolerance: of the metrics; unit is that of the distances.
    folds: that the cases were held out in, 'K/N': several where scores are pooled; () without cross-validation.
    unfinished: those of them whose training had not come to its end when they were pooled.
    settings: how the label maps were predicted, the keys `SETTINGS`; {} in files that do not record it.
    cases: (N,) case ids, sorted.
    organs: (O,) names of what is scored: organs, or regions of several.
    classes: names of the classes 1, 2, ... of its label maps.
    regions: (O,) the numbers of the classes that each is made of.
    training_splits: (N,) the part of each case when the network was trained; see `run_record.trained_part`.
    notes: (N,) what is unusual about the scan of each case, for this network.
    contents: (N,) `store.content_digest` of each case when it was scored; None in files that do not record it.
    spacings_mm: (N,) voxel size of each scan, (z, y, x); None in files that do not record it.
    scores, flags, volumes: name -> (N, O) array, the names `metrics.SCORES`, `FLAGS` and `VOLUMES`. Scores that a
      convention leaves undefined are nan.
  """

  workdir: str
  dataset: str
  network: str
  loss: str
  loss_options: dict
  split: str
  convention: str
  unit: str
  nsd_tolerance: object
  folds: tuple[str, ...]
  unfinished: tuple[str, ...]
  settings: dict
  cases: tuple[str, ...]
  organs: tuple[str, ...]
  classes: tuple[str, ...]
  regions: tuple[tuple[int, ...], ...]
  training_splits: tuple[str | None, ...]
  notes: tuple[tuple[str, ...], ...]
  contents: tuple[str | None, ...]
  spacings_mm: tuple[tuple[float, ...] | None, ...]
  scores: dict[str, np.ndarray]
  flags: dict[str, np.ndarray]
  volumes: dict[str, np.ndarray]

  def mean_over_organs(self, score: str) -> np.ndarray:
    """(N,) mean of one score over the organs of each case that have one; nan where none has."""
    return nan_mean(self.scores[score], axis=1)

  def only(self, cases: Sequence[str]) -> 'Run':
    """The same run with some of its cases, in the order given."""
    rows = [self.cases.index(case) for case in cases]
    pick = lambda named: {name: table[rows] for name, table in named.items()}
    return self._replace(
      cases=tuple(cases),
      training_splits=tuple(self.training_splits[row] for row in rows),
      notes=tuple(self.notes[row] for row in rows),
      contents=tuple(self.contents[row] for row in rows),
      spacings_mm=tuple(self.spacings_mm[row] for row in rows),
      scores=pick(self.scores),
      flags=pick(self.flags),
      volumes=pick(self.volumes),
    )


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
  """Mean without the nans; nan (and no warning) where all are."""
  counted = ~np.isnan(values)
  number = counted.sum(axis)
  return np.where(number > 0, np.where(counted, values, 0).sum(axis) / np.maximum(number, 1), np.nan)


def check_unseen(where: str, split: str, training_splits: Mapping[str, str | None]) -> None:
  """Checks that cases of another name than 'train' or 'val' were not used to train the network or to choose it.

  Args:
    where: workdir of the run, for the error.
    split: the split that the cases are scored as.
    training_splits: case -> its part when the network was trained (`run_record.trained_part`).

  Raises:
    InputError: a case was used in training under another split.
  """
  for case, used in training_splits.items():
    if used in ('train', 'val') and used != split:
      raise InputError(
        where,
        f'case {case} would be scored as {split!r}, but its scan was in {used!r} when this network was trained',
        'Restore the splits of that training, or score this case under its own split (--config.eval.split). '
        'If it is another scan of the same name, rename it.',
      )


def read_run(workdir: str) -> Run:
  """Reads WORKDIR/config.json and WORKDIR/cases/*.json.

  Returns:
    Run, with the organs in the order of the files' list 'organs' (without one: of the scores).

  Raises:
    InputError: a file is missing or damaged, or the cases were not scored alike (convention, tolerance, split, organs,
      checkpoint, fold), pooled scores are not those of all folds, or a case was used to train the network and is scored
    as if it were not.
  """
  config = atomic_files.read_json(
    os.path.join(workdir, 'config.json'), cure='Give the --workdir of a trained and evaluated run.'
  )
  paths = sorted(glob.glob(os.path.join(glob.escape(workdir), 'cases', '*.json')))
  if not paths:
    raise InputError(os.path.join(workdir, 'cases'), 'contains no scores', 'Run --mode=evaluate first.')
  records = [atomic_files.read_json(path, cure=CURE) for path in paths]
  pooled = _read_pooled(workdir)
  first_of: dict[str | None, int] = {}  # a fold has a checkpoint of its own
  for i, (path, record) in enumerate(zip(paths, records)):
    same = first_of.setdefault(record.get('fold'), i) if pooled else 0
    _check(path, record, paths[0], records[0])
    _check_alike(path, record, paths[same], records[same], ('fold', 'checkpoint_step', 'checkpoint_sha256'))
  cases = tuple(r['case'] for r in records)
  if len(set(cases)) < len(cases):
    raise InputError(os.path.join(workdir, 'cases'), 'contains a case twice', CURE)
  if pooled:
    _check_pooled(workdir, pooled, records)
  split = records[0].get('split', 'not recorded')
  used = {case: record.get('training_split') for case, record in zip(cases, records)}
  check_unseen(workdir, split, used)
  organs = tuple(records[0].get('organs', records[0]['scores']))
  loss = _setting(config, 'loss', 'name')
  section = config.get('loss')
  return Run(
    workdir=workdir,
    dataset=_setting(config, 'data', 'dataset'),
    network=_setting(config, 'model', 'name'),
    loss=loss,
    loss_options=_loss_options(section.get(loss) or {}) if isinstance(section, dict) else {},
    split=split,
    convention=records[0]['convention'],
    unit=_unit(records),
    nsd_tolerance=records[0].get('nsd_tolerance_mm'),
    folds=tuple(pooled) or tuple(filter(None, [records[0].get('fold')])),
    unfinished=tuple(fold for fold, made in pooled.items() if made['step'] < made['total_steps']),
    settings=records[0].get('settings', {}),
    cases=cases,
    organs=organs,
    classes=tuple(records[0].get('classes', organs)),
    regions=tuple(tuple(ids) for ids in records[0].get('regions', [[c] for c in range(1, len(organs) + 1)])),
    training_splits=tuple(used.values()),
    notes=tuple(tuple(r.get('notes', ())) for r in records),
    contents=tuple(r.get('content_sha256') for r in records),
    spacings_mm=tuple(r.get('spacing_mm') and tuple(r['spacing_mm']) for r in records),
    scores={name: _table(records, organs, name) for name in SCORES},
    flags={name: _table(records, organs, name).astype(bool) for name in FLAGS},
    volumes={name: _table(records, organs, name) for name in VOLUMES},
  )


def _table(records: list[dict], organs: tuple[str, ...], name: str) -> np.ndarray:
  """(N, O) values of one name, null as nan or as the infinity that it stands for."""
  infinite = name in INFINITE.get(records[0]['convention'], ())

  def value(scores: dict) -> float:
    if scores.get(name) is not None:
      return scores[name]
    return np.inf if infinite and (scores['missed'] or scores['false_positive']) else np.nan

  return np.array([[value(r['scores'][organ]) for organ in organs] for r in records], np.float64)


def _check(path: str, record: dict, first_path: str, first: dict) -> None:
  case_records.check(path, record)
  _check_alike(
    path, record, first_path, first, ('convention', 'nsd_tolerance_mm', 'split', 'settings', 'classes', 'regions')
  )
  if set(record['scores']) != set(first['scores']):
    raise InputError(path, f'scores {sorted(record["scores"])}, {first_path} {sorted(first["scores"])}', CURE)


def _check_alike(path: str, record: dict, first_path: str, first: dict, keys: Sequence[str]) -> None:
  for key in keys:
    if record.get(key) != first.get(key):
      raise InputError(
        path, f'has {key} {record.get(key)!r}, {first_path} has {first.get(key)!r}: they cannot share a table', CURE
      )


def _read_pooled(workdir: str) -> dict[str, dict]:
  """'K/N' -> its entry in `POOLED`; {} in the workdir of a single run."""
  path = os.path.join(workdir, POOLED)
  if not os.path.lexists(path):
    return {}
  folds = atomic_files.read_json(path, cure=CURE).get('folds')
  keys = {'fold', 'cases', 'step', 'total_steps'}
  if (
    not folds or not isinstance(folds, list) or not all(isinstance(made, dict) and keys <= set(made) for made in folds)
  ):
    raise InputError(path, 'is not a list of folds', CURE)
  return {made['fold']: made for made in folds}


def _check_pooled(workdir: str, pooled: dict[str, dict], records: list[dict]) -> None:
  """Raises InputError where the scores are not those of all cases of all folds."""
  wanted = {(case, fold) for fold, made in pooled.items() for case in made['cases']}
  there = {(str(r['case']), r.get('fold')) for r in records}
  if wanted != there:
    names = sorted({case for case, _ in wanted ^ there})
    raise InputError(
      os.path.join(workdir, 'cases'),
      f'are not the scores that were pooled: {", ".join(names[:8])} are missing or not among them',
      'Pool the folds again (--mode=evaluate --workdir=A,B,... --output=FOLDER).',
    )


def _unit(records: list[dict]) -> str:
  """mm, or voxels where the convention ignores spacing or the scans have none."""
  if UNITS[records[0]['convention']] == 'voxels':
    return 'voxels'
  with_mm = {bool(r.get('has_mm', True)) for r in records}
  return {(True,): 'mm', (False,): 'voxels'}.get(tuple(with_mm), 'mm or voxels (some scans have no spacing)')


def _loss_options(options: dict) -> dict:
  """The options of a loss as they work: learned_weights says nothing beside weights, but that False means 'equal'."""
  if 'weights' not in options:
    return options
  rest = {key: value for key, value in options.items() if key != 'learned_weights'}
  return rest if options.get('learned_weights', True) else rest | {'weights': 'equal'}


def _setting(config: dict, section: str, key: str) -> str:
  value = config.get(section)
  value = value.get(key) if isinstance(value, dict) else value
  return 'not recorded' if value in (None, '') else str(value)
