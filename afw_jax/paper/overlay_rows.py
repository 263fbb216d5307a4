"""The picture of Figures 5 and 6: organs drawn over a slice of each scan, by the truth and by each run."""

from collections.abc import Sequence

import numpy as np

from afw_jax.paper import panels
from afw_jax.paper.scans import Scan, Shown
from afw_jax.report import choice
from afw_jax.report.overlays import draw_mask
from afw_jax.report.style import black_outline

_WIDTH = 2.35  # inches of a panel


def draw(path: str, title: str, columns: Sequence[str], shown: Shown) -> str:
  """Writes the PNG file and returns its path; the arguments are those of `panels.sheet`."""
  if not shown.scans:
    return panels.sheet(path, title, columns, shown, (_WIDTH, _WIDTH), lambda *_: None)
  spacings = [scan.spacing_mm[1:] for scan in shown.scans]
  crops = choice.crops([scan.seen for scan in shown.scans], spacings)
  top, bottom, left, right = crops[0]
  tall = (bottom - top) * spacings[0][0] / ((right - left) * spacings[0][1])
  of_map = lambda axes, n, labels, classes: _panel(axes, shown.scans[n], crops[n], labels, classes)
  return panels.sheet(path, title, columns, shown, (_WIDTH, _WIDTH * tall), of_map)


def _panel(axes, scan: Scan, crop: tuple[float, ...], labels: np.ndarray, classes: list[int]) -> None:
  """The slice of a scan with one of its label maps."""
  assert scan.image is not None and scan.slice is not None
  z, aspect = scan.slice, scan.spacing_mm[1] / scan.spacing_mm[2]
  top, bottom, left, right = crop
  axes.set_facecolor('black')  # beyond the image
  axes.imshow(scan.image[z], cmap='gray', vmin=0, vmax=1, aspect=aspect, interpolation='nearest')
  draw_mask(axes, labels[z], classes, _WIDTH * 72 / (right - left))
  axes.set_xlim(left, right)
  axes.set_ylim(bottom, top)
  if labels is scan.truth and scan.has_mm:
    panels.scale_bar(axes, scan.spacing_mm[2], 'white', black_outline())
  for label, dsc in scan.dsc.items():
    if scan.predictions[label] is labels:
      at = {'transform': axes.transAxes, 'color': 'white', 'fontsize': 9, 'path_effects': black_outline()}
      axes.text(0.03, 0.03, f'DSC {dsc:.1f} %', **at)
