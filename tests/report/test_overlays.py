import figure_checks
import numpy as np
import pytest
from figure_checks import inside, legend_labels, png

from afw_jax.data.sets.spec import IGNORED
from afw_jax.errors import InputError
from afw_jax.report import overlays, style

drawn = figure_checks.drawn
ORGANS = ('liver', 'spleen', 'kidney_left')


def scan(depth=6):
  """An image, a truth (all organs in slices 1-4), and a prediction that worsens with z and lacks the spleen."""
  true = np.zeros((depth, 40, 60), np.uint8)
  true[1:5, 5:25, 5:25], true[1:5, 5:15, 35:50], true[1:5, 28:36, 30:44] = 1, 2, 3
  pred = np.zeros_like(true)
  for z in range(1, 5):
    pred[z] = np.roll(true[z], 2 * (z - 1), axis=1)
  pred[pred == 2] = 0
  return np.random.default_rng(0).random(true.shape), true, pred


def overlaps(figure, boxes):
  boxes = [b.get_window_extent(figure.canvas.get_renderer()) for b in boxes]
  return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def one_slice(path, image, masks, organs, **options):
  """A sheet of a single slice."""
  masks = {name: mask[None] for name, mask in masks.items()}
  return overlays.case_sheet(path, image[None], masks, organs, num_slices=1, **options)


