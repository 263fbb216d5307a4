"""The picture of Figure 7: the surfaces of the organs of a scan, by the truth and by each run, from one camera."""

from collections.abc import Sequence

import numpy as np

from afw_jax.paper import panels
from afw_jax.paper.scans import NO_RUN, Scan, Shown
from afw_jax.report import surfaces

AZIMUTH_DEG, ELEVATION_DEG = 15, -20  # from a little below, the liver hides neither kidney nor pancreas
_SIDE = 2.8  # inches of the longer side of a picture
_MARGIN, _BELOW = 0.04, 0.13  # white around a picture, and below it for the scale bar, as shares of its longer side


def draw(path: str, title: str, columns: Sequence[str], shown: Shown) -> str:
  """Writes the PNG file and returns its path; the arguments are those of `panels.sheet`."""
  organs = [[one for one in scan.maps if one.any()] for scan in shown.scans]
  if not all(organs) or not organs:
    return panels.empty(path, title, 'no organ' if organs else NO_RUN)
  seen_by = surfaces.camera(AZIMUTH_DEG, ELEVATION_DEG)
  frames = [surfaces.frame(maps, scan.spacing_mm, seen_by) for maps, scan in zip(organs, shown.scans)]
  rows, columns_of_pixels = frames[0].shape
  longer = max(frames[0].shape)
  size = (_SIDE * (columns_of_pixels / longer + 2 * _MARGIN), _SIDE * (rows / longer + _MARGIN + _BELOW))
  of_map = lambda axes, n, labels, classes: _panel(axes, shown.scans[n], seen_by, frames[n], labels, classes)
  return panels.sheet(path, title, columns, shown, size, of_map)


def _panel(
  axes, scan: Scan, seen_by: surfaces.Camera, framed: surfaces.Frame, labels: np.ndarray, classes: list[int]
) -> None:
  picture = surfaces.render(labels, scan.spacing_mm, seen_by, framed, classes=classes)
  axes.imshow(picture, interpolation='antialiased')
  (rows, columns), longer = framed.shape, max(framed.shape)
  axes.set_xlim(-_MARGIN * longer, columns + _MARGIN * longer)
  axes.set_ylim(rows + _BELOW * longer, -_MARGIN * longer)
  if not labels.any():
    axes.text(0.5, 0.55, 'no organ found', transform=axes.transAxes, fontsize=10, ha='center', color='#404040')
  if labels is scan.truth and scan.has_mm:
    panels.scale_bar(axes, framed.pixel_mm, 'black', [], height=0.02)
  for label, dsc in scan.dsc.items():
    if scan.predictions[label] is labels:
      axes.text(0.5, 0.02, f'DSC {dsc:.1f} %', transform=axes.transAxes, fontsize=10, ha='center')
