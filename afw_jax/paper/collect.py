"""Collects the scores of the runs that are done into the cells of a table; what is missing stays missing."""

import dataclasses
import math
import os
from collections.abc import Collection, Sequence

import numpy as np

from afw_jax.data import run_record
from afw_jax.data.sets.split import parse_fold
from afw_jax.errors import InputError
from afw_jax.paper import states
from afw_jax.paper.runs import Member
from afw_jax.paper.table import Part, Row, Table
from afw_jax.report import comparison
from afw_jax.report import runs as scores
from afw_jax.report.stats import Paired, Summary, holm, paired, summarise_seeds
from afw_jax.system import atomic_files

# Score -> (heading, factor): the means over the organs of each case; DSC in percent.
MEANS = {'dsc': ('DSC', 100), 'hd95': ('HD95', 1), 'hd': ('HD', 1)}
_KEYS = {'dsc': 'dsc', 'hd95': 'hd95_pooled_mm', 'hd': 'hd_mm'}


@dataclasses.dataclass(frozen=True)
class Line:
  """A row with what is there of its runs.

  Attributes:
    row: of the table.
    done, planned: numbers of runs.
    seeds: number of seeds with a run.
    missing_folds: those that a seed with a run lacks, so that its cases are not all there.
    cells: 'dsc', 'hd95', 'hd' or an organ (its DSC) -> Summary over cases and seeds; nothing where no run is done.
    difference: of the mean DSC to the row `row.against`, paired by case; None where either has no run.
    p: of the difference, by Holm's correction over all rows of the table.
  """

  row: Row
  done: int
  planned: int
  seeds: int
  missing_folds: tuple[str, ...]
  cells: dict[str, Summary]
  difference: Paired | None = None
  p: float = math.nan


@dataclasses.dataclass(frozen=True)
class Filled:
  """A part of a table with its lines.

  Attributes:
    part: of the table.
    lines: one for each row.
    organs: the columns beside the means.
    convention, unit, split, checkpoint: of all scores; '' while there are none.
    cases: the largest number of cases of a row.
    classes: names of the classes 1, 2, ... of label maps: the organs, unless these are regions.
  """

  part: Part
  lines: tuple[Line, ...]
  organs: tuple[str, ...]
  convention: str
  unit: str
  split: str
  checkpoint: object
  cases: int
  classes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Scores:
  """The scores of one row: score -> (seeds, cases), and how they were made."""

  by_seed: dict[int, dict[str, dict[str, float]]]
  done: int
  first: scores.Run | None


def collect(table: Table, members: Sequence[Member], done: Collection[str]) -> list[Filled]:
  """Fills the parts of a table from the folders of its runs.

  Args:
    table: of the paper.
    members: of `runs.members`, of all tables.
    done: names of the runs that are done.

  Raises:
    InputError: a file of a run is damaged, or the runs of a part were not scored alike or on other labels.
  """
  own = [member for member in members if member.table == table.name]
  made = [(part, _fill(part, [m for m in own if m.part == part], done)) for part in table.parts]
  corrected = iter(holm([line.p for _, (lines, _) in made for line in lines]))
  filled = []
  for part, (lines, first) in made:
    lines = tuple(dataclasses.replace(line, p=next(corrected)) for line in lines)
    organs = first.organs if first else tuple(o for o in part.rows[0].published if o not in MEANS)
    facts = (first.convention, first.unit, first.split, first.settings.get('checkpoint')) if first else ('', '', '', '')
    cases = max((cell.n for line in lines for name, cell in line.cells.items() if name == 'dsc'), default=0)
    filled.append(Filled(part, lines, organs, *facts, cases, first.classes if first else organs))
  return filled


def _fill(part: Part, members: list[Member], done: Collection[str]) -> tuple[list[Line], scores.Run | None]:
  read = {row.label: _read([m for m in members if m.row == row], done) for row in part.rows}
  found = [one.first for one in read.values() if one.first]
  for run in found[1:]:
    _check_alike(run, found[0])
  lines = []
  for row in part.rows:
    own = [m for m in members if m.row == row]
    one = read[row.label]
    for seed in one.by_seed:
      _check_folds([m for m in own if m.seed == seed and m.fold], done)
    difference = _difference(read.get(row.against), one) if row.against else None
    lines.append(
      Line(
        row=row,
        done=one.done,
        planned=len({m.run.name for m in own}),
        seeds=len(one.by_seed),
        missing_folds=_missing_folds(own, one, done),
        cells=_cells(one),
        difference=difference,
        p=difference.p if difference else math.nan,
      )
    )
  return lines, found[0] if found else None


