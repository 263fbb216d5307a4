import sys

import numpy as np
import pytest
from PIL import Image

from afw_jax.errors import InputError
from afw_jax.report import figures, overlays, style

ORGANS = ('liver', 'spleen', 'kidney_left')


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


def scan(depth=6):
  """An image, a truth with all three organs in slices 1-4, and a prediction that worsens with z and lacks the spleen."""
  true = np.zeros((depth, 40, 60), np.uint8)
  true[1:5, 5:25, 5:25], true[1:5, 5:15, 35:50], true[1:5, 28:36, 30:44] = 1, 2, 3
  pred = np.zeros_like(true)
  for z in range(1, 5):
    pred[z] = np.roll(true[z], 2 * (z - 1), axis=1)
  pred[pred == 2] = 0
  return np.random.default_rng(0).random(true.shape), true, pred


def legend_labels(figure):
  legends = [*figure.legends, *(a.get_legend() for a in figure.axes if a.get_legend())]
  return [t.get_text() for legend in legends for t in legend.get_texts()]


def png(path):
  with Image.open(path) as image:
    assert image.format == 'PNG'
    return np.asarray(image.convert('RGB'))


def overlaps(figure, boxes):
  boxes = [b.get_window_extent(figure.canvas.get_renderer()) for b in boxes]
  return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def records():
  rows = [
    {'step': s, 'train/loss': 2 / s, 'weight/background': 1 - s / 90, 'weight/liver': 1.0 + s} for s in range(1, 31)
  ]
  return [
    *rows,
    *({'step': s, 'val/dsc': s / 40, 'val/dsc/liver': s / 35, 'val/dsc/spleen': None} for s in (10, 20, 30)),
  ]


