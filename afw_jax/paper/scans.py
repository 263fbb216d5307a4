"""The scans of a figure, read from the folders of its runs: image, truth, and the label maps that were scored."""

import dataclasses
import functools
import os
from collections.abc import Collection, Sequence

import numpy as np

from afw_jax import preprocess
from afw_jax import workdir as run_folder
from afw_jax.config import build
from afw_jax.data import resample, store, usual, working_grid
from afw_jax.data.formats.geometry import Geometry
from afw_jax.data.sets import channels
from afw_jax.data.sets.spec import without_ignored
from afw_jax.errors import InputError
from afw_jax.inference import trained
from afw_jax.paper import collect, states
from afw_jax.paper.runs import Member, Run
from afw_jax.paper.table import Table
from afw_jax.report import choice, label_maps
from afw_jax.report import runs as scores

NO_RUN, NOT_SCORED, NO_MAP = 'no run yet', 'not scored', 'label map\nis missing'
_STANDINGS = {'overlays': choice.ALL, 'surfaces': ('median',)}
_AGAIN = 'Delete the folder `cases` of the run and start the same command again: it is scored again, not trained again.'


@dataclasses.dataclass(frozen=True)
class Scan:
  """One scan of a figure; all arrays are on one grid: the network's for overlays, the scan's own for surfaces.

  Attributes:
    case: its id.
    standing: its place in the ranking of the run that chose it.
    spacing_mm: (z, y, x) voxel size.
    has_mm: whether that is known; without it a voxel counts as 1.
    truth: (D, H, W) uint8 classes.
    predictions: label of a row -> (D, H, W) uint8 classes, or a word for what is missing.
    dsc: label of a row -> its mean DSC over organs in this scan, in percent; those that scored it.
    image: (D, H, W) float32 in [0, 1]; None for surfaces.
  """

  case: str
  standing: str
  spacing_mm: tuple[float, float, float]
  has_mm: bool
  truth: np.ndarray
  predictions: dict[str, np.ndarray | str]
  dsc: dict[str, float]
  image: np.ndarray | None = None

  @functools.cached_property
  def slice(self) -> int | None:
    """Number of the slice that an overlay shows, 0 is the lowest; None for surfaces."""
    return None if self.image is None else choice.choose_slice(self.truth)

  @property
  def maps(self) -> list[np.ndarray]:
    """Truth and the predictions that are there."""
    return [self.truth, *(one for one in self.predictions.values() if not isinstance(one, str))]

  @property
  def seen(self) -> list[np.ndarray]:
    """What a figure shows of the maps: (H, W) of the slice for overlays, (D, H, W) for surfaces."""
    return self.maps if self.slice is None else [one[self.slice] for one in self.maps]


@dataclasses.dataclass(frozen=True)
class Shown:
  """What a figure shows.

  Attributes:
    filled: the rows of the figure as a table, from `collect.collect`.
    seed: of the runs.
    reference: label of the row whose scores choose the scans; '' while no run is done.
    scans: that were chosen.
  """

  filled: collect.Filled
  seed: int
  reference: str
  scans: tuple[Scan, ...]


def read(table: Table, members: Sequence[Member], done: Collection[str]) -> Shown:
  """Chooses the scans of a figure and reads them.

  The reference is the first row that others are compared with; while it has no run, the first row that has one.

  Args:
    table: one with a picture.
    members: of `runs.members`, of all tables.
    done: names of the runs that are done.

  Raises:
    InputError: a file of a run or of its store is damaged, missing, or not what was scored; or the runs were not scored
      alike.
  """
  (part,) = table.parts
  (filled,) = collect.collect(table, members, done)
  runs = {m.row.label: m.run for m in members if m.table == table.name}
  seed = next(m.seed for m in members if m.table == table.name)
  scored = {label: one for label, run in runs.items() if run.name in done and (one := _scored(run))}
  ranked = sorted(part.rows, key=lambda row: row.against is not None)
  reference = next((row.label for row in ranked if row.label in scored), '')
  if not reference:
    return Shown(filled, seed, '', ())
  dsc = {label: _percent(one) for label, one in scored.items()}
  chosen = choice.choose_scans(dsc[reference], _STANDINGS[table.picture])
  scans = [_scan(table, case, chosen[case], runs, scored, dsc, reference) for case in chosen]
  return Shown(filled, seed, reference, tuple(scans))


def _percent(run: scores.Run) -> dict[str, float]:
  return dict(zip(run.cases, (100 * run.mean_over_organs('dsc')).tolist()))


def _scored(run: Run) -> scores.Run | None:
  """The scores of a run; None while it is being scored again."""
  try:
    return scores.read_run(run.folder)
  except InputError:
    if states.is_done(run):
      raise
    return None


def _scan(table: Table, case_id: str, standing: str, runs: dict[str, Run], scored, dsc, reference: str) -> Scan:
  run = runs[reference]
  meta = _meta(run)
  folder = run_folder.store_path(run.config, run.folder)
  index = store.read_index(folder)
  case = store.read_case(folder, case_id)
  geometry = Geometry.from_json(case.meta['geometry'])
  truth = without_ignored(case.arrays['native_label'])
  maps: dict[str, np.ndarray | str] = {}
  for row in table.parts[0].rows:
    if row.label not in scored:
      maps[row.label] = NO_RUN
    elif case_id not in dsc[row.label]:
      maps[row.label] = NOT_SCORED
    else:
      maps[row.label] = _prediction(runs[row.label], scored[row.label], case)
  made = {label: of_run[case_id] for label, of_run in dsc.items() if case_id in of_run}
  if table.picture == 'surfaces':
    return Scan(case_id, standing, geometry.spacing_mm, geometry.has_mm, truth, maps, made)
  grid, image = working_grid.prepared_case(case, usual.overhang_of(meta['data']))
  window = build.selection(run.config, index, meta).windows[case_id]
  image, window = channels.shown(image, window)
  image = preprocess.apply_window(np.asarray(image)[None, ..., None], np.asarray([window]))
  on_grid = lambda labels: resample.to_working(labels, grid, 0)
  return Scan(
    case_id,
    standing,
    tuple(case.meta['spacing_mm']),
    geometry.has_mm,
    on_grid(truth),
    {label: one if isinstance(one, str) else on_grid(one) for label, one in maps.items()},
    made,
    np.asarray(image[0, ..., 0]),
  )


def _meta(run: Run) -> dict:
  return trained.read_meta(run.folder, run.config.eval.checkpoint)[1]


def _prediction(run: Run, scored: scores.Run, case: store.Case) -> np.ndarray | str:
  """The label map that a run was scored by, in classes; `NO_MAP` where it was deleted, `NO_RUN` while it is made."""
  if not os.path.exists(label_maps.path_of(run.folder, case.id)):
    return NO_MAP if states.is_done(run) else NO_RUN
  return label_maps.read(scored, case, _meta(run)['data']['output_ids'], cure=_AGAIN)
