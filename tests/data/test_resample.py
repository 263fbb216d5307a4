"""Resampling to the working grid equals scipy.ndimage.zoom, and label maps come back to where they were."""

import json

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from restore_reference import from_working

from afw_jax.data.resample import (
  Resampling,
  make_resampling,
  nearest_index,
  restore_matrices,
  restore_matrix,
  to_working,
  zoom_matrix,
)
from afw_jax.errors import InputError

SIDES = st.integers(1, 90)


def smooth(shape, seed=0, scale=500):
  noise = np.random.default_rng(seed).normal(size=shape)
  return (scale * scipy.ndimage.gaussian_filter(noise, 1.5) / 0.1).astype(np.float32)


def by_slices(volume, sizes, order):
  for h, w in sizes:
    factors = (h / volume.shape[1], w / volume.shape[2])
    if factors != (1, 1):
      volume = np.stack([scipy.ndimage.zoom(plane, factors, order=order) for plane in volume])
  return volume


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.sampled_from([0, 1, 3]))
def test_matrix_is_zoom_along_an_axis(n_in, n_out, order):
  rows = np.random.default_rng(n_in).uniform(-1000, 1000, (n_in, 3))
  expected = np.stack([scipy.ndimage.zoom(c, n_out / n_in, order=order) for c in rows.T], 1)
  np.testing.assert_allclose(zoom_matrix(n_in, n_out, order) @ rows, expected, atol=2e-3)  # 1e-6 of the range


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 600), st.integers(1, 600))
def test_nearest_index_is_zoom_of_order_0(n_in, n_out):
  ids = np.random.default_rng(n_out).integers(1, 200, n_in).astype(np.uint8)
  expected = ids if n_in == n_out else scipy.ndimage.zoom(ids, n_out / n_in, order=0)
  index = nearest_index(n_in, n_out)
  np.testing.assert_array_equal(np.where(index < 0, 0, ids[index]), expected)


@pytest.mark.parametrize('order', [1, 3])
@pytest.mark.parametrize(
  'spacing, sizes',
  [
    ((None, None, None), [(100, 90)]),
    ((None, 1.0, 1.0), [(134, 126), (100, 90)]),
    ((None, 1.0, 0.9), [(134, 140), (100, 90)]),
  ],
)
def test_image_equals_zoom_step_by_step(order, spacing, sizes):
  volume = smooth((3, 192, 180))
  resampling = make_resampling(volume.shape, (3, 0.7, 0.7), size=(100, 90), spacing=spacing)
  assert resampling.resampled[1:] in ((192, 180), sizes[0])
  expected = by_slices(volume, sizes, order)
  got = to_working(volume, resampling, order)
  assert got.dtype == np.float32 and got.shape == (3, 100, 90)
  assert np.abs(got - expected).max() < 2e-6 * np.ptp(volume)


def test_the_size_pair_with_a_zero_last_row_is_kept_as_zoom_has_it():
  volume = np.full((1, 512, 512), 70, np.float32)
  got = to_working(volume, make_resampling(volume.shape, (1, 1, 1), size=(224, 224), spacing=(None, None, None)), 1)
  np.testing.assert_allclose(got, by_slices(volume, [(224, 224)], 1), atol=1e-4)


def test_integers_are_rounded_and_an_overshoot_does_not_wrap():
  volume = np.zeros((1, 40, 40), np.int16)
  volume[:, 10:20, 10:20] = 32767
  volume[:, 25:35, 25:35] = -32768
  resampling = make_resampling(volume.shape, (1, 1, 1), size=(93, 93), spacing=(None, None, None))
  got = to_working(volume, resampling, 3)
  exact = by_slices(volume.astype(np.float64), [(93, 93)], 3)
  assert exact.max() > 33000 and exact.min() < -33000  # the spline does overshoot
  assert got.dtype == np.int16
  assert np.abs(got - np.clip(exact, -32768, 32767)).max() <= 0.51


