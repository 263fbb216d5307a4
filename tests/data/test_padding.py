"""Padding of scans: whatever a scan was padded with, it gives the same volume, the same percentiles, the same type."""

import numpy as np
import pytest

from afw_jax.data import resample
from afw_jax.data.padding import without_padding, without_padding_of
from afw_jax.data.phantom.make import make_phantom
from afw_jax.data.sets.channels import Channel
from afw_jax.data.sets.window import percentile_window

SHAPE, SPACING = (4, 60, 60), (7.0, 6.0, 6.0)
Y, X = np.mgrid[:60, :60] - 29.5
OUTSIDE = {
  'beyond a circle': Y**2 + X**2 > 28**2,
  'beyond a circle that cuts the body': Y**2 + X**2 > 20**2,
  'at one side': X < -20,
  'of a turned grid': np.abs(Y) + np.abs(X) > 36,
}


@pytest.fixture(scope='module')
def ct():
  image, _ = make_phantom(1, SHAPE, SPACING)
  assert image.min() == -1024  # the noise of air meets the lowest value of the scanner
  return image


def padded(scan, value, outside):
  scan = scan.astype(np.int16 if -32768 <= value <= 32767 and scan.dtype == np.int16 else np.float32)
  scan[:, outside] = value
  scan[-1] = value  # a slice beyond the volume
  return scan


def interpolated(scan):
  """On a grid of another spacing in 3D."""
  resampling = resample.make_resampling(scan.shape, SPACING, size=(6, 48, 48), spacing=(5.0, 7.0, 7.0), fit='crop_pad')
  return resample.to_working(scan, resampling, 3)


@pytest.mark.parametrize('outside', OUTSIDE)
def test_ct_is_the_same_for_every_padding(ct, outside):
  expected = without_padding(padded(ct, -1000, OUTSIDE[outside]), in_hu=True)
  for value in (-1024, -1025, -2000, -3024, -32768, -33792, 32767, 64511, 0, -500, 1500, 3000):
    cleaned = without_padding(padded(ct, value, OUTSIDE[outside]), in_hu=True)
    assert cleaned.dtype == np.int16
    np.testing.assert_array_equal(cleaned, expected, err_msg=str(value))
    np.testing.assert_array_equal(interpolated(cleaned), interpolated(expected))
    assert percentile_window(cleaned) == percentile_window(expected)
  inside = np.s_[:-1, ~OUTSIDE[outside]]
  changed = expected[inside] != ct[inside]
  assert changed.mean() < 0.01 and ct[inside][changed].max(initial=-1024) <= -1000  # noise that touches the padding


def test_ct_with_fractions_is_the_same_for_every_padding(ct):
  scan = np.maximum(ct, -1020) + np.float32(0.25)
  expected = without_padding(padded(scan, -1000, OUTSIDE['at one side']), in_hu=True)
  assert expected.dtype == np.float32
  for value in (-1024, -2000.5, -32768, 1e9):
    np.testing.assert_array_equal(without_padding(padded(scan, value, OUTSIDE['at one side']), in_hu=True), expected)


def test_a_constant_in_a_drawn_scan_is_no_padding():
  for in_hu, values in ((True, (-1000, 0, 40)), (False, (0, 400, 700))):
    drawn = np.full(SHAPE, values[0], np.int16)
    drawn[:, 20:], drawn[:, 40:] = values[1], values[2]
    assert without_padding(drawn, in_hu=in_hu) is drawn


@pytest.mark.parametrize('sd', [0.5, 1, 3])
def test_the_most_frequent_value_of_quiet_tissue_is_no_padding(sd):
  tissue = np.rint(np.random.default_rng(0).normal(40, sd, SHAPE)).astype(np.int16)
  np.testing.assert_array_equal(without_padding(tissue, in_hu=True), tissue)


def test_a_scan_without_padding_stays_as_it_is(ct):
  np.testing.assert_array_equal(without_padding(ct, in_hu=True), ct)
  mr = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
  assert without_padding(mr, in_hu=False) is mr
  scores = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)  # MR that was normalised
  assert without_padding(scores, in_hu=False) is scores
  for constant in (-2000, 0, 700):
    whole = np.full(SHAPE, constant, np.int16)
    assert without_padding(whole, in_hu=False) is whole
    assert (without_padding(whole, in_hu=True) == max(constant, -1000)).all()


def test_metal_is_clipped_and_stays_metal(ct):
  scan = ct.copy()
  scan[1, 28:32, 28:32] = 15000
  cleaned = without_padding(scan, in_hu=True)
  assert (cleaned[1, 28:32, 28:32] == 3071).all() and (cleaned != ct).sum() == 16


@pytest.mark.parametrize('outside', OUTSIDE)
def test_mr_is_the_same_for_every_padding(outside):
  scan = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
  scan[:, np.hypot(Y, X) > 18] //= 100
  expected = padded(scan, 0, OUTSIDE[outside])
  for value in (-1, -1000, -32768, 32767, 65535, 950, 1500):
    cleaned = without_padding(padded(scan, value, OUTSIDE[outside]), in_hu=False)
    assert cleaned.dtype == np.int16
    np.testing.assert_array_equal(cleaned, expected, err_msg=str(value))
  assert percentile_window(expected)[1] < 900


def test_normalised_mr_with_padding_below():
  scan = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
  a, b = (without_padding(padded(scan, value, OUTSIDE['at one side']), in_hu=False) for value in (-1000, -50))
  np.testing.assert_array_equal(a, b)
  assert a.min() > -6 and np.array_equal(a[:-1, ~OUTSIDE['at one side']], scan[:-1, ~OUTSIDE['at one side']])


def test_a_little_padding_below_zero_in_mr():
  scan = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
  expected = scan.copy()
  scan[1, :2, :3], expected[1, :2, :3] = -1000, scan[:, 2:].min()
  np.testing.assert_array_equal(without_padding(scan, in_hu=False), expected)


def test_the_brightest_tissue_is_no_padding():
  scan = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
  near_coil = np.random.default_rng(1).normal(1050, 100, (SHAPE[0], 20, SHAPE[2]))
  scan[:, :20] = np.minimum(near_coil, 1100)  # saturated along the border, but not apart from the rest
  assert without_padding(scan, in_hu=False) is scan
  scan[2, 30:34, 30:34] = 4000  # apart from the rest, but not along the border
  assert without_padding(scan, in_hu=False) is scan


def test_each_channel_by_the_rules_of_its_kind(ct):
  """CT is cut to the range of its scanners, and its padding becomes air; MR may have any value."""
  pet = ct.astype(np.float32) * 10 + 20000
  scan = np.stack([padded(ct.copy(), -2000, OUTSIDE['beyond a circle']), pet], -1)
  cleaned = without_padding_of(scan, (Channel(0, 'CT', True), Channel(1, 'PET', False)))
  np.testing.assert_array_equal(cleaned[..., 1], pet)
  assert cleaned[..., 0].min() == -1024 and (cleaned[-1, ..., 0] == -1000).all()
  one = without_padding_of(scan[..., 0], (Channel(None, '', True),))
  np.testing.assert_array_equal(one, cleaned[..., 0])
