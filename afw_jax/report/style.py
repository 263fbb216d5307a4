"""Creates and saves figures, and chooses the colours of organs. Matplotlib without pyplot, which keeps global state."""

import contextlib
import os
from collections.abc import Callable

from afw_jax.errors import InputError
from afw_jax.system.atomic_files import process_name, write_errors
from afw_jax.system.file_names import temporary_name

# Thirteen colours that stay distinct in normal vision, deuteranopia, protanopia and tritanopia, on black and on white.
COLOURS = (
  '#df9f00', '#40dfdf', '#8020ff', '#bf4060', '#4060bf', '#df0020', '#80bf80',
  '#df9fff', '#9f4080', '#bfbf60', '#df40ff', '#008020', '#bf809f',
)  # fmt: skip
DPI = 130
MAX_LABEL = 40  # characters of a name in a figure
_TAIL = 16
LEGEND_ROWS = 20  # which fit beside axes of about 4 inches
_NARROW = 1.9  # inches of a legend that needs no wider figure


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


def label(name: str) -> str:
  """A name of an organ or a case as text of a figure: not too long, without matplotlib's signs for formulas.

  The middle of a long name is left out, since names often differ at their ends. Bytes that are not UTF-8 are numbers.
  """
  name = name.encode('utf-8', 'backslashreplace').decode()
  short = name if len(name) <= MAX_LABEL else f'{name[: MAX_LABEL - 1 - _TAIL]}…{name[-_TAIL:]}'
  text = short.replace('$', r'\$')
  return f' {text}' if text.startswith('_') else text  # matplotlib leaves labels with a leading underscore out


def legend_beside(axes, title: str | None = None) -> None:
  """Draws the legend of the axes at their right, in as many columns as are needed; a wide one widens the figure."""
  handles, _ = axes.get_legend_handles_labels()
  columns = -(-len(handles) // LEGEND_ROWS)
  place = {'loc': 'center left', 'bbox_to_anchor': (1.01, 0.5)}
  legend = axes.legend(**place, frameon=False, title=title, ncols=columns)
  figure = axes.figure
  width = legend.get_window_extent(figure.canvas.get_renderer()).width / DPI
  figure.set_figwidth(figure.get_figwidth() + max(0, width - _NARROW))


def black_outline() -> list:
  """Path effects that keep small white text readable on any background."""
  from matplotlib.patheffects import withStroke

  return [withStroke(linewidth=1.8, foreground='black')]


def save(figure, path: str) -> str:
  """Writes a figure as PNG, atomically, and returns the path; its folder is made if missing.

  Raises:
    InputError: the disk is full, or the folder cannot be written.
  """
  return _write(path, lambda temporary: figure.savefig(temporary, format='png'))


def save_vector(figure, path: str) -> str:
  """Writes a figure as SVG, as `save` does: letters are shapes, and the same figure gives the same bytes."""
  import matplotlib

  with matplotlib.rc_context({'svg.hashsalt': os.path.basename(path), 'svg.fonttype': 'path'}):
    return _write(path, lambda temporary: figure.savefig(temporary, format='svg', metadata={'Date': None}))


def _write(path: str, write: Callable[[str], None]) -> str:
  temporary = temporary_name(path, process_name())
  with write_errors(path):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    try:
      write(temporary)
      os.replace(temporary, path)
    finally:
      with contextlib.suppress(OSError):
        os.unlink(temporary)
  return path
