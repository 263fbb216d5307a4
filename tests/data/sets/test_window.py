"""Intensity windows: by name, by numbers and by percentiles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afw_jax.data.sets.window import (
  PERCENTILES,
  percentile_window,
  recorded_window,
  resolve_window,
  resolve_windows,
  scan_window,
)
from afw_jax.errors import InputError

CT = dict(default=(50, 350), in_hu=True, dataset='synapse')
MR = dict(default=None, in_hu=False, dataset='chaos_mr_t2')


def test_windows_by_name_and_by_numbers():
  assert resolve_window(None, **CT) == (50, 350) and resolve_window(None, **MR) == 'percentile'
  assert resolve_window('paper', **CT) == (50, 350) and resolve_window('transunet', **CT) == (-125, 275)
  assert resolve_window([-160, 240], **CT) == (-160, 240) and resolve_window((0, 1), **MR) == (0, 1)
  assert resolve_window('percentile', **CT) == 'percentile'
  assert scan_window(np.zeros(3), [50, 350]) == (50, 350)


@pytest.mark.parametrize(
  'window, data_set, said',
  [
    ('papr', CT, "Did you mean 'paper'"),
    ((3, 3), CT, 'low < high'),
    ((0, float('nan')), CT, 'low < high'),
    ((1,), CT, 'low < high'),
    ('paper', MR, 'in HU, but the intensities of chaos_mr_t2 are not'),
  ],
)
def test_invalid_windows(window, data_set, said):
  with pytest.raises(InputError, match=said):
    resolve_window(window, **data_set)


PET_CT = dict(default=(-125, 275), in_hu=True, dataset='mine', channels=[['PET', 'MR'], ['CT', 'CT']])
T1_T2 = dict(default=None, in_hu=False, dataset='mine', channels=[['T1', 'MR'], ['T2', 'MR']])


def test_one_window_is_that_of_the_channels_of_ct_and_several_are_one_for_each():
  assert resolve_windows(None, **PET_CT) == ('percentile', (-125, 275))
  assert resolve_windows('paper', **PET_CT) == ('percentile', (50, 350))
  assert resolve_windows((0, 100), **PET_CT) == ('percentile', (0, 100))
  assert resolve_windows('percentile', **PET_CT) == ('percentile', 'percentile')
  assert resolve_windows(((0, 5), None), **PET_CT) == ((0, 5), (-125, 275))
  assert resolve_windows(None, **T1_T2) == resolve_windows('percentile', **T1_T2) == ('percentile', 'percentile')
  assert resolve_windows(((0, 5), 'percentile'), **T1_T2) == ((0, 5), 'percentile')
  assert resolve_windows(((0, 5),), **CT) == (0, 5) and resolve_windows((0, 5), **CT) == (0, 5)


@pytest.mark.parametrize(
  'window, data_set, said',
  [
    ((0, 5), T1_T2, 'no channel of mine is CT'),
    ('paper', T1_T2, 'no channel of mine is CT'),
    (((0, 5),) * 3, PET_CT, r'has 3 windows, and mine 2 channel\(s\)'),
    (((0, 5),) * 2, CT, r'has 2 windows, and synapse 1 channel\(s\)'),
    (('paper', None), PET_CT, 'in HU, but the intensities of channel 0 of mine are not'),
    (((5, 0), None), PET_CT, 'low < high'),
  ],
)
def test_windows_that_do_not_fit_the_channels(window, data_set, said):
  with pytest.raises(InputError, match=said):
    resolve_windows(window, **data_set)


def test_windows_of_a_scan_of_several_channels():
  scan = np.stack([np.arange(1000.0).reshape(10, 10, 10), np.full((10, 10, 10), 7.0)], -1)
  window = ('percentile', [-1, 1])  # as JSON gives it
  known = [list(percentile_window(scan[..., i])) for i in range(2)]
  assert scan_window(scan, window) == recorded_window(known, window) == (percentile_window(scan[..., 0]), (-1.0, 1.0))
  assert recorded_window([3, 4], 'percentile') == (3.0, 4.0) and recorded_window([3, 4], [5, 6]) == (5.0, 6.0)


@pytest.mark.parametrize('dtype', [np.int16, np.float32])
def test_percentile_window_does_not_depend_on_the_air_around(dtype):
  body = np.random.default_rng(0).integers(100, 900, (4, 50, 50)).astype(dtype)
  low, high = scan_window(body, 'percentile')
  low2, high2 = scan_window(np.pad(body, ((0, 0), (60, 60), (60, 60))), 'percentile')
  assert 100 <= low <= 105 and 890 <= high <= 900
  assert abs(low2 - low) <= 2 and abs(high2 - high) <= 4
  assert scan_window(np.full((2, 2), 7, dtype), 'percentile') == (7, 8)


def by_numpy(scan):
  """The definition, in terms of `np.percentile`."""
  inside = scan[scan > scan.min()]
  if not inside.size:
    return float(scan.min()), float(scan.min()) + 1
  low = np.percentile(inside, PERCENTILES[0])
  high = np.percentile(inside[inside >= inside.mean()], PERCENTILES[1])
  return float(low), float(high if high > low else low + 1)


@settings(max_examples=300, deadline=None)
@given(
  shape=st.tuples(st.integers(1, 6), st.integers(1, 30), st.integers(1, 30)),
  spread=st.sampled_from([0, 1, 3, 40, 900, 16000]),
  middle=st.integers(-16000, 16000),
  seed=st.integers(0, 2**32 - 1),
)
def test_percentiles_of_integers_are_numpys_to_the_last_bit(shape, spread, middle, seed):
  scan = np.random.default_rng(seed).integers(middle - spread, middle + spread + 1, shape).astype(np.int16)
  assert percentile_window(scan) == by_numpy(scan)


def test_percentiles_at_the_ends_of_the_type():
  scan = np.array([[-32768] * 5 + [32767] * 5 + [-32768, 0]], np.int16)
  assert percentile_window(scan) == by_numpy(scan.astype(np.int32))
