"""A collected table as Markdown, CSV and LaTeX; each says its metric convention and units."""

import math
from collections.abc import Sequence

from afw_jax.paper import results
from afw_jax.paper.collect import MEANS, Filled, Line
from afw_jax.paper.table import Table
from afw_jax.report.blocks import Block, Heading, Picture, markdown
from afw_jax.report.blocks import Table as Rows
from afw_jax.report.notes import RULES, caution, split_note
from afw_jax.report.stats import RESAMPLES, Summary
from afw_jax.report.tables import csv_text, number, tex_text

_NOTHING = '-'
PHANTOM = 'Synthetic scans and networks of testing size: the numbers mean nothing.'


def as_markdown(table: Table, filled: Sequence[Filled], *, phantom: bool = False) -> str:
  """`as_blocks` as Markdown."""
  return markdown(as_blocks(table, filled, phantom=phantom))


def as_blocks(table: Table, filled: Sequence[Filled], picture: str = '', *, phantom: bool = False) -> list[Block]:
  """A report with a table of means and one of organs for each part.

  Args:
    table: of the paper.
    filled: from `collect.collect`.
    picture: path of the picture, to be shown at the end; '' for none.
    phantom: whether the runs are those of synthetic scans, which nothing published stands beside.
  """
  parts: list[Block] = [Heading(title(table), 1), *caption(table, filled, phantom=phantom)]
  for one in filled:
    parts += [Heading(f'{one.part.title}{_facts(one)}'), Rows(*_means(one, phantom))]
    if one.organs:
      parts += ['DSC of each organ (%)', Rows(*_organs(one, phantom))]
  return parts + ([Picture(picture, title(table))] if picture else [])


def caption(table: Table, filled: Sequence[Filled], *, phantom: bool = False) -> list[str]:
  """The sentences that belong to a table: what its numbers are, and how many runs they are of."""
  lines = [line for one in filled for line in one.lines]
  done, planned = (sum(getattr(line, key) for line in lines) for key in ('done', 'planned'))
  conventions = list(dict.fromkeys(one.convention for one in filled if one.convention))
  compared = sum(not math.isnan(line.p) for line in lines)
  published = any(line.row.published for line in lines) and not phantom
  few = min((one.cases for one in filled if one.cases), default=None)
  return [
    f'{done} of {planned} runs. {table.remark}'.strip(),
    *([f'**{PHANTOM}**'] if phantom else []),
    'Each number is the mean over cases (of the mean over organs, where no organ is named), averaged over seeds; ± '
    'sample standard deviation of the means of several seeds; in brackets the 95 % bootstrap interval over cases, or '
    f'over seeds and cases where there are several seeds ({RESAMPLES} resamples, seed 0)'
    + ("; in parentheses the paper's number." if published else '.'),
    *(
      [
        'Difference: DSC less that of the row named behind it, paired by case and averaged over the seeds of both, '
        "with its 95 % bootstrap interval over cases. p: Wilcoxon's signed-rank test over cases, two-sided, corrected "
        f"by Holm's procedure for the {compared} comparison{'s' * (compared != 1)} of this table."
      ]
      if compared
      else []
    ),
    *(f'Metric convention: **{name}**. {RULES[name]}' for name in conventions),
    *([results.CONVENTION] if published and any('hd95' in line.row.published for line in lines) else []),
    *dict.fromkeys(note for one in filled for note in split_note(one.split, one.checkpoint)),
    *(caution(few) if few is not None else []),
  ]


def as_csv(table: Table, filled: Sequence[Filled], *, phantom: bool = False) -> str:
  """One line for each part, row and column, with all digits; nothing where there is no number."""
  head = 'table data row column unit convention mean sd_over_seeds ci95_low ci95_high cases seeds runs planned_runs'
  head += ' missing_folds published against difference difference_low difference_high p_holm'
  rows = [head.split()]
  for one in filled:
    for line in one.lines:
      for name in (*MEANS, *one.organs):
        cell, published = line.cells.get(name), None if phantom else line.row.published.get(name)
        unit = (one.unit or 'mm') if name in ('hd95', 'hd') else 'percent'
        numbers = [cell.mean, cell.sd, cell.low, cell.high] if cell else [math.nan] * 4
        of_row = [line.seeds, line.done, line.planned, ' '.join(line.missing_folds)]
        tested = line.difference if name == 'dsc' else None
        test = [tested.difference, tested.low, tested.high, line.p] if tested else [math.nan] * 4
        rows.append(
          [table.name, one.part.data, line.row.label, name, unit, one.convention, *map(_digits, numbers)]
          + [cell.n if cell else 0, *of_row, '' if published is None else published]
          + [line.row.against or '' if name == 'dsc' else '', *map(_digits, test)]
        )
  return csv_text(rows)