@settings(max_examples=300, deadline=None)
@given(
  st.tuples(st.integers(1, 4), st.integers(2, 80), st.integers(2, 80)),
  st.tuples(st.integers(1, 80), st.integers(1, 80)),
  st.sampled_from([None, 0.7, 1.3]),
  st.sampled_from(['resize', 'crop_pad']),
  st.integers(0, 99),
)
def test_labels_hold_no_new_value_and_equal_zoom(shape, size, target, fit, seed):
  label = np.random.default_rng(seed).integers(0, 9, shape).astype(np.uint8)
  resampling = make_resampling(shape, (1, 1, 1), size=size, spacing=(None, target, target), fit=fit)
  got = to_working(label, resampling, 0)
  assert got.dtype == np.uint8 and got.shape == resampling.working == (shape[0], *size)
  if fit == 'resize':
    np.testing.assert_array_equal(got, by_slices(label, [resampling.resampled[1:], resampling.working[1:]], 0))
  assert set(np.unique(got)) <= {0, *np.unique(label)}


def test_three_axes():
  volume = smooth((20, 40, 30))
  resampling = make_resampling(volume.shape, (5, 0.8, 0.8), size=(48, 36, 28), spacing=(2.0, 1.0, 1.0))
  assert resampling.resampled == (50, 32, 24) and resampling.working == (48, 36, 28)
  expected = volume
  for shape in (resampling.resampled, resampling.working):
    expected = scipy.ndimage.zoom(expected, np.array(shape) / expected.shape, order=1)
  assert np.abs(to_working(volume, resampling, 1) - expected).max() < 2e-6 * np.ptp(volume)
  assert from_working(np.ones((*resampling.working, 2)), resampling).shape == (20, 40, 30, 2)


@pytest.mark.parametrize('order', [0, 1, 3])
def test_to_the_spacing_and_back_to_the_same_size_is_not_skipped(order):
  volume = smooth((8, 30, 30))
  resampling = make_resampling(volume.shape, (1, 1, 1), size=(8, 30, 30), spacing=(2.0, 2.0, 2.0))
  expected = scipy.ndimage.zoom(scipy.ndimage.zoom(volume, 0.5, order=order), 2, order=order)
  assert resampling.working == volume.shape and np.abs(expected - volume).max() > 10
  np.testing.assert_allclose(to_working(volume, resampling, order), expected, atol=5e-3)


def test_crop_and_pad_are_centred():
  volume = np.arange(2 * 6 * 7, dtype=np.int16).reshape(2, 6, 7) - 30
  resampling = make_resampling(volume.shape, (1, 1, 1), size=(4, 11), spacing=(None, None, None), fit='crop_pad')
  assert resampling.offset == (0, 1, -2)
  got = to_working(volume, resampling, 3)
  np.testing.assert_array_equal(got[:, :, 2:9], volume[:, 1:5])
  assert (got[:, :, :2] == -30).all() and (got[:, :, 9:] == -30).all()
  assert (to_working(np.ones((2, 6, 7), np.uint8), resampling, 0)[:, :, :2] == 0).all()


@settings(max_examples=60, deadline=None)
@given(
  st.tuples(st.integers(2, 90), st.integers(2, 90)),
  st.tuples(st.integers(4, 90), st.integers(4, 90)),
  st.floats(0.5, 2),
  st.sampled_from(['resize', 'crop_pad']),
)
def test_restoring_a_plane_gives_the_plane(shape, size, target, fit):
  """A linear function of position survives linear interpolation there and back, wherever the scan was seen."""
  y, x = np.mgrid[: shape[0], : shape[1]]
  plane = (3 * y - 2 * x + 5).astype(np.float32)
  resampling = make_resampling((1, *shape), (1, 1, 1), size=size, spacing=(None, target, target), fit=fit)
  if min(resampling.resampled[1:]) < 2:
    return
  _, my, mx = restore_matrices(resampling)
  # to_working's own last row may be zero (zoom's rounding), so the working plane is computed from its definition
  at = [
    (np.arange(w) + o) * (n - 1) / ((w if fit == 'resize' else r) - 1)
    for w, o, n, r in zip(resampling.working[1:], resampling.offset[1:], shape, resampling.resampled[1:])
  ]
  working = 3 * at[0][:, None] - 2 * at[1] + 5
  inside = np.outer(
    (np.arange(shape[0]) >= at[0][0] - 1e-6) & (np.arange(shape[0]) <= at[0][-1] + 1e-6),
    (np.arange(shape[1]) >= at[1][0] - 1e-6) & (np.arange(shape[1]) <= at[1][-1] + 1e-6),
  )
  back = my @ working @ mx.T
  np.testing.assert_allclose(back[inside], plane[inside], atol=2e-3)


