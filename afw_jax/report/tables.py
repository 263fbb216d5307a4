"""Tables of the scores of a run: blocks of a report, plain text, CSV, LaTeX; each names its convention and units."""

import csv
import io
import math
from collections.abc import Sequence

import numpy as np

from afw_jax.report.blocks import Table
from afw_jax.report.runs import FLAGS, VOLUMES, Run
from afw_jax.report.stats import Summary, summarise

# score, heading, factor, decimals; DSC and NSD are given in percent
COLUMNS = (
  ('dsc', 'DSC', 100, 2),
  ('hd95_pooled_mm', 'HD95', 1, 2),
  ('hd95_max_mm', 'HD95 max', 1, 2),
  ('hd_mm', 'HD', 1, 2),
  ('assd_mm', 'ASSD', 1, 2),
  ('nsd', 'NSD', 100, 2),
)
MEAN = 'mean'
_COUNTS = ('cases', *FLAGS)


def organ_rows(run: Run) -> list[tuple[str, dict[str, Summary], dict[str, int]]]:
  """One row for each organ, and a last one for the mean over the organs of each case.

  Returns:
    (organ, score -> Summary over cases, in percent for DSC and NSD, counts of cases, missed, false_positive, absent).
  """
  rows = []
  for o, organ in enumerate(run.organs):
    summaries = {name: summarise(run.scores[name][:, o] * factor) for name, _, factor, _ in COLUMNS}
    rows.append((organ, summaries, {'cases': len(run.cases)} | {f: int(run.flags[f][:, o].sum()) for f in FLAGS}))
  summaries = {name: summarise(run.mean_over_organs(name) * factor) for name, _, factor, _ in COLUMNS}
  rows.append((MEAN, summaries, {'cases': len(run.cases)} | {f: int(run.flags[f].sum()) for f in FLAGS}))
  return rows


def heading(run: Run, name: str, title: str) -> str:
  """A column's title with its unit."""
  return f'{title} (%)' if name in ('dsc', 'nsd') else f'{title} ({run.unit})'


def number(value: float, decimals: int = 2) -> str:
  """A number with fixed decimals; '-' for nan."""
  return '-' if math.isnan(value) else f'{value:.{decimals}f}'


def cell(s: Summary, decimals: int = 2) -> str:
  """'mean ± sd [low, high]'; only the mean where there are too few cases for the rest."""
  text = number(s.mean, decimals)
  if not math.isnan(s.sd):
    text += f' ± {number(s.sd, decimals)} [{number(s.low, decimals)}, {number(s.high, decimals)}]'
  return text


def format_table(run: Run) -> str:
  """A plain-text table for the terminal: one line per organ."""
  head = [
    'organ',
    'DSC %',
    '95 % CI',
    f'HD95 {run.unit}',
    f'HD {run.unit}',
    f'ASSD {run.unit}',
    'NSD %',
    'missed',
    'false',
  ]
  lines = []
  for organ, s, counts in organ_rows(run):
    interval = '-' if math.isnan(s['dsc'].low) else f'{s["dsc"].low:.1f} - {s["dsc"].high:.1f}'
    shown = [number(s[name].mean, 2) for name in ('dsc', 'hd95_pooled_mm', 'hd_mm', 'assd_mm', 'nsd')]
    lines.append([organ, shown[0], interval, *shown[1:], str(counts['missed']), str(counts['false_positive'])])
  widths = [max(len(row[i]) for row in [head, *lines]) for i in range(len(head))]
  text = [
    f'{len(run.cases)} case(s) of split {run.split}{_folds(run)}, metric convention: {run.convention}, '
    f'distances in {run.unit}'
  ]
  for row in [head, ['-' * w for w in widths], *lines[:-1], ['-' * w for w in widths], lines[-1]]:
    text.append('  '.join([row[0].ljust(widths[0]), *(v.rjust(w) for v, w in zip(row[1:], widths[1:]))]).rstrip())
  return '\n'.join(text)


def _folds(run: Run) -> str:
  """', fold K of N', ', N folds pooled' or nothing."""
  if not run.folds:
    return ''
  number, count = run.folds[0].split('/')
  return f', fold {number} of {count}' if len(run.folds) == 1 else f', {count} folds pooled'


def organ_table(run: Run) -> Table:
  """One row for each organ, one column for each score, mean ± sd [95 % CI]."""
  head = ['organ', *(heading(run, name, title) for name, title, _, _ in COLUMNS), 'scored', 'missed', 'false', 'absent']
  rows = []
  for organ, s, counts in organ_rows(run):
    scored = str(s['dsc'].n) if organ != MEAN else str(int((~np.isnan(run.scores['dsc'])).sum()))
    rows.append([organ, *(cell(s[name], d) for name, _, _, d in COLUMNS), scored, *(str(counts[f]) for f in FLAGS)])
  return Table(head, rows, summaries=1)


def wide_table(runs: list[tuple[str, Run]]) -> Table:
  """One row for each run, with mean DSC, mean HD95 and the DSC of each organ, as in the paper's tables."""
  organs = runs[0][1].organs
  head = ['run', 'DSC (%)', heading(runs[0][1], 'hd95_pooled_mm', 'HD95'), *(f'{organ} DSC (%)' for organ in organs)]
  rows = []
  for name, run in runs:
    *by_organ, mean = [s for _, s, _ in organ_rows(run)]
    rows.append(
      [name, number(mean['dsc'].mean), number(mean['hd95_pooled_mm'].mean), *(number(s['dsc'].mean) for s in by_organ)]
    )
  return Table(head, rows)