def test_one_slice(tmp_path, drawn):
  image, true, pred = scan()
  path = one_slice(str(tmp_path / 'new' / 'o.png'), image[2], {'truth': true[2], 'prediction': pred[2]}, ORGANS,
                         title='case 7, slice 2', spacing_mm=(2.0, 1.0))  # fmt: skip
  (figure,) = drawn
  assert [a.get_title() for a in figure.axes] == ['image', 'truth', 'prediction']
  assert legend_labels(figure) == ['1 liver', '2 spleen', '3 kidney_left']
  assert figure.get_suptitle() == 'case 7, slice 2'
  assert all(a.get_aspect() == 2 for a in figure.axes)
  assert [sorted(t.get_text() for t in a.texts) for a in figure.axes] == [
    ['slice 0   DSC 0.59'],
    ['1', '2', '3'],
    ['1', '3'],
  ]
  assert not overlaps(figure, [*figure.axes, *figure.legends])
  pixels = png(path)
  assert pixels.shape[1] > 900 and path.endswith('o.png') and [p.name for p in tmp_path.rglob('*.*')] == ['o.png']
  third = pixels.shape[1] // 3
  colour = np.array([round(255 * v) for v in style.rgb(2)])  # the spleen's contour is in the truth's panel alone
  panels = np.split(pixels[: pixels.shape[0] * 3 // 4].astype(int), [third, 2 * third], axis=1)
  near = [int((np.abs(panel - colour).sum(-1) < 12).sum()) for panel in panels]
  assert near[0] == near[2] == 0 < near[1]


def test_outlines_follow_the_mask(tmp_path, drawn):
  mask = np.zeros((20, 20), int)
  mask[0:8, 3:9] = 1  # touches the edge: still a closed outline
  one_slice(str(tmp_path / 'o.png'), np.zeros((20, 20)), {'truth': mask}, ORGANS)
  axes = drawn[0].axes[1]
  (line,) = [p.vertices for c in axes.collections for p in c.get_paths() if len(p.vertices)]
  assert line.min(0) == pytest.approx([2.5, -0.5]) and line.max(0) == pytest.approx([8.5, 7.5])
  tint = axes.images[-1].get_array()
  assert ((tint[..., 3] > 0) == (mask == 1)).all()


def test_masks_on_another_grid_are_refused(tmp_path):
  with pytest.raises(InputError, match=r'truth: has shape'):
    one_slice(str(tmp_path / 'o.png'), np.zeros((5, 5)), {'truth': np.zeros((5, 6), int)}, ORGANS)
  assert not list(tmp_path.iterdir())


def test_case_sheet_goes_from_best_to_worst(tmp_path, drawn):
  image, true, pred = scan()
  picks = overlays.choose_slices(true, pred, num_classes=4, num_slices=3)
  assert [z for z, _ in picks] == [1, 3, 4]  # slice 1 is perfect but for the spleen
  assert picks[0][1] == 'slice 1   DSC 0.67'
  overlays.case_sheet(
    str(tmp_path / 's.png'), image, {'truth': true, 'prediction': pred}, ORGANS, title='t', spacing_mm=(5, 1, 1)
  )
  figure = drawn[0]
  assert len(figure.axes) == 9 and legend_labels(figure) == ['1 liver', '2 spleen', '3 kidney_left']
  assert np.array_equal(figure.axes[6].images[0].get_array(), image[4])
  assert not overlaps(figure, [*figure.axes, *figure.legends])


def test_case_sheet_without_prediction_or_organs(tmp_path, drawn):
  image, true, pred = scan()
  overlays.case_sheet(str(tmp_path / 'a.png'), image, {'prediction': true}, ORGANS)
  overlays.case_sheet(str(tmp_path / 'b.png'), image, {'truth': 0 * true, 'prediction': 0 * true}, ORGANS, num_slices=2)
  assert len(drawn[0].axes) == 6 and len(drawn[1].axes) == 6 and legend_labels(drawn[1]) == []
  assert min(png(tmp_path / n).std() for n in ('a.png', 'b.png')) > 5


def test_many_organs_keep_a_readable_legend(tmp_path, drawn):
  mask = np.kron(np.arange(1, 31).reshape(5, 6), np.ones((8, 8), int))
  names = [f'structure_number_{i}' for i in range(1, 31)]
  one_slice(str(tmp_path / 'm.png'), np.zeros(mask.shape), {'truth': mask}, names)
  assert len(legend_labels(drawn[0])) == 30
  box = drawn[0].legends[0].get_window_extent(drawn[0].canvas.get_renderer())
  assert box.x0 >= 0 and box.x1 <= drawn[0].bbox.x1 and box.y0 >= 0
  assert not overlaps(drawn[0], [*drawn[0].axes, *drawn[0].legends])


@pytest.mark.parametrize('organs', [[f'vertebrae_L{i:03d}_right' for i in range(104)], ['a$b$', '_x', 'y' * 200]])
def test_the_legend_of_many_or_long_names_is_inside_the_sheet(tmp_path, drawn, organs):
  mask = np.arange(32 * 32).reshape(1, 32, 32) % (len(organs) + 1)
  image = np.zeros((1, 32, 32))
  overlays.case_sheet(str(tmp_path / 'o.png'), image, {'truth': mask}, organs, title='case')
  (figure,) = drawn
  assert len(legend_labels(figure)) == len(organs)
  inside(figure, figure.legends[0])
  inside(figure, figure._suptitle)
  assert not overlaps(figure, [*figure.axes, *figure.legends])


def test_ignored_voxels_are_grey_and_choose_no_slice(tmp_path, drawn):
  image, true, pred = scan()
  true[0], true[3] = IGNORED, IGNORED  # the fullest slices by count, were they organs
  pred[0] = 1
  chosen = {z for z, _ in overlays.choose_slices(true, pred, num_classes=4, num_slices=6)}
  assert chosen == {1, 2, 4}
  true[2, 30:, 50:] = IGNORED
  path = one_slice(str(tmp_path / 'o.png'), np.zeros_like(image[2]), {'truth': true[2], 'prediction': pred[2]}, ORGANS)
  (figure,) = drawn
  assert [a.get_title() for a in figure.axes] == ['image', 'truth (grey: ignored)', 'prediction']
  assert legend_labels(figure) == ['1 liver', '2 spleen', '3 kidney_left']
  pixels = png(path).astype(int)
  grey = (np.ptp(pixels, axis=-1) < 6) & (abs(pixels.mean(-1) - 255 * 0.6 * 0.6) < 8)
  third = pixels.shape[1] // 3
  counts = [int(grey[:, i * third : (i + 1) * third].sum()) for i in range(3)]
  assert counts[1] > 500 > counts[0] + counts[2]
