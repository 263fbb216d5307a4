"""Creates and saves figures, and chooses the colours of organs. Matplotlib without pyplot, which keeps global state."""

import contextlib
import os

from afw_jax.atomic_files import process_name, write_errors
from afw_jax.errors import InputError

# Thirteen colours that stay distinct in normal vision, deuteranopia, protanopia and tritanopia, on black and on white.
COLOURS = (
  '#df9f00', '#40dfdf', '#8020ff', '#bf4060', '#4060bf', '#df0020', '#80bf80',
  '#df9fff', '#9f4080', '#bfbf60', '#df40ff', '#008020', '#bf809f',
)  # fmt: skip
DPI = 130
_LONGEST_COLUMN = 36  # entries of a legend
_MARGIN, _USUAL_LEGEND = 0.3, 1.7  # inches: above and below a legend; the width that figures have room for


def colour(index: int) -> str:
  """Colour of class `index` (1, 2, ...) as '#rrggbb', repeating after thirteen; grey for class 0."""
  return COLOURS[(index - 1) % len(COLOURS)] if index > 0 else '#808080'


def rgb(index: int) -> tuple[float, ...]:
  """`colour` as red, green, blue in [0, 1]."""
  return tuple(int(colour(index)[i : i + 2], 16) / 255 for i in (1, 3, 5))


def new_figure(width: float, height: float):
  """An empty matplotlib figure of a size in inches.

  Raises:
    InputError: matplotlib is not installed.
  """
  try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
  except ImportError as error:
    raise InputError(
      'matplotlib', 'is not installed, so no figure can be drawn', 'Run pip install afw_jax[viz].'
    ) from error
  figure = Figure(figsize=(width, height), dpi=DPI, layout='constrained')
  FigureCanvasAgg(figure)
  return figure


def legend_patch(index: int, label: str):
  """A filled box in the colour of a class, for a legend."""
  from matplotlib.patches import Patch

  return Patch(facecolor=colour(index), edgecolor='black', linewidth=0.5, label=label)


def plain(text: str, longest: int = 40) -> str:
  """A name as matplotlib shows it letter by letter: no formula, never hidden, its middle left out where it is long."""
  if len(text) > longest:
    text = f'{text[: longest - 15]}…{text[-14:]}'
  return (' ' if text.startswith('_') else '') + text.replace('$', r'\$')


def legend_beside(axes, *, title: str | None = None) -> None:
  """Puts the legend of `axes` to its right, in as many columns as it needs, and makes the figure large enough for it.

  The plot keeps its size. `axes` are the rightmost of their figure.
  """
  figure = axes.figure
  width, height = figure.get_size_inches()
  options = {'loc': 'center left', 'bbox_to_anchor': (1.01, 0.5), 'frameon': False, 'title': title}
  size = lambda legend: legend.get_window_extent(figure.canvas.get_renderer()).size / figure.dpi
  legend = axes.legend(**options)
  if size(legend)[1] > height - _MARGIN:
    entries = len(legend.get_texts())
    legend = axes.legend(**options, ncols=max(2, -(-entries // _LONGEST_COLUMN)), columnspacing=1.0)
  wide, high = size(legend)
  figure.set_size_inches(width + max(0, wide - _USUAL_LEGEND), max(height, high + _MARGIN))


def black_outline() -> list:
  """Path effects that keep small white text readable on any background."""
  from matplotlib.patheffects import withStroke

  return [withStroke(linewidth=1.8, foreground='black')]


def save(figure, path: str) -> str:
  """Writes a figure as PNG, atomically, and returns the path; its folder is made if missing.

  Raises:
    InputError: the disk is full, or the folder cannot be written.
  """
  temporary = f'{path}.{process_name()}.tmp'
  with write_errors(path):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    try:
      figure.savefig(temporary, format='png')
      os.replace(temporary, path)
    finally:
      with contextlib.suppress(OSError):
        os.unlink(temporary)
  return path