def case_table(run: Run, cases: Sequence[int]) -> Table:
  """One row for each case: the means over its organs, and the organs that were missed or falsely predicted.

  Args:
    run: the scores.
    cases: indices of the rows.
  """
  dsc, hd95 = 100 * run.mean_over_organs('dsc'), run.mean_over_organs('hd95_pooled_mm')
  named = lambda flag, i: ', '.join(organ for organ, there in zip(run.organs, run.flags[flag][i]) if there) or '-'
  return Table(
    ['case', 'DSC (%)', heading(run, 'hd95_pooled_mm', 'HD95'), 'missed', 'false'],
    [[run.cases[i], number(dsc[i]), number(hd95[i]), named('missed', i), named('false_positive', i)] for i in cases],
  )


def score_tables(run: Run, cases: Sequence[int]) -> dict[str, Table]:
  """Title -> a table of one score with all its values: a row for each case, a column for each organ and their mean.

  Args:
    run: the scores.
    cases: indices of the rows.
  """
  found = {}
  for name, title, factor, decimals in COLUMNS:
    means = run.mean_over_organs(name)
    values = lambda i, name=name, means=means: [*run.scores[name][i], means[i]]
    rows = [[run.cases[i], *(number(factor * v, decimals) for v in values(i))] for i in cases]
    found[heading(run, name, title)] = Table(['case', *run.organs, MEAN], rows)
  return found


def scores_csv(run: Run) -> str:
  """CSV: one line for each case and organ, fractions (not percent), all digits."""
  names = [(name, _in_unit(run, name)) for name, _, _, _ in COLUMNS]
  rows = [['case', 'organ', 'convention', *(shown for _, shown in names), *FLAGS, *VOLUMES]]
  for n, case in enumerate(run.cases):
    for o, organ in enumerate(run.organs):
      values = [repr(float(run.scores[name][n, o])) for name, _ in names]
      flags = [int(run.flags[f][n, o]) for f in FLAGS]
      rows.append([case, organ, run.convention, *values, *flags, *(f'{run.volumes[v][n, o]:.10g}' for v in VOLUMES)])
  return csv_text(rows)


def table_csv(run: Run) -> str:
  """CSV: one line for each organ and the mean, every statistic in its own column."""
  parts = ('mean', 'sd', 'ci95_low', 'ci95_high', 'n')
  names = [f'{_in_unit(run, name)}{"_percent" if factor == 100 else ""}' for name, _, factor, _ in COLUMNS]
  rows = [['organ', 'convention', *(f'{name}_{part}' for name in names for part in parts), *_COUNTS]]
  for organ, s, counts in organ_rows(run):
    rows.append(
      [
        organ,
        run.convention,
        *(f'{v:.10g}' for name, _, _, _ in COLUMNS for v in s[name]),
        *(counts[c] for c in _COUNTS),
      ]
    )
  return csv_text(rows)


def table_tex(run: Run) -> str:
  """LaTeX (needs booktabs): mean ± sd of DSC, HD95, ASSD and NSD; the caption names the convention."""
  shown = [c for c in COLUMNS if c[0] in ('dsc', 'hd95_pooled_mm', 'assd_mm', 'nsd')]
  lines = [
    r'\begin{table}',
    r'\centering',
    rf'\caption{{{tex_text(run.network)} with {tex_text(run.loss)} on {tex_text(run.dataset)} '
    rf'({tex_text(run.split)} split{_folds(run)}): mean $\pm$ standard deviation over {len(run.cases)} cases, '
    rf"metric convention ``{tex_text(run.convention)}''.}}",
    rf'\begin{{tabular}}{{l{"r" * (len(shown) + 1)}}}',
    r'\toprule',
    ' & '.join(['organ', *(tex_text(heading(run, name, title)) for name, title, _, _ in shown), 'missed']) + r' \\',
    r'\midrule',
  ]
  for organ, s, counts in organ_rows(run):
    if organ == MEAN:
      lines.append(r'\midrule')
    cells = [
      number(s[n].mean, d) + ('' if math.isnan(s[n].sd) else rf' $\pm$ {number(s[n].sd, d)}') for n, _, _, d in shown
    ]
    lines.append(' & '.join([tex_text(organ), *cells, str(counts['missed'])]) + r' \\')
  return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}', r'\end{table}', ''])


def _in_unit(run: Run, name: str) -> str:
  return name if run.unit == 'mm' else name.replace('_mm', '_voxels' if run.unit == 'voxels' else '_mixed_units')


def csv_text(rows: list[list]) -> str:
  """Rows as CSV."""
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows(rows)
  return text.getvalue()


_TEX = {c: f'\\{c}' for c in '_%&#${}'} | {
  '\\': r'\textbackslash{}',
  '^': r'\textasciicircum{}',
  '~': r'\textasciitilde{}',
  '<': r'\textless{}',  # in the usual font encoding these three are other characters
  '>': r'\textgreater{}',
  '|': r'\textbar{}',
}


def tex_text(text: str) -> str:
  """A text as LaTeX shows it."""
  return ' '.join(''.join(_TEX.get(c, c) for c in text).split())
