"""The scores a run left in its workdir, read back as arrays."""

import glob
import json
import os
from typing import NamedTuple

import numpy as np

from afw_jax.errors import InputError
from afw_jax.metrics import SCORES, UNITS

FLAGS = ('missed', 'false_positive', 'absent')
VOLUMES = ('true_voxels', 'pred_voxels', 'true_ml', 'pred_ml')


class Run(NamedTuple):
  """Scores of one run: `scores`, `flags` and `volumes` map a name to an (N cases, O organs) array."""

  workdir: str
  dataset: str
  network: str
  loss: str
  loss_options: dict
  split: str
  convention: str
  unit: str
  nsd_tolerance: object
  cases: tuple[str, ...]
  organs: tuple[str, ...]
  scores: dict[str, np.ndarray]
  flags: dict[str, np.ndarray]
  volumes: dict[str, np.ndarray]

  def mean_over_organs(self, score: str) -> np.ndarray:
    """(N,) mean of one score over the organs of each case that have one; nan where none has."""
    return nan_mean(self.scores[score], axis=1)


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
  """Mean without the nans; nan (and no warning) where all are."""
  counted = ~np.isnan(values)
  number = counted.sum(axis)
  return np.where(number > 0, np.where(counted, values, 0).sum(axis) / np.maximum(number, 1), np.nan)


def read_run(workdir: str) -> Run:
  """Reads WORKDIR/config.json and WORKDIR/cases/*.json.

  Returns:
    Run, cases sorted by name, organs in the order of the files' list 'organs' (without one: of the scores).

  Raises:
    InputError: a file is missing or torn, or the cases were not scored alike (convention, tolerance, split, organs).
  """
  config = _read(os.path.join(workdir, 'config.json'), 'Give the --workdir of a trained run.')
  paths = sorted(glob.glob(os.path.join(glob.escape(workdir), 'cases', '*.json')))
  if not paths:
    raise InputError(os.path.join(workdir, 'cases'), 'holds no scores', 'Run --mode=evaluate first.')
  records = [_read(path, 'Run --mode=evaluate again.') for path in paths]
  for path, record in zip(paths, records):
    _check(path, record, paths[0], records[0])
  cases = tuple(str(r['case']) for r in records)
  if len(set(cases)) < len(cases):
    raise InputError(os.path.join(workdir, 'cases'), 'holds a case twice', 'Run --mode=evaluate again.')
  organs = tuple(records[0].get('organs', records[0]['scores']))

  def table(name, dtype=np.float64):
    values = [[r['scores'][organ].get(name) for organ in organs] for r in records]
    return np.array([[np.nan if v is None else v for v in row] for row in values], np.float64).astype(dtype)

  loss = _setting(config, 'loss', 'name')
  section = config.get('loss')
  return Run(
    workdir=workdir,
    dataset=_setting(config, 'data', 'dataset'),
    network=_setting(config, 'model', 'name'),
    loss=loss,
    loss_options=section.get(loss) or {} if isinstance(section, dict) else {},
    split=records[0].get('split', 'not recorded'),
    convention=records[0]['convention'],
    unit=_unit(records),
    nsd_tolerance=records[0].get('nsd_tolerance_mm'),
    cases=cases,
    organs=organs,
    scores={name: table(name) for name in SCORES},
    flags={name: table(name, bool) for name in FLAGS},
    volumes={name: table(name) for name in VOLUMES},
  )


def _read(path: str, cure: str) -> dict:
  try:
    with open(path) as f:
      value = json.load(f)
  except FileNotFoundError as error:
    raise InputError(path, 'does not exist', cure) from error
  except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
    raise InputError(path, f'cannot be read ({error})', cure) from error
  if not isinstance(value, dict):
    raise InputError(path, 'holds no JSON object', cure)
  return value


def _check(path: str, record: dict, first_path: str, first: dict) -> None:
  cure = 'Run --mode=evaluate again.'
  if lacking := [key for key in ('case', 'convention', 'scores') if key not in record]:
    raise InputError(path, f'lacks {", ".join(lacking)}', cure)
  if record['convention'] not in UNITS:
    raise InputError(path, f'names the unknown convention {record["convention"]!r}', cure)
  for key in ('convention', 'nsd_tolerance_mm', 'split'):
    if record.get(key) != first.get(key):
      raise InputError(
        path, f'has {key} {record.get(key)!r}, {first_path} has {first.get(key)!r}: they cannot share a table', cure
      )
  if not record['scores'] or set(record['scores']) != set(first['scores']):
    raise InputError(path, f'scores {sorted(record["scores"])}, {first_path} {sorted(first["scores"])}', cure)
  if set(record.get('organs', record['scores'])) != set(record['scores']):
    raise InputError(path, f'lists the organs {record["organs"]}, but scores {sorted(record["scores"])}', cure)
  if bad := [organ for organ, values in record['scores'].items() if not {*SCORES, *FLAGS} <= set(values)]:
    raise InputError(path, f'lacks scores of {", ".join(bad)}', cure)


def _unit(records: list[dict]) -> str:
  """mm, or voxels where the convention ignores spacing or the source files carry none."""
  if UNITS[records[0]['convention']] == 'voxels':
    return 'voxels'
  with_mm = {bool(r.get('has_mm', True)) for r in records}
  return {(True,): 'mm', (False,): 'voxels'}.get(tuple(with_mm), 'mm or voxels (some files carry no spacing)')


def _setting(config: dict, section: str, key: str) -> str:
  value = config.get(section)
  value = value.get(key) if isinstance(value, dict) else value
  return 'not recorded' if value in (None, '') else str(value)
