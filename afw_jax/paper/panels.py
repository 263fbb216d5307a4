"""The sheet of a figure of scans: a row for each scan, a column for the truth and each run, and a legend of organs."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from afw_jax.paper.scans import NO_RUN, Scan, Shown
from afw_jax.report.style import label, legend_patch, new_figure, save

TRUTH = 'truth'
_BARS_MM = (100, 50, 20, 10, 5)
_MISSING = '#e6e6e6'
_CHARACTER = 0.085  # inches of the legend, beside _PATCH for the box of colour
_PATCH = 0.55


def sheet(
  path: str,
  title: str,
  columns: Sequence[str],
  shown: Shown,
  panel: tuple[float, float],
  draw: Callable[[Any, int, np.ndarray, list[int]], None],
) -> str:
  """Writes the PNG file of a figure and returns its path.

  Args:
    path: of the file.
    title: above the panels.
    columns: labels of the rows of the table, which are the columns of the picture beside the truth.
    shown: from `scans.read`.
    panel: (width, height) of a panel in inches.
    draw: (axes, number of the scan, label map, classes) draws a label map that is there, in axes without ticks.
  """
  if not shown.scans:
    return empty(path, title, NO_RUN)
  classes = sorted({int(c) for scan in shown.scans for one in scan.seen for c in np.unique(one)} - {0})
  names = {c: label(f'{c} {shown.filled.classes[c - 1].replace("_", " ")}') for c in classes}
  width = panel[0] * (len(columns) + 1) + 0.5
  entry = max([0, *(_PATCH + _CHARACTER * len(name) for name in names.values())])
  legend_rows = -(-len(names) // max(1, int(width / max(entry, 1))))
  per_row = -(-len(names) // max(1, legend_rows))
  headings = [_wrapped(column) for column in (TRUTH, *columns)]
  lines = max(text.count('\n') for text in headings)
  above = 0.85 + 0.22 * (lines + title.count('\n'))
  figure = new_figure(width, panel[1] * len(shown.scans) + above + 0.25 * legend_rows)
  figure.get_layout_engine().set(w_pad=0.02, h_pad=0.05, wspace=0.01, hspace=0.01)
  grid = figure.subplots(len(shown.scans), len(columns) + 1, squeeze=False)
  for n, (scan, row) in enumerate(zip(shown.scans, grid)):
    for axes, column in zip(row, (None, *columns)):
      axes.set_xticks([])
      axes.set_yticks([])
      axes.spines[:].set_visible(False)
      found = scan.truth if column is None else scan.predictions[column]
      if isinstance(found, str):
        _say_missing(axes, found, panel)
      else:
        draw(axes, n, found, classes)
    row[0].set_ylabel(_row_label(scan), fontsize=9)
  for axes, text in zip(grid[0], headings):
    axes.set_title(text, fontsize=11)
  figure.suptitle(title, fontsize=12)
  if names:
    handles = [legend_patch(c, name) for c, name in names.items()]
    figure.legend(handles=handles, loc='outside lower center', ncols=per_row, frameon=False, fontsize=10)
  return save(figure, path)


def empty(path: str, title: str, text: str) -> str:
  """Writes the PNG file of a figure that has nothing to show, and returns its path."""
  figure = new_figure(7.2, 2.4)
  axes = figure.subplots()
  axes.set_axis_off()
  axes.text(0.5, 0.5, text, transform=axes.transAxes, ha='center', va='center', color='#808080')
  figure.suptitle(title, fontsize=12)
  return save(figure, path)


def scale_bar(axes, unit: float, colour: str, effects: list, *, height: float = 0.05) -> None:
  """Draws the longest bar that fits a third of the panel, in its lower left corner.

  Args:
    axes: with their limits set.
    unit: mm for 1 along x.
    colour: of bar and text.
    effects: path effects of both.
    height: of the bar, as a share of that of the panel.
  """
  (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
  length = next((mm for mm in _BARS_MM if mm / unit <= (right - left) / 3), _BARS_MM[-1])
  x, y = left + 0.04 * (right - left), bottom + height * (top - bottom)
  axes.plot([x, x + length / unit], [y, y], color=colour, linewidth=2.2, path_effects=effects)
  place = {'xytext': (0, 4), 'textcoords': 'offset points'}
  axes.annotate(f'{length} mm', (x, y), **place, color=colour, fontsize=8, path_effects=effects)


def _wrapped(text: str) -> str:
  """A heading in lines of its parts: network, loss."""
  return label(text).replace(', ', ',\n')


def _row_label(scan: Scan) -> str:
  name = '\n'.join(textwrap.wrap(label(scan.case), 30))
  return f'{name}\n{scan.standing}' + ('' if scan.slice is None else f', slice {scan.slice}')


def _say_missing(axes, text: str, panel: tuple[float, float]) -> None:
  axes.set_facecolor(_MISSING)
  axes.set_box_aspect(panel[1] / panel[0])
  axes.text(0.5, 0.5, text, transform=axes.transAxes, ha='center', va='center', fontsize=10, color='#404040')
