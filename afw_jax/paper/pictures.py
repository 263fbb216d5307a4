"""Pictures of collected tables: dots with intervals, or lines for the figures of the paper."""

from collections.abc import Sequence

import numpy as np

from afw_jax.paper.collect import MEANS, Filled, Line
from afw_jax.paper.render import PHANTOM
from afw_jax.paper.table import Table
from afw_jax.report.style import colour, label, new_figure, save

_SHOWN = ('dsc', 'hd95')
_INCHES_A_ROW = 0.42


def draw(path: str, table: Table, filled: Sequence[Filled], *, phantom: bool = False) -> str:
  """Writes the PNG file of a table and returns its path.

  Args:
    path: of the file.
    table: of the paper; one with an axis becomes a line.
    filled: from `collect.collect`.
    phantom: whether the runs are those of synthetic scans.
  """
  rows = [len(one.lines) for one in filled]
  if table.axis:
    figure = new_figure(7.2, 4.6 * len(filled))
    for axes, one in zip(np.ravel(figure.subplots(len(filled), 1)), filled):
      _line(axes, table, one)
  else:
    height = sum(_INCHES_A_ROW * n + 1.0 for n in rows) + 0.7
    figure = new_figure(11, height)
    grid = figure.subplots(len(filled), len(_SHOWN), squeeze=False, height_ratios=rows)
    for row, one in zip(grid, filled):
      for axes, name in zip(row, _SHOWN):
        _dots(axes, one, name, names=name == _SHOWN[0], phantom=phantom)
    handles, texts = grid[0][0].get_legend_handles_labels()
    if handles:
      figure.legend(handles, texts, loc='outside lower center', ncols=len(handles), frameon=False)
  done, planned = (sum(getattr(line, key) for one in filled for line in one.lines) for key in ('done', 'planned'))
  title = f'{table.title} ({done} of {planned} runs)'
  figure.suptitle(f'{title}\n{PHANTOM}' if phantom else title, fontsize=12)
  return save(figure, path)


def _dots(axes, one: Filled, name: str, *, names: bool, phantom: bool) -> None:
  """One score of every row, as a dot with its interval; what the paper published as a hollow diamond."""
  for place, line in enumerate(one.lines):
    if cell := line.cells.get(name):
      axes.plot([cell.low, cell.high], [place, place], color=colour(5), linewidth=2.4, solid_capstyle='round')
      axes.plot(
        cell.mean, place, 'o', color=colour(5), markersize=7, label='ours' if place == _first(one, name) else None
      )
    published = line.row.published.get(name)
    if published is not None and not phantom:
      diamond = {'markerfacecolor': 'white', 'markeredgecolor': colour(6), 'markersize': 8, 'markeredgewidth': 1.6}
      axes.plot(
        published, place, 'D', label="paper's number" if place == _first_published(one, name) else None, **diamond
      )
  axes.set_yticks(range(len(one.lines)), [_label(line) if names else '' for line in one.lines])
  axes.set_ylim(len(one.lines) - 0.5, -0.5)
  unit = '%' if name == 'dsc' else one.unit or 'mm'
  axes.set_xlabel(f'{MEANS[name][0]} ({unit}), mean with 95 % interval')
  facts = f', {one.cases} cases, {one.convention}' if one.convention else ''
  axes.set_title(f'{one.part.title}{facts}' if names else '', fontsize=11, loc='left')
  _dress(axes, empty=not any(name in line.cells or name in line.row.published for line in one.lines))


def _first(one: Filled, name: str) -> int:
  return next(i for i, line in enumerate(one.lines) if name in line.cells)


def _first_published(one: Filled, name: str) -> int:
  return next(i for i, line in enumerate(one.lines) if name in line.row.published)


def _line(axes, table: Table, one: Filled) -> None:
  """The mean DSC against the place of the rows on the axis of the figure."""
  shown = [(line.row.x, line.cells['dsc']) for line in one.lines if 'dsc' in line.cells]
  if shown:
    x = [place for place, _ in shown]
    axes.plot(x, [cell.mean for _, cell in shown], 'o-', color=colour(5), linewidth=2)
    for place, cell in shown:
      axes.plot([place, place], [cell.low, cell.high], color=colour(5), linewidth=1.4)
  axes.set_xticks([line.row.x for line in one.lines])
  axes.set_xlabel(table.axis)
  axes.set_ylabel('DSC (%), mean with 95 % interval')
  facts = f', {one.cases} cases of split {one.split}' if one.split else ''
  axes.set_title(f'{one.part.title}{facts}', fontsize=11)
  _dress(axes, empty=not shown)


def _label(line: Line) -> str:
  return f'{label(line.row.label)}  ({line.done}/{line.planned})'


def _dress(axes, *, empty: bool) -> None:
  axes.grid(alpha=0.25)
  axes.spines[['top', 'right']].set_visible(False)
  if empty:
    axes.text(0.5, 0.5, 'no run yet', transform=axes.transAxes, ha='center', va='center', color='#808080')
