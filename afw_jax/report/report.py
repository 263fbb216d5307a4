"""Writes the report of an evaluated run: tables with confidence intervals, training curves, pictures."""

import glob
import importlib.util
import json
import os
import urllib.parse

import numpy as np

from afw_jax.report import figures, tables
from afw_jax.report.notes import RULES, caution, fold_note, split_note, unusual
from afw_jax.report.runs import SETTINGS, Run, read_run
from afw_jax.report.tables import format_table, heading, markdown, number
from afw_jax.system import atomic_files
from afw_jax.system.file_names import file_name
from afw_jax.training import metric_writer


def report(workdir: str) -> dict[str, str]:
  """Writes WORKDIR/report: report.md, scores.csv (each case and organ), table.csv, table.tex and training curves.

  Args:
    workdir: of an evaluated run (config.json, cases/*.json; metrics.jsonl for the curves).

  Returns:
    name -> path: 'report', 'scores', 'table', 'tex', and 'curves', 'learned_weights', 'gamma' where they were drawn.

  Raises:
    InputError: no scores, or scores that cannot share a table (see `runs.read_run`).
  """
  run = read_run(workdir)
  folder = os.path.join(workdir, 'report')
  paths = {
    name: os.path.join(folder, file)
    for name, file in (('report', 'report.md'), ('scores', 'scores.csv'), ('table', 'table.csv'), ('tex', 'table.tex'))
  }
  drawn = figures.draw_run(folder, metric_writer.read_metrics(workdir)) if _can_draw() else {}
  atomic_files.write_text(paths['scores'], tables.scores_csv(run))
  atomic_files.write_text(paths['table'], tables.table_csv(run))
  atomic_files.write_text(paths['tex'], tables.table_tex(run))
  atomic_files.write_text(paths['report'], _markdown_report(run, folder, list(drawn.values())))
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


def _markdown_report(run: Run, folder: str, drawn: list[str]) -> str:
  tolerance = run.nsd_tolerance if isinstance(run.nsd_tolerance, (int, float)) else json.dumps(run.nsd_tolerance)
  options = f' ({", ".join(f"{k}={v}" for k, v in run.loss_options.items())})' if run.loss_options else ''
  settings = ', '.join(f'{key} {run.settings[key]}' for key in SETTINGS if key in run.settings)
  worst = np.argsort(run.mean_over_organs('dsc'), kind='stable')[:5]
  rows = [
    [
      run.cases[i],
      number(100 * run.mean_over_organs('dsc')[i]),
      number(run.mean_over_organs('hd95_pooled_mm')[i]),
      ', '.join(o for o, lost in zip(run.organs, run.flags['missed'][i]) if lost) or '-',
      ', '.join(o for o, false in zip(run.organs, run.flags['false_positive'][i]) if false) or '-',
    ]
    for i in worst
  ]
  parts = [
    f'# {run.network} with {run.loss} on {run.dataset}',
    f'Loss: {run.loss}{options}. {len(run.cases)} case(s) of split `{run.split}`, each scored as a volume on the grid '
    'of its scan.',
    *fold_note(run.folds, run.unfinished),
    *([f'Predicted with {settings}.'] if settings else []),
    f'Metric convention: **{run.convention}**. {RULES[run.convention]}',
    f'## Scores by organ ({run.convention}, distances in {run.unit})',
    tables.organ_table(run),
    'Mean ± sample standard deviation over cases [95 % bootstrap interval of the mean, 5000 resamples, seed 0]. The '
    f'row `{tables.MEAN}` averages the organs of each case first. HD95 is the 95th percentile of the distances of both '
    f'directions together, HD95 max the larger of the two directed percentiles. NSD within {tolerance} {run.unit}. '
    '`scored`: number of cases in the mean DSC (last row: of organs in all cases).',
    *split_note(run.split, run.settings.get('checkpoint')),
    *caution(len(run.cases)),
    *unusual(dict(zip(run.cases, run.notes))),
    f'## Organs as columns ({run.convention})',
    tables.wide_table([(run.loss, run)]),
    '## Lowest cases',
    markdown(['case', 'DSC (%)', heading(run, 'hd95_pooled_mm', 'HD95'), 'missed', 'false'], rows),
    'All cases and organs: `scores.csv`.',
  ]
  pictures = [*drawn, *sorted(glob.glob(os.path.join(glob.escape(run.workdir), 'pictures', '*.png')))]
  if pictures:
    case_of = {file_name(case): case for case in run.cases}
    name = lambda path: case_of.get(os.path.basename(path)[:-4], os.path.basename(path)[:-4])
    link = lambda path: urllib.parse.quote(os.path.relpath(path, folder), errors='surrogateescape')
    parts += ['## Pictures', *(f'![{name(p)}]({link(p)})' for p in pictures)]
  return '\n\n'.join(parts) + '\n'


def _can_draw() -> bool:
  return importlib.util.find_spec('matplotlib') is not None
