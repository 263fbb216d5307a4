"""The rules by which figures choose scans, slices and crops."""

import math

import numpy as np
import pytest

from afw_jax.report import choice

DSC = {'e': 50.0, 'a': 91.0, 'd': 70.0, 'b': 80.0, 'c': 60.0}


@pytest.mark.parametrize('dsc, chosen', [
  (DSC, {'e': 'lowest', 'd': 'median', 'a': 'highest'}),
  (DSC | {'x': math.nan}, {'e': 'lowest', 'd': 'median', 'a': 'highest'}),
  (DSC | {'f': 75.0}, {'e': 'lowest', 'd': 'median', 'a': 'highest'}),  # of d and f in the middle the lower
  ({'b': 1.0, 'a': 1.0, 'c': 1.0}, {'a': 'lowest', 'b': 'median', 'c': 'highest'}),  # by their ids
  ({'b': 2.0, 'a': 1.0}, {'a': 'lowest', 'b': 'highest'}),
  ({'b': math.nan, 'a': 3.0}, {'a': 'only scan'}),
  ({'b': math.nan, 'a': math.nan, 'c': math.nan}, {'a': 'lowest', 'b': 'median', 'c': 'highest'}),
])  # fmt: skip
def test_scans_by_their_place_in_the_ranking(dsc, chosen):
  assert choice.choose_scans(dsc) == chosen
  assert list(choice.choose_scans(dsc)) == list(chosen)
  assert choice.choose_scans(dict(reversed(dsc.items()))) == chosen  # whatever the order of the files


def test_one_scan_in_the_middle():
  assert choice.choose_scans(DSC, ('median',)) == {'d': 'median'}
  assert choice.choose_scans({'a': 1.0, 'b': 2.0}, ('median',)) == {'a': 'median'}


def test_the_slice_with_the_most_organs_then_the_most_of_them():
  truth = np.zeros((6, 10, 10), np.uint8)
  truth[1] = 1  # the largest area, of one organ
  truth[2, 0, :5] = (1, 2, 2, 2, 2)
  for z in (3, 4):
    truth[z, 0, :6] = (1, 2, 2, 2, 2, 5)
    truth[z, 1] = 5
  assert choice.choose_slice(truth) == 3  # the first of two that are alike
  truth[4, 2, 0] = 1
  assert choice.choose_slice(truth) == 4
  assert choice.choose_slice(np.zeros((7, 3, 3), int)) == 3


def test_crops_hold_every_organ_of_every_label_map_and_have_one_size_in_mm():
  spacings = [(2.0, 1.0), (1.0, 1.0)]
  truth, wrong, small = np.zeros((50, 90), int), np.zeros((50, 90), int), np.zeros((60, 60), int)
  truth[10:20, 30:50], wrong[40, 80] = 1, 2
  small[30, 31:33] = 1
  (top, bottom, left, right), other = choice.crops([[truth, wrong], [small, small * 0]], spacings)
  assert top < 9.5 and bottom > 40.5 and left < 29.5 and right > 80.5
  assert (bottom - top) * 2 == pytest.approx(62 + 24) and right - left == pytest.approx(51 + 24)
  assert other[1] - other[0] == pytest.approx(62 + 24) and other[3] - other[2] == pytest.approx(51 + 24)
  assert (other[0] + other[1]) / 2 == pytest.approx(30) and (other[2] + other[3]) / 2 == pytest.approx(31.5)
  ((top, bottom, left, right),) = choice.crops([[truth * 0]], spacings[:1])
  assert top < 0 and bottom > 49 and left < 0 and right > 89  # nothing is labelled: all of the slice
