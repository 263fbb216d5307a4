"""Overlays: slices of a scan with the organs of truth and prediction drawn over them."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt

from afw_jax.data.sets.spec import IGNORED
from afw_jax.errors import InputError
from afw_jax.metrics import dice_per_class
from afw_jax.report.style import black_outline, colour, label, legend_patch, new_figure, rgb, save

_PANEL = 3.3  # inches of the longer side of a panel
_FILL = 0.30


def case_sheet(
  path: str,
  image: np.ndarray,
  masks: Mapping[str, np.ndarray],
  organs: Sequence[str],
  *,
  title: str = '',
  spacing_mm: tuple[float, ...] | None = None,
  num_slices: int = 3,
) -> str:
  """Draws a few axial slices of one case, from the highest to the lowest agreement of prediction and truth (DSC).

  Only slices with at least a third of the organ voxels of the fullest slice are considered, so that no slice that
  barely touches an organ is chosen. With one mask only, or without organs, the slices are spread evenly.

  Args:
    path: path of the PNG to write.
    image: (D, H, W) in [0, 1], z first.
    masks: name -> (D, H, W) integer classes; the first is taken as truth, the second as prediction. Voxels of class
      255 are ignored, and drawn in grey.
    organs: names of the classes 1, 2, ...
    title: above the panels.
    spacing_mm: (z, y, x) or (y, x) size of a voxel; None: square pixels.
    num_slices: rows of the sheet.

  Returns:
    path.
  """
  arrays = {name: np.asarray(mask) for name, mask in masks.items()}
  rows = choose_slices(*list(arrays.values())[:2], num_classes=len(organs) + 1, num_slices=num_slices)
  return _sheet(path, np.asarray(image), arrays, organs, rows, title, spacing_mm and tuple(spacing_mm)[-2:])


def choose_slices(
  true: np.ndarray, pred: np.ndarray | None = None, *, num_classes: int, num_slices: int = 3
) -> list[tuple[int, str]]:
  """Chooses slices of a case from the highest to the lowest DSC, evenly over the ranking.

  Args:
    true, pred: (D, H, W) integer classes; without `pred` the slices are spread evenly over the organs.
    num_classes: C, background included.
    num_slices: number of slices wanted; there may be fewer.

  Returns:
    (slice number, caption) of each, highest DSC first.
  """
  counts = true != IGNORED
  amount = np.count_nonzero((true != 0) & counts, axis=(1, 2))
  if pred is not None:
    amount = np.maximum(amount, np.count_nonzero((pred != 0) & counts, axis=(1, 2)))
  worth = np.flatnonzero(amount >= max(1, amount.max() / 3))
  if worth.size == 0:
    worth = np.arange(len(true))
  if pred is None or amount.max() == 0:
    return [(int(z), f'slice {z}') for z in worth[_spread(worth.size, num_slices)]]
  dsc = np.array([_mean(dice_per_class(pred[z], true[z], num_classes, ignored=IGNORED)[1:]) for z in worth])
  picks = np.argsort(-dsc, kind='stable')[_spread(worth.size, num_slices)]
  return [(int(worth[i]), f'slice {worth[i]}   DSC {dsc[i]:.2f}') for i in picks]


def _spread(available: int, wanted: int) -> np.ndarray:
  return np.unique(np.linspace(0, available - 1, min(available, wanted)).round().astype(int))


def _mean(values: np.ndarray) -> float:
  return float(values[~np.isnan(values)].mean())


def _sheet(path, image, masks, organs, rows, title, spacing) -> str:
  """Draws one row for each slice: the image, then the image with each mask; below, a legend of the organs drawn."""
  for name, mask in masks.items():
    if mask.shape != image.shape:
      raise InputError(name, f'has shape {mask.shape}, the image {image.shape}', 'Resample both to one grid first.')
  height, width = image.shape[1:]
  aspect = spacing[0] / spacing[1] if spacing else 1.0
  tall = height * aspect / width
  panel_w, panel_h = _PANEL / max(1, tall), _PANEL * tall / max(1, tall)
  shown = np.unique(np.concatenate([np.unique(m[z]) for m in masks.values() for z, _ in rows]))
  shown = [int(c) for c in shown if 1 <= c <= len(organs)]
  labels = {c: label(f'{c} {organs[c - 1]}') for c in shown}
  label_w = max([1.75, *(0.55 + 0.095 * len(text) for text in labels.values())])  # inches
  columns = min(max(1, len(shown)), max(1, int(panel_w * (len(masks) + 1) / label_w)))
  legend_rows = -(-len(shown) // columns)
  figure = new_figure(panel_w * (len(masks) + 1), panel_h * len(rows) + 0.45 + 0.26 * legend_rows + 0.3 * bool(title))
  grid = figure.subplots(len(rows), len(masks) + 1, squeeze=False)
  figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
  for row, (z, caption) in enumerate(rows):
    for column, name in enumerate(('image', *masks)):
      axes = grid[row, column]
      axes.imshow(image[z], cmap='gray', vmin=0, vmax=1, aspect=aspect, interpolation='nearest')
      axes.set_axis_off()
      if row == 0:
        partly = column and (masks[name] == IGNORED).any()
        axes.set_title(f'{name} (grey: ignored)' if partly else name, fontsize=12)
      if column == 0 and caption:
        axes.text(
          0.02,
          0.02,
          caption,
          transform=axes.transAxes,
          color='white',
          fontsize=9,
          va='bottom',
          bbox={'facecolor': 'black', 'alpha': 0.55, 'edgecolor': 'none', 'pad': 2},
        )
      if column:
        draw_mask(axes, masks[name][z], shown, panel_w * 72 / width)
  if title:
    figure.suptitle(title, fontsize=13)
  if shown:
    handles = [legend_patch(c, text) for c, text in labels.items()]
    figure.legend(
      handles=handles,
      loc='outside lower center',
      ncols=columns,
      frameon=False,
      fontsize=10,
      handlelength=1.2,
      columnspacing=1.2,
    )
  return save(figure, path)


def draw_mask(axes, mask: np.ndarray, classes: list[int], points_per_pixel: float) -> None:
  """Draws each class as a translucent area with its contour and, for colour-blind readers, its number; ignored in grey.

  Args:
    axes: of matplotlib, with the image; their limits become those of the mask.
    mask: (H, W) classes.
    classes: to draw.
    points_per_pixel: size of a pixel in the figure.
  """
  tint = np.zeros((*mask.shape, 4))
  tint[mask == IGNORED] = (0.6, 0.6, 0.6, 2 * _FILL)
  for c in classes:
    area = mask == c
    if not area.any():
      continue
    tint[area] = (*rgb(c), _FILL)
    # padded, so that the contour of an organ at the edge of the slice is closed
    axes.contour(
      np.arange(-1, mask.shape[1] + 1),
      np.arange(-1, mask.shape[0] + 1),
      np.pad(area, 1),
      levels=[0.5],
      colors=[colour(c)],
      linewidths=1.3,
    )
    depth = distance_transform_edt(np.pad(area, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(np.argmax(depth), depth.shape)
    small = depth.max() * points_per_pixel < 6  # the number would hide the organ: it is drawn beside it
    axes.annotate(
      str(c),
      (x, y),
      xytext=(7, 7) if small else (0, 0),
      textcoords='offset points',
      color='white',
      fontsize=7.5,
      ha='center',
      va='center',
      path_effects=black_outline(),
    )
  axes.imshow(tint, aspect=axes.get_aspect(), interpolation='nearest', zorder=1)
  axes.set_xlim(-0.5, mask.shape[1] - 0.5)
  axes.set_ylim(mask.shape[0] - 0.5, -0.5)
