"""What tests read from a figure: its legend, and the pixels of the file."""

import numpy as np
import pytest
from PIL import Image

from afw_jax.report import figures, overlays, style


@pytest.fixture
def drawn(monkeypatch):
  """The matplotlib figures that were saved."""
  kept = []

  def keep(figure, path):
    kept.append(figure)
    return style.save(figure, path)

  monkeypatch.setattr(figures, 'save', keep)
  monkeypatch.setattr(overlays, 'save', keep)
  return kept


def legend_labels(figure) -> list[str]:
  legends = [*figure.legends, *(a.get_legend() for a in figure.axes if a.get_legend())]
  return [t.get_text() for legend in legends for t in legend.get_texts()]


def png(path: str) -> np.ndarray:
  """(H, W, 3) pixels of a PNG file."""
  with Image.open(path) as image:
    assert image.format == 'PNG'
    return np.asarray(image.convert('RGB'))


def inside(figure, part) -> None:
  """Fails where a part of a figure, such as its legend, is cut off."""
  box, whole = part.get_window_extent(figure.canvas.get_renderer()), figure.bbox
  assert box.x0 >= whole.x0 and box.y0 >= whole.y0 and box.x1 <= whole.x1 and box.y1 <= whole.y1, (box, whole)