def test_outside_the_field_of_view_is_background():
  resampling = make_resampling((2, 50, 50), (3, 1, 1), size=(20, 20), spacing=(None, 1.0, 1.0), fit='crop_pad')
  probabilities = np.zeros((2, 20, 20, 3), np.float32)
  probabilities[..., 2] = 1
  back = from_working(probabilities, resampling)
  np.testing.assert_allclose(back.sum(-1), 1, atol=1e-6)
  labels = back.argmax(-1)
  assert (labels[:, 15:35, 15:35] == 2).all() and labels.sum() == 2 * 2 * 20 * 20
  _, my, mx = restore_matrices(resampling)
  assert not (my @ probabilities[0, ..., 2] @ mx.T)[:15].any()


def test_restore_rows_are_interpolation_weights():
  for fit in ('resize', 'crop_pad'):
    resampling = make_resampling((3, 91, 60), (3, 0.8, 1.1), size=(70, 80), spacing=(None, 1.0, 1.0), fit=fit)
    for axis in range(3):
      m = restore_matrix(resampling, axis)
      assert m.dtype == np.float32 and m.shape == (resampling.native[axis], resampling.working[axis]) and m.min() >= 0
      assert set(np.round(m.sum(1), 5)) <= ({1.0} if fit == 'resize' else {0.0, 1.0})
    np.testing.assert_array_equal(restore_matrix(resampling, 0), np.eye(3, dtype=np.float32))


def test_every_axis_comes_back_by_its_matrix():
  resampling = make_resampling((10, 12, 12), (1.1, 1, 1), size=(10, 12, 12), spacing=(1.0, 1.0, 1.0), fit='crop_pad')
  assert resampling.resampled[0] == 11 and resampling.offset[0] == 0  # cut by one: still not the scan's own grid
  probabilities = np.random.default_rng(0).random((10, 12, 12, 2), np.float32)
  mz, my, mx = restore_matrices(resampling)
  expected = np.einsum('Dd,Hh,Ww,dhwc->DHWc', mz, my, mx, probabilities)
  seen = mz.sum(1) > 0
  np.testing.assert_allclose(from_working(probabilities, resampling)[seen], expected[seen], atol=1e-6)
  assert mz.shape == (10, 10) and not np.array_equal(mz, np.eye(10))


@pytest.mark.parametrize('fit', ['resize', 'crop_pad'])
def test_a_label_comes_back_to_its_place(fit):
  z, y, x = np.mgrid[:3, :150, :170]
  label = (((y - 60) / 30) ** 2 + ((x - 90) / 41) ** 2 < 1).astype(np.uint8)
  label[np.hypot(y - 105, x - 50) < 14] = 2
  resampling = make_resampling(label.shape, (3, 0.75, 0.75), size=(112, 120), spacing=(None, 1.0, 1.0), fit=fit)
  back = from_working(np.eye(3, dtype=np.float32)[to_working(label, resampling, 0)], resampling).argmax(-1)
  for c in (1, 2):
    both = ((back == c) & (label == c)).sum()
    assert 2 * both / ((back == c).sum() + (label == c).sum()) > 0.97


def test_a_resampling_survives_json_and_knows_its_spacing():
  resampling = make_resampling((10, 512, 400), (5, 0.7, 0.8), size=(224, 200), spacing=(None, 1.0, 1.0), fit='crop_pad')
  assert Resampling.from_json(json.loads(json.dumps(resampling.to_json()))) == resampling
  assert resampling.resampled == (10, 358, 320) and resampling.offset == (0, 67, 60) and resampling.spacing_mm[0] == 5
  np.testing.assert_allclose(resampling.spacing_mm[1:], (0.7 * 511 / 357, 0.8 * 399 / 319))


@pytest.mark.parametrize(
  'bad',
  [
    dict(size=(0, 5)),
    dict(size=(5, 5, 5, 5)),
    dict(size=(2.5, 5)),
    dict(fit='stretch'),
    dict(spacing=(None, 0, 1)),
    dict(spacing=(1.0, 1.0)),
    dict(spacing=(None, 1e-3, 1)),
    dict(spacing=(None, float('nan'), 1)),
  ],
)
def test_invalid_options(bad):
  with pytest.raises(InputError):
    make_resampling((5, 64, 64), (1, 1, 1), **{'size': (32, 32), 'spacing': (None, 1, 1), **bad})
