import sys

import figure_checks
import numpy as np
import pytest
from figure_checks import inside, legend_labels, png

from afw_jax.errors import InputError
from afw_jax.report import figures, style

drawn = figure_checks.drawn


def records():
  rows = [
    {'step': s, 'train/loss': 2 / s, 'weight/background': 1 - s / 90, 'weight/liver': 1.0 + s} for s in range(1, 31)
  ]
  return [
    *rows,
    *({'step': s, 'val/dsc': s / 40, 'val/dsc/liver': s / 35, 'val/dsc/spleen': None} for s in (10, 20, 30)),
  ]


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


def test_weights_are_drawn_beside_the_pulls(tmp_path, drawn):
  pulls = [{**r, 'pull/background': 40.0 - r['step'], 'pull/liver': 0.001 * r['step']} for r in records()[10:]]
  figures.learned_weights(str(tmp_path / 'w.png'), records()[:10] + pulls)  # an older version made the first records
  left, right = drawn[0].axes
  assert [t.get_text() for t in left.get_legend().get_texts()] == ['background (0.67)', 'liver (31.00)']
  assert [t.get_text() for t in right.get_legend().get_texts()] == ['background (10.00)', 'liver (0.03)']
  assert right.get_yscale() == 'log' and right.get_title() == 'Pull on each class'
  assert right.lines[1].get_ydata()[:20] == pytest.approx([0.001 * s for s in range(11, 31)])
  assert left.lines[0].get_color() == right.lines[0].get_color() != right.lines[1].get_color()


def test_gamma_figure_is_the_loss_itself(tmp_path, drawn):
  figures.gamma_figure(str(tmp_path / 'g.png'))
  labels = [t.replace('$', '').replace(r'\gamma', 'gamma') for t in legend_labels(drawn[0])]
  assert labels == ['gamma = 0', 'gamma = 0.25', 'gamma = 0.5', 'gamma = 0.75', 'gamma = 1']
  for line, gamma in zip(drawn[0].axes[0].lines, (0, 0.25, 0.5, 0.75, 1)):
    dice, loss = line.get_xdata(), line.get_ydata()
    assert dice[0] < 2e-5 and dice[-1] > 1 - 1e-5 and (np.diff(dice) > 0).all()
    inner = slice(1, -1)
    assert loss[inner] == pytest.approx((1 - dice[inner]) ** gamma, abs=1e-4)


def names_of(number):
  """Names of organs that are hard to draw: long, formulas, a leading underscore."""
  return ['_hidden', '$x^{$ and $', 'an organ with a name that goes on and on and on', *map(str, range(3, number))]


@pytest.mark.parametrize('number', [2, 22, 40, 104])
def test_legends_of_many_organs_are_whole(tmp_path, drawn, number):
  names = names_of(number)[:number] if number > 2 else ['liver', 'spleen']
  rows = [
    {'step': s, 'val/dsc': 0.5, **{f'val/dsc/{n}': s / 50 for n in names}, **{f'weight/{n}': s / 9 for n in names}}
    for s in (10, 20)
  ]
  figures.curves(str(tmp_path / 'c.png'), rows)
  figures.learned_weights(str(tmp_path / 'w.png'), rows)
  for figure, more in zip(drawn, (1, 0)):
    axes = figure.axes[-1]
    legend, size = axes.get_legend(), figure.get_size_inches() * figure.dpi
    box = legend.get_window_extent()
    assert len(legend.get_texts()) == number + more  # matplotlib leaves out what starts with an underscore
    assert box.x0 >= axes.get_window_extent().x1 and box.x1 <= size[0] and box.y0 >= 0 and box.y1 <= size[1]
    assert axes.get_window_extent().width > 350
    lines = axes.lines[:number]
    assert (
      len(
        {(line.get_color(), line._unscaled_dash_pattern[1] and tuple(line._unscaled_dash_pattern[1])) for line in lines}
      )
      == number
    )
  narrow = (12, 8.6)
  assert number > 2 or tuple(f.get_figwidth() for f in drawn) == narrow


