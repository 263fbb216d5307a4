"""What tests read from a figure: its legend, and the pixels of the file."""

import numpy as np
from PIL import Image


def legend_labels(figure) -> list[str]:
  legends = [*figure.legends, *(a.get_legend() for a in figure.axes if a.get_legend())]
  return [t.get_text() for legend in legends for t in legend.get_texts()]


def png(path: str) -> np.ndarray:
  """(H, W, 3) pixels of a PNG file."""
  with Image.open(path) as image:
    assert image.format == 'PNG'
    return np.asarray(image.convert('RGB'))