def test_overlay(tmp_path, drawn):
  image, true, pred = scan()
  path = figures.overlay(str(tmp_path / 'new' / 'o.png'), image[2], {'truth': true[2], 'prediction': pred[2]}, ORGANS,
                         title='case 7, slice 2', spacing_mm=(2.0, 1.0))  # fmt: skip
  (figure,) = drawn
  assert [a.get_title() for a in figure.axes] == ['image', 'truth', 'prediction']
  assert legend_labels(figure) == ['1 liver', '2 spleen', '3 kidney_left']
  assert figure.get_suptitle() == 'case 7, slice 2'
  assert all(a.get_aspect() == 2 for a in figure.axes)
  assert [sorted(t.get_text() for t in a.texts) for a in figure.axes] == [[], ['1', '2', '3'], ['1', '3']]
  assert not overlaps(figure, [*figure.axes, *figure.legends])
  pixels = png(path)
  assert pixels.shape[1] > 900 and path.endswith('o.png') and [p.name for p in tmp_path.rglob('*.*')] == ['o.png']
  third = pixels.shape[1] // 3
  colour = np.array([round(255 * v) for v in style.rgb(2)])  # the spleen's contour is in the truth's panel alone
  panels = np.split(pixels[: pixels.shape[0] * 3 // 4].astype(int), [third, 2 * third], axis=1)
  near = [int((np.abs(panel - colour).sum(-1) < 12).sum()) for panel in panels]
  assert near[0] == near[2] == 0 < near[1]


def test_overlay_outlines_follow_the_mask(tmp_path, drawn):
  mask = np.zeros((20, 20), int)
  mask[0:8, 3:9] = 1  # touches the edge: still a closed outline
  figures.overlay(str(tmp_path / 'o.png'), np.zeros((20, 20)), {'truth': mask}, ORGANS)
  axes = drawn[0].axes[1]
  (line,) = [p.vertices for c in axes.collections for p in c.get_paths() if len(p.vertices)]
  assert line.min(0) == pytest.approx([2.5, -0.5]) and line.max(0) == pytest.approx([8.5, 7.5])
  tint = axes.images[-1].get_array()
  assert ((tint[..., 3] > 0) == (mask == 1)).all()


def test_masks_on_another_grid_are_refused(tmp_path):
  with pytest.raises(InputError, match=r'truth: has shape'):
    figures.overlay(str(tmp_path / 'o.png'), np.zeros((5, 5)), {'truth': np.zeros((5, 6), int)}, ORGANS)
  assert not list(tmp_path.iterdir())


def test_case_sheet_goes_from_best_to_worst(tmp_path, drawn):
  image, true, pred = scan()
  picks = overlays.choose_slices(true, pred, num_classes=4, num_slices=3)
  assert [z for z, _ in picks] == [1, 3, 4]  # slice 1 is perfect but for the spleen
  assert picks[0][1] == 'slice 1   DSC 0.67'
  figures.case_sheet(
    str(tmp_path / 's.png'), image, {'truth': true, 'prediction': pred}, ORGANS, title='t', spacing_mm=(5, 1, 1)
  )
  figure = drawn[0]
  assert len(figure.axes) == 9 and legend_labels(figure) == ['1 liver', '2 spleen', '3 kidney_left']
  assert np.array_equal(figure.axes[6].images[0].get_array(), image[4])
  assert not overlaps(figure, [*figure.axes, *figure.legends])


def test_case_sheet_without_prediction_or_organs(tmp_path, drawn):
  image, true, pred = scan()
  figures.case_sheet(str(tmp_path / 'a.png'), image, {'prediction': true}, ORGANS)
  figures.case_sheet(str(tmp_path / 'b.png'), image, {'truth': 0 * true, 'prediction': 0 * true}, ORGANS, num_slices=2)
  assert len(drawn[0].axes) == 6 and len(drawn[1].axes) == 6 and legend_labels(drawn[1]) == []
  assert min(png(tmp_path / n).std() for n in ('a.png', 'b.png')) > 5


def test_many_organs_keep_a_readable_legend(tmp_path, drawn):
  mask = np.kron(np.arange(1, 31).reshape(5, 6), np.ones((8, 8), int))
  names = [f'structure_number_{i}' for i in range(1, 31)]
  figures.overlay(str(tmp_path / 'm.png'), np.zeros(mask.shape), {'truth': mask}, names)
  assert len(legend_labels(drawn[0])) == 30
  box = drawn[0].legends[0].get_window_extent(drawn[0].canvas.get_renderer())
  assert box.x0 >= 0 and box.x1 <= drawn[0].bbox.x1 and box.y0 >= 0
  assert not overlaps(drawn[0], [*drawn[0].axes, *drawn[0].legends])


def test_curves(tmp_path, drawn):
  assert png(figures.curves(str(tmp_path / 'c.png'), records())).std() > 5
  assert legend_labels(drawn[0]) == ['each record', 'moving mean of 5', 'liver', 'spleen', 'mean']
  left, right = drawn[0].axes
  assert left.lines[0].get_ydata() == pytest.approx([2 / s for s in range(1, 31)])
  assert left.lines[1].get_xdata()[0] == 3 and left.lines[1].get_ydata()[0] == pytest.approx(
    np.mean([2 / s for s in range(1, 6)])
  )
  assert right.lines[-1].get_xdata().tolist() == [10, 20, 30] and 'best mean 0.750, step 30' in right.get_title()


def test_learned_weights(tmp_path, drawn):
  figures.learned_weights(str(tmp_path / 'w.png'), records())
  assert legend_labels(drawn[0]) == ['background (0.67)', 'liver (31.00)']
  assert drawn[0].axes[0].get_yscale() == 'log'  # 31 to 0.67 would hide the smaller ones
  assert drawn[0].axes[0].lines[1].get_ydata() == pytest.approx([1.0 + s for s in range(1, 31)])


def test_gamma_figure_is_the_loss_itself(tmp_path, drawn):
  figures.gamma_figure(str(tmp_path / 'g.png'))
  labels = [t.replace('$', '').replace(r'\gamma', 'gamma') for t in legend_labels(drawn[0])]
  assert labels == ['gamma = 0', 'gamma = 0.25', 'gamma = 0.5', 'gamma = 0.75', 'gamma = 1']
  for line, gamma in zip(drawn[0].axes[0].lines, (0, 0.25, 0.5, 0.75, 1)):
    dice, loss = line.get_xdata(), line.get_ydata()
    assert dice[0] < 2e-5 and dice[-1] > 1 - 1e-5 and (np.diff(dice) > 0).all()
    inner = slice(1, -1)
    assert loss[inner] == pytest.approx((1 - dice[inner]) ** gamma, abs=1e-4)


def test_nothing_recorded_is_said(tmp_path, drawn):
  figures.curves(str(tmp_path / 'c.png'), [])
  figures.learned_weights(str(tmp_path / 'w.png'), [{'step': 1, 'train/loss': 1.0}])
  assert [t.get_text() for f in drawn for a in f.axes for t in a.texts] == ['nothing recorded'] * 3
  assert figures.draw_run(str(tmp_path / 'none'), []) == {}
  assert set(figures.draw_run(str(tmp_path / 'some'), records())) == {'curves', 'learned_weights', 'gamma'}


def test_colours_differ():
  assert len(set(style.COLOURS)) == 13 and style.colour(14) == style.colour(1) and style.colour(0) not in style.COLOURS
  rgb = np.array([style.rgb(c) for c in range(1, 14)])
  distance = np.abs(rgb[:, None] - rgb[None]).sum(-1) + 9 * np.eye(13)
  assert distance.min() > 0.2


def test_without_matplotlib(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
  with pytest.raises(InputError, match=r'pip install afw_jax\[viz\]'):
    figures.gamma_figure(str(tmp_path / 'g.png'))


def test_a_place_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='cannot be written'):
    figures.gamma_figure(str(tmp_path / 'file' / 'g.png'))