def as_tex(table: Table, filled: Sequence[Filled], *, phantom: bool = False) -> str:
  """A LaTeX table for each part; needs the packages booktabs and graphicx."""
  text = [r'% needs \usepackage{booktabs} and \usepackage{graphicx}']
  says = ' '.join(caption(table, filled, phantom=phantom)).replace('**', '').replace(' - ', ' ')
  for one in filled:
    head, rows = _means(one, phantom)
    organ_head, organ_rows = _organs(one, phantom)
    tables = [(head, rows)] + ([(['DSC (%)', *organ_head[1:]], organ_rows)] if one.organs else [])
    text += [
      r'\begin{table}',
      r'\centering',
      rf'\caption{{{tex(f"{title(table)}, {one.part.title}{_facts(one)}. {says}")}}}',
      *(line for shown in tables for line in _tabular(*shown)),
      r'\end{table}',
    ]
  return '\n'.join([*text, ''])


def _tabular(head: list[str], rows: list[list[str]]) -> list[str]:
  return [
    r'\resizebox{\textwidth}{!}{%',
    rf'\begin{{tabular}}{{l{"r" * (len(head) - 1)}}}',
    r'\toprule',
    ' & '.join(map(tex, head)) + r' \\',
    r'\midrule',
    *(' & '.join(f'{{{tex(cell)}}}' for cell in row) + r' \\' for row in rows),
    r'\bottomrule',
    r'\end{tabular}}',
    r'\par\medskip',
  ]


def tex(text: str) -> str:
  """A text as LaTeX shows it, with the signs of these tables."""
  return tex_text(text).replace('±', r'$\pm$')


def title(table: Table) -> str:
  """'Table 1: Losses on Synapse'."""
  name = table.name.replace('table', 'Table ').replace('figure', 'Figure ')
  return f'{name}: {table.title}' if name != table.name else table.title


def _facts(one: Filled) -> str:
  """The number of cases, the split and the convention of a part, once there are scores."""
  return f': {one.cases} cases of split {one.split}, {one.convention}' if one.convention else ': no run yet'


def _means(one: Filled, phantom: bool) -> tuple[list[str], list[list[str]]]:
  """Heading and rows: the means over organs, and the comparison."""
  unit = one.unit or 'mm'
  titles = [f'{title} ({"%" if name == "dsc" else unit})' for name, (title, _) in MEANS.items()]
  rows = [
    [
      _label(line, one),
      *(_cell(line, name, phantom) for name in MEANS),
      *_comparison(line),
      f'{line.done} of {line.planned}',
    ]
    for line in one.lines
  ]
  return ['', *titles, 'difference in DSC (%)', 'p', 'runs'], rows


def _organs(one: Filled, phantom: bool) -> tuple[list[str], list[list[str]]]:
  rows = [[_label(line, one), *(_cell(line, organ, phantom) for organ in one.organs)] for line in one.lines]
  return ['', *(organ.replace('_', ' ') for organ in one.organs)], rows


def _label(line: Line, one: Filled) -> str:
  """The label of a row, which says what it lacks of the cases that others have."""
  cases = line.cells['dsc'].n if 'dsc' in line.cells else one.cases
  words = [f'lacks fold {", ".join(line.missing_folds)}'] if line.missing_folds else []
  words += [f'{cases} of {one.cases} cases'] if cases < one.cases else []
  return line.row.label + (f' ({", ".join(words)})' if words else '')


def _cell(line: Line, name: str, phantom: bool) -> str:
  published = None if phantom else line.row.published.get(name)
  text = _summary(line.cells[name]) if name in line.cells else _NOTHING
  return text if published is None else f'{text} ({number(published)})'


def _summary(s: Summary) -> str:
  """'mean ± sd [low, high]', without what there is not."""
  text = number(s.mean)
  text += '' if math.isnan(s.sd) else f' ± {number(s.sd)}'
  return text if math.isnan(s.low) else f'{text} [{number(s.low)}, {number(s.high)}]'


def _comparison(line: Line) -> list[str]:
  d = line.difference
  if d is None or math.isnan(d.difference):
    return [_NOTHING] * 2
  interval = '' if math.isnan(d.low) else f' [{d.low:+.2f}, {d.high:+.2f}]'
  p = _NOTHING if math.isnan(line.p) else '< 0.001' if line.p < 0.001 else f'{line.p:.3f}'
  return [f'{d.difference:+.2f}{interval} to {line.row.against}', p]


def _digits(value: float) -> str:
  return '' if math.isnan(value) else f'{value:.10g}'