def test_figures_without_records(tmp_path, drawn):
  figures.curves(str(tmp_path / 'c.png'), [])
  figures.learned_weights(str(tmp_path / 'w.png'), [{'step': 1, 'train/loss': 1.0}])
  assert [t.get_text() for f in drawn for a in f.axes for t in a.texts] == ['nothing recorded'] * 3
  assert figures.draw_run(str(tmp_path / 'none'), []) == {}
  assert set(figures.draw_run(str(tmp_path / 'some'), records())) == {'curves', 'learned_weights', 'gamma'}


def test_null_in_the_records_is_a_gap(tmp_path, drawn):
  null = [{'step': s, 'train/loss': None, 'val/dsc': None, 'val/dsc/liver': None, 'weight/liver': None} for s in (1, 2)]
  figures.curves(str(tmp_path / 'c.png'), null)
  assert 'best' not in drawn[0].axes[1].get_title()
  figures.learned_weights(str(tmp_path / 'w.png'), null)
  figures.learned_weights(str(tmp_path / 'v.png'), [{'step': 0, 'weight/liver': 3.0}, *null])
  assert legend_labels(drawn[1]) == ['liver'] and legend_labels(drawn[2]) == ['liver (3.00)']


def test_colours_differ():
  assert len(set(style.COLOURS)) == 13 and style.colour(14) == style.colour(1) and style.colour(0) not in style.COLOURS
  rgb = np.array([style.rgb(c) for c in range(1, 14)])
  distance = np.abs(rgb[:, None] - rgb[None]).sum(-1) + 9 * np.eye(13)
  assert distance.min() > 0.2


def test_without_matplotlib(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
  with pytest.raises(InputError, match=r'no figure can be drawn.*pip install afw_jax\[viz\]'):
    figures.gamma_figure(str(tmp_path / 'g.png'))


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_bytes(b'')
  with pytest.raises(InputError, match='cannot be written'):
    figures.gamma_figure(str(tmp_path / 'file' / 'g.png'))


def test_a_figure_that_cannot_be_drawn_leaves_no_file(tmp_path):
  figure = style.new_figure(2, 2)
  figure.savefig = lambda path, **_: (open(path, 'wb').close(), 1 / 0)
  with pytest.raises(ZeroDivisionError):
    style.save(figure, str(tmp_path / 'f.png'))
  assert not list(tmp_path.iterdir())


ODD_NAMES = ('a$b$', '_hidden', r'\frac{', 'x' * 60, 'y' * 200)


@pytest.mark.parametrize('keys', [('weight',), ('weight', 'pull')])
@pytest.mark.parametrize(
  'names', [[f'vertebrae_L{i:03d}_right' for i in range(n)] for n in (8, 23, 40, 104)] + [ODD_NAMES]
)
def test_legends_show_every_organ_inside_the_figure(tmp_path, drawn, names, keys):
  rows = [
    {'step': s, 'train/loss': 1.0, 'val/dsc': 0.5, **{f'{key}/background': 1.0 for key in keys}}
    | {f'val/dsc/{name}': 0.5 for name in names}
    | {f'{key}/{name}': 1.5 for name in names for key in keys}
    for s in (1, 2)
  ]
  figures.curves(str(tmp_path / 'c.png'), rows)
  figures.learned_weights(str(tmp_path / 'w.png'), rows)
  for figure, axes in [(drawn[0], drawn[0].axes[-1]), *((drawn[1], axes) for axes in drawn[1].axes)]:
    assert len(axes.get_legend().get_texts()) == len(names) + 1
    inside(figure, axes.get_legend())
    plot = axes.get_window_extent().size / figure.dpi
    assert plot[0] > 3.5 and plot[1] > 3
  looks = [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in drawn[0].axes[-1].lines[:-1]]
  dashes = [line._dash_pattern for line in drawn[0].axes[-1].lines[:-1]]
  assert len({(str(dash), *look) for dash, look in zip(dashes, looks)}) == len(names)
