"""Writes the report of an evaluated run, as text and as a page: tables with confidence intervals, curves, pictures."""

import glob
import importlib.util
import json
import logging
import os

from afw_jax.errors import InputError
from afw_jax.report import figures, tables
from afw_jax.report.blocks import Block, Heading, Picture, markdown
from afw_jax.report.notes import RULES, caution, fold_note, split_note, unusual
from afw_jax.report.page import pages, sources
from afw_jax.report.page.sources import ranked
from afw_jax.report.runs import SETTINGS, Run, read_run
from afw_jax.report.tables import format_table
from afw_jax.system import atomic_files
from afw_jax.system.file_names import file_name
from afw_jax.training import metric_writer

_log = logging.getLogger('afw_jax')


def report(workdir: str) -> dict[str, str]:
  """Writes WORKDIR/report: report.md, index.html (the page), scores.csv, table.csv, table.tex and training curves.

  Args:
    workdir: of an evaluated run (config.json, cases/*.json; metrics.jsonl for the curves).

  Returns:
    name -> path: 'report', 'page', 'scores', 'table', 'tex', and 'curves', 'learned_weights',
    'gamma' where they were drawn.

  Raises:
    InputError: no scores, or scores that cannot share a table (see `runs.read_run`).
  """
  run = read_run(workdir)
  folder = os.path.join(workdir, 'report')
  paths = {
    name: os.path.join(folder, file)
    for name, file in (
      ('report', 'report.md'),
      ('page', 'index.html'),
      ('scores', 'scores.csv'),
      ('table', 'table.csv'),
      ('tex', 'table.tex'),
    )
  }
  drawn = figures.draw_run(folder, metric_writer.read_metrics(workdir)) if _can_draw() else {}
  atomic_files.write_text(paths['scores'], tables.scores_csv(run))
  atomic_files.write_text(paths['table'], tables.table_csv(run))
  atomic_files.write_text(paths['tex'], tables.table_tex(run))
  pictures = [Picture(path, name) for name, path in drawn.items()] + _pictures(run)
  scores = _scores(run)
  blocks = [*scores, *_markdown_only(run), *([Heading('Pictures'), *pictures] if pictures else [])]
  atomic_files.write_text(paths['report'], markdown(blocks, folder))
  atomic_files.write_text(paths['page'], _page(run, scores, _source(run)))
  return paths | drawn


def summary(workdir: str) -> list[str]:
  """Writes the report and returns the lines for the terminal: the table by organ and the paths of all files."""
  paths = report(workdir)
  lines = ['', format_table(read_run(workdir)), '', *(f'{name + ":":<17}{path}' for name, path in paths.items())]
  for name in ('pictures', 'predictions'):
    folder = os.path.join(workdir, name)
    if os.path.isdir(folder):
      lines.append(f'{name + ":":<17}{folder} ({len(os.listdir(folder))} files)')
  return lines if _can_draw() else [*lines, 'No curves: matplotlib is not installed (pip install afw_jax[viz]).']


def _scores(run: Run) -> list[Block]:
  """What the Markdown file and the page begin with: title, notes, and the table by organ."""
  tolerance = run.nsd_tolerance if isinstance(run.nsd_tolerance, (int, float)) else json.dumps(run.nsd_tolerance)
  options = f' ({", ".join(f"{k}={v}" for k, v in run.loss_options.items())})' if run.loss_options else ''
  settings = ', '.join(f'{key} {run.settings[key]}' for key in SETTINGS if key in run.settings)
  return [
    Heading(f'{run.network} with {run.loss} on {run.dataset}', 1),
    f'Loss: {run.loss}{options}. {len(run.cases)} case(s) of split `{run.split}`, each scored as a volume on the grid '
    'of its scan.',
    *fold_note(run.folds, run.unfinished),
    *([f'Predicted with {settings}.'] if settings else []),
    f'Metric convention: **{run.convention}**. {RULES[run.convention]}',
    Heading(f'Scores by organ ({run.convention}, distances in {run.unit})'),
    tables.organ_table(run),
    'Mean ± sample standard deviation over cases [95 % bootstrap interval of the mean, 5000 resamples, seed 0]. The '
    f'row `{tables.MEAN}` averages the organs of each case first. HD95 is the 95th percentile of the distances of both '
    f'directions together, HD95 max the larger of the two directed percentiles. NSD within {tolerance} {run.unit}. '
    '`scored`: number of cases in the mean DSC (last row: of organs in all cases).',
    *split_note(run.split, run.settings.get('checkpoint')),
    *caution(len(run.cases)),
    *unusual(dict(zip(run.cases, run.notes))),
  ]


def _markdown_only(run: Run) -> list[Block]:
  """What the Markdown file has of single cases, and the table that is pasted into other tables."""
  return [
    Heading(f'Organs as columns ({run.convention})'),
    tables.wide_table([(run.loss, run)]),
    Heading('Lowest cases'),
    tables.case_table(run, ranked(run)[:5]),
    'All cases and organs: `scores.csv`.',
  ]


def _pictures(run: Run) -> list[Picture]:
  """The overlays in the folder of a run, with the names of their cases."""
  paths = sorted(glob.glob(os.path.join(glob.escape(run.workdir), 'pictures', '*.png')))
  case_of = {file_name(case): case for case in run.cases}
  stem = lambda path: os.path.basename(path)[:-4]
  return [Picture(path, case_of.get(stem(path), stem(path))) for path in paths]


def served_page(workdir: str) -> tuple[str, sources.Source | str]:
  """The page of an evaluated run for --mode=view, and the source of its scans, or why there is none.

  Raises:
    InputError: as `report`.
  """
  run = read_run(workdir)
  source = _source(run)
  return _page(run, _scores(run), source, served=True), source


def _source(run: Run) -> sources.Source | str:
  try:
    return sources.of_run(run)
  except InputError as error:
    _log.warning('page without scans: %s', error)
    return str(error)


def _page(run: Run, scores: list[Block], source: sources.Source | str, *, served: bool = False) -> str:
  folder = os.path.join(run.workdir, 'report')
  figures_there = [Picture(os.path.join(folder, f'{name}.png'), title) for name, title in figures.TITLES.items()]
  figures_there = [picture for picture in figures_there if os.path.exists(picture.path)]
  return pages.of_run(run, scores, figures_there, _pictures(run), source, served=served)


def _can_draw() -> bool:
  return importlib.util.find_spec('matplotlib') is not None