def _read(members: list[Member], known: Collection[str]) -> _Scores:
  by_seed: dict[int, dict] = {}
  done, first = 0, None
  for member in members:
    if member.run.name not in known:
      continue
    try:
      run = scores.read_run(member.run.folder)
    except InputError:
      if states.is_done(member.run):
        raise
      continue  # it is being scored again
    if first:
      _check_alike(run, first)
    done, first = done + 1, first or run
    of_seed = by_seed.setdefault(member.seed, {})
    for name, column in _columns(run).items():
      values = of_seed.setdefault(name, {})
      if twice := [case for case in run.cases if case in values]:
        raise InputError(run.workdir, f'scores {twice[0]}, as another fold does', 'Each case is held out by one fold.')
      values |= dict(zip(run.cases, column.tolist()))
  return _Scores(by_seed, done, first)


def _columns(run: scores.Run) -> dict[str, np.ndarray]:
  """Column -> (N,) a value for each case, in percent or in the unit of the distances."""
  means = {name: run.mean_over_organs(_KEYS[name]) * factor for name, (_, factor) in MEANS.items()}
  return means | {organ: run.scores['dsc'][:, o] * 100 for o, organ in enumerate(run.organs)}


def _check_alike(run: scores.Run, first: scores.Run) -> None:
  """Raises InputError where two runs were not scored alike, or by another truth of the same case."""
  comparison.check_alike(run, first)
  if common := [case for case in run.cases if case in first.cases]:
    comparison.check_same_truth(run.only(common), first.only(common))


def _check_folds(members: Sequence[Member], done: Collection[str]) -> None:
  """Raises InputError where a row has all folds, and all are done, but not each case of them was held out once."""
  if not members or any(m.run.name not in done for m in members):
    return
  if (fold := parse_fold(members[0].fold)) and len(members) < fold.count:  # a table of some folds alone
    return
  cure = 'Start the run again: it writes this file.'
  read = lambda run: atomic_files.read_json(os.path.join(run.folder, 'splits.json'), cure=cure)
  run_record.check_folds({m.run.folder: {'splits': read(m.run), 'contents': {}} for m in members})


def _missing_folds(members: list[Member], read: _Scores, done: Collection[str]) -> tuple[str, ...]:
  lacking = {m.fold for m in members if m.fold and m.seed in read.by_seed and m.run.name not in done}
  return tuple(sorted(lacking))


def _matrix(read: _Scores, name: str, cases: Sequence[str]) -> np.ndarray:
  """(S, N) one row for each seed."""
  rows = [[of_seed[name].get(case, math.nan) for case in cases] for of_seed in read.by_seed.values()]
  return np.array(rows, np.float64).reshape(len(rows), len(cases))


def _cases(read: _Scores) -> list[str]:
  return sorted({case for of_seed in read.by_seed.values() for case in of_seed['dsc']})


def _cells(read: _Scores) -> dict[str, Summary]:
  if not read.by_seed:
    return {}
  cases = _cases(read)
  return {name: summarise_seeds(_matrix(read, name, cases)) for name in next(iter(read.by_seed.values()))}


def _difference(first: _Scores | None, second: _Scores) -> Paired | None:
  """The mean DSC of the second less that of the first, by cases, each averaged over the seeds that both have."""
  if first is None or not first.by_seed or not second.by_seed:
    return None
  shared = first.by_seed.keys() & second.by_seed.keys()
  if not shared:
    return None
  first, second = (
    dataclasses.replace(one, by_seed={s: one.by_seed[s] for s in sorted(shared)}) for one in (first, second)
  )
  cases = sorted(set(_cases(first)) & set(_cases(second)))
  one, other = (_matrix(read, 'dsc', cases) for read in (first, second))
  known = ~np.isnan(one) & ~np.isnan(other)  # a case counts with the seeds that scored it in both rows
  means = (scores.nan_mean(np.where(known, values, np.nan), axis=0) for values in (one, other))
  return paired(*means)
