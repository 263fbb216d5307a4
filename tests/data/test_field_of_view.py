"""The place of the working grid in scans that are larger than it."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afw_jax.data import field_of_view, resample


def grid(native=(8, 100, 120), size=(64, 64), spacing=(None, 1.0, 1.0), fit='crop_pad', mm=(2.0, 1.0, 1.0)):
  return resample.make_resampling(native, mm, size=size, spacing=spacing, fit=fit)


def disc(shape=(8, 100, 120), centre=(50, 60), radius=25, couch=None):
  z, y, x = np.indices(shape)
  scan = np.where((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2, 40, -1000).astype(np.int16)
  if couch is not None:
    scan[:, couch : couch + 6] = 40
  return scan


def test_the_box_around_the_body():
  body = field_of_view.find_body(disc(), -200, grid())
  np.testing.assert_allclose(body, [[0, 8], [26, 75], [36, 85]], atol=4)
  low, high = field_of_view.find_body(disc(), -200, grid(size=(32, 32), spacing=(None, 2.0, 2.0)))[2]
  assert (low, high) == pytest.approx((18, 42.5), abs=2)  # in voxels of the target spacing


def test_couches_and_specks_are_no_body():
  alone = field_of_view.find_body(disc(), -200, grid())
  assert field_of_view.find_body(disc(couch=90), -200, grid()) == alone
  speck = disc()
  speck[3, 2:16, 2:16] = 3000
  assert field_of_view.find_body(speck, -200, grid()) == alone
  arms = np.maximum(disc(), disc(centre=(50, 104), radius=10))
  assert field_of_view.find_body(arms, -200, grid())[2][1] > 110  # a part of the body


def test_no_box_where_nothing_is_cut_or_nothing_is_there():
  for whole in (grid(size=(128, 128)), grid(fit='resize'), grid(size=())):
    assert field_of_view.find_body(disc(), -200, whole) is None and field_of_view.placed(whole, None, None) is whole
  assert field_of_view.find_body(np.full((8, 100, 120), -1000, np.int16), -200, grid()) is None


def place(body, usual=None, centre=None):
  placed = field_of_view.placed(centre or grid(), body, usual)
  return placed.offset[1:], placed.working[1:]


def test_a_body_in_the_grid_leaves_it_in_the_middle():
  assert place([[0, 8], [18, 82], [28, 92]]) == ((18, 28), (64, 64))
  assert place([[0, 8], [20, 82], [33, 92]])[0] == (18, 28)  # nearly


def test_a_body_off_the_middle_moves_the_grid():
  assert place([[0, 8], [30, 90], [28, 92]]) == ((28, 28), (64, 64))
  assert place([[0, 8], [60, 82], [28, 40]]) == ((39, 2), (64, 64))  # also where it was in the grid
  assert place([[0, 8], [50, 100], [0, 51]]) == ((43, -6), (64, 64))  # beyond the scan: there is air
  off = [[[[0, 0]], 0], [[[0, 0]], 0.4], [[[0, 0]], 0.3]]
  assert place([[0, 8], [45, 82], [29, 40]], off) == ((18, 2), (64, 64))  # in training they lay as far off


def test_a_body_larger_than_the_grid_extends_it():
  assert place([[0, 8], [10, 93], [20, 70]]) == ((10, 13), (83, 64))
  assert place([[0, 8], [0, 100], [0, 120]]) == ((0, 0), (100, 120))


def test_bodies_that_reach_as_far_as_in_training_leave_the_grid_in_the_middle():
  usual = [[[[0, 0]], 0], [[[0.1, 0.08]], 0], [[[0.12, 0.12]], 0]]
  assert place([[0, 8], [10, 88], [18, 102]], usual) == ((18, 28), (64, 64))
  assert place([[0, 8], [10, 88], [18, 110]], usual) == ((18, 18), (64, 92))  # farther than there
  assert place([[0, 8], [10, 88], [33, 97]], usual) == ((18, 33), (64, 64))  # no farther, but off the middle
  off = [[0, 8], [10, 88], [36, 120]]  # farther at one end, but as wide as in training
  assert place(off, usual) == ((18, 46), (64, 64))


def test_a_wide_body_and_a_narrow_one_off_the_middle_do_not_excuse_a_body_that_is_both():
  centre = grid()
  wide, narrow = ([[0, 8], [4, 96], [14, 106]], [[0, 8], [18, 78], [31, 92]])
  usual = field_of_view.usual_of([field_of_view.overhang(centre, body) for body in (wide, narrow)])
  assert place(wide, usual) == place(narrow, usual) == ((18, 28), (64, 64))
  thin = [[0, 8], [20, 80], [34, 94]]  # 60 voxels wide, beyond the grid by 2 at one end
  assert place(thin, usual)[1] == (64, 64)
  off = [[0, 8], [8, 78], [22, 92]]
  assert place(off, usual) == ((11, 25), (64, 64))


def test_the_share_of_a_body_that_is_beyond_the_grid():
  assert field_of_view.overhang(grid(), [[0, 8], [10, 90], [36, 100]]) == [[0, 0, 0], [0.1, 0.1, 0], [0, 0.125, 8 / 64]]
  assert field_of_view.overhang(grid(), None) == [[0, 0, 0]] * 3


def test_what_is_usual_are_the_training_cases_that_are_farthest_beyond_the_grid():
  overhangs = [
    [[0, 0, 0], [0.3, 0, 0.1], [0.2, 0.2, 0]],
    [[0, 0, 0], [0.2, 0, 0.2], [0, 0.2, 0.1]],
    [[0, 0, 0], [0, 0.4, 0.1], [0.1, 0.1, 0]],
  ]
  expected = [[[[0, 0]], 0], [[[0, 0.4], [0.3, 0]], 0.2], [[[0, 0.2], [0.2, 0.2]], 0.1]]
  assert field_of_view.usual_of(overhangs) == expected
  assert field_of_view.usual_of([]) == [[[[0, 0]], 0]] * 3


bounds = st.tuples(st.integers(0, 89), st.integers(1, 90)).map(lambda t: [t[0], min(t[0] + t[1], 90)])


@settings(max_examples=200, deadline=None)
@given(bounds, bounds, bounds, st.integers(5, 100), st.integers(5, 100), st.floats(0, 0.4))
def test_every_place_is_within_the_covering_grid_and_holds_the_body(z, y, x, depth, side, limit):
  centre = grid((90, 90, 90), (depth, side, side + 3), (1.0, 1.0, 1.0), mm=(1.0, 1.0, 1.0))
  body, usual = [z, y, x], [[[[limit, limit / 2], [limit / 3, limit]], limit / 2]] * 3
  whole, complete = field_of_view.covering(centre, body), field_of_view.complete(centre)
  around = field_of_view.around_body(centre, body)
  assert around.working == centre.working and field_of_view.centre_of(around) == centre
  image = np.empty(whole.working, np.uint8)
  for known in (None, usual):
    placed = field_of_view.placed(centre, body, known)
    for part in (placed, around, centre):
      assert field_of_view.crop(image, whole, part).shape == part.working
    for part in (around, centre):
      field_of_view.crop(np.empty(complete.working), complete, part)
    for axis, (a, b, _) in enumerate(field_of_view.overhang(placed, body)):
      tolerance = 0.02 * placed.working[axis] / (body[axis][1] - body[axis][0])
      assert max(a, b) <= tolerance + (limit if known else 0)


def test_a_part_beyond_the_grid_is_an_error():
  centre = grid()
  with pytest.raises(ValueError, match='not within'):
    field_of_view.crop(np.empty(centre.working), centre, dataclasses.replace(centre, offset=(0, 0, 28)))


def test_shares_that_are_cut_off():
  assert field_of_view.cut_off({'liver': 100, 'spleen': 10, 'aorta': 0}, {'liver': 75, 'spleen': 10, 'aorta': 0}) == {
    'liver': 0.25
  }
