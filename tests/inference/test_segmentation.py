"""Segmentation of volumes: slices and sliding windows, and the way back onto the grid of the scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from restore_reference import from_working

from afw_jax.data import resample
from afw_jax.errors import InputError
from afw_jax.inference import forward, restoration, segmentation
from afw_jax.inference.segmentation import Options


def threshold_step(variables, image, window):
  """A 'network' whose organ 1 is where the image exceeds the middle of the window."""
  middle = window.mean(1).reshape(-1, *[1] * (image.ndim - 2))
  p = jax.nn.sigmoid(50 * (image[..., 0].astype(jnp.float32) - middle))
  return jnp.stack([1 - p, p], -1)


def soft_step(variables, image, window):
  """Three classes, none of them certain."""
  image = image[..., 0].astype(jnp.float32) / 100
  return jax.nn.softmax(jnp.stack([jnp.sin(3 * image), jnp.cos(2 * image), image], -1))


@pytest.mark.parametrize('window_size', [(16, 12), (7, 16, 12), (4, 8, 6), (9, 20, 12)])
def test_identity_grid_gives_the_pixels_back(window_size):
  image = np.random.default_rng(0).integers(-100, 100, (7, 16, 12)).astype(np.int16)
  image[image == 0] = 1
  for batch_size in (1, 3, 7, 20):
    labels, probabilities = segmentation.segment(
      jax.jit(threshold_step),
      {},
      image,
      (-100, 100),
      (np.eye(7), np.eye(16), np.eye(12)),
      Options(window_size, batch_size),
      keep_probabilities=True,
    )
    np.testing.assert_array_equal(labels, image > 0)
    assert probabilities.shape == (7, 16, 12, 2) and labels.dtype == np.uint8
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=2e-3)


def test_outside_the_field_of_view_is_background():
  image = np.full((2, 4, 4), 50, np.int16)
  rows = np.zeros((8, 4))
  rows[2:6] = np.eye(4)
  labels, _ = segmentation.segment(threshold_step, {}, image, (-10, 10), (np.eye(2), rows, np.eye(4)), Options((4, 4)))
  assert (labels[:, 2:6] == 1).all() and (labels[:, :2] == 0).all() and (labels[:, 6:] == 0).all()


GRIDS = {  # native shape, working size, target spacing of a scan with 2 mm slices, fit
  'as it is': ((13, 20, 18), (16, 16), (None, None, None), 'resize'),
  'finer': ((13, 20, 18), (41, 16, 17), (None, None, None), 'resize'),
  'coarser': ((50, 20, 18), (9, 20, 18), (None, None, None), 'resize'),
  'much coarser': ((90, 10, 10), (2, 8, 8), (None, None, None), 'resize'),
  'one slice': ((5, 10, 10), (1, 8, 8), (None, None, None), 'resize'),
  'from one slice': ((1, 10, 10), (6, 8, 8), (None, None, None), 'resize'),
  'cropped': ((40, 20, 18), (12, 14, 14), (1.5, 1.0, 1.0), 'crop_pad'),
  'cropped far': ((300, 9, 9), (4, 8, 8), (None, None, None), 'crop_pad'),
  'padded': ((13, 20, 18), (32, 24, 24), (1.5, 1.0, 1.0), 'crop_pad'),
  'cropped by one': ((10, 12, 12), (10, 12, 12), (1.82, 1.0, 1.0), 'crop_pad'),
}


@pytest.mark.parametrize('slices', [True, False], ids=['slices', 'windows'])
@pytest.mark.parametrize('grid', GRIDS)
def test_the_streamed_way_back_is_the_reference(grid, slices):
  native, size, spacing, fit = GRIDS[grid]
  plan = resample.make_resampling(native, (2.0, 1.0, 1.0), size=size, spacing=spacing, fit=fit)
  image = np.random.default_rng(1).integers(-300, 300, plan.working).astype(np.int16)
  labels, probabilities = segmentation.segment(
    jax.jit(soft_step),
    {},
    image,
    (-100, 100),
    resample.restore_matrices(plan),
    Options(plan.working[1:] if slices else (7, 9, 8), batch_size=4),
    keep_probabilities=True,
  )
  expected = from_working(soft_step({}, image[..., None], None), plan)
  assert labels.shape == native == probabilities.shape[:3]
  seen = np.ix_(*(np.asarray(m).any(1) for m in resample.restore_matrices(plan)))
  np.testing.assert_allclose(probabilities[seen].astype(np.float32), expected[seen], atol=1e-3)
  top = np.sort(expected, -1)
  sure = top[..., -1] - top[..., -2] > 1e-5
  np.testing.assert_array_equal(labels[sure], expected.argmax(-1)[sure])
  assert sure.mean() > 0.99


def test_one_compilation_whatever_the_number_of_slices():
  restoration._restore.clear_cache()
  step = jax.jit(lambda variables, image, window: soft_step(variables, image, window))
  for depth in (5, 8, 21, 30):
    image = np.zeros((depth, 6, 6), np.int16)
    segmentation.segment(step, {}, image, (0, 1), (np.eye(depth), np.eye(6), np.eye(6)), Options((6, 6), batch_size=4))
  assert restoration._restore._cache_size() == 1 and step._cache_size() == 1


@pytest.mark.parametrize('size', [(6, 6), (1, 4, 4)])
def test_probabilities_that_are_no_numbers_are_an_error_and_no_background(size):
  step = jax.jit(lambda variables, image, window: threshold_step(variables, image, window) * variables)
  view = lambda factor: segmentation.View(
    step, jnp.float32(factor), np.ones((3, 6, 6), np.int16), (0, 1), (np.eye(3), np.eye(6), np.eye(6)), Options(size)
  )
  assert (segmentation.segment_views([view(1)], name='p7.nii')[0] == 1).all()
  for views in ([view(np.nan)], [view(1), view(np.nan)]):
    with pytest.raises(InputError, match='^p7.nii: the network gives NaN'):
      segmentation.segment_views(views, name='p7.nii')
  assert not segmentation.segment_views([view(np.nan)])[0].any()  # a validation goes on


def test_an_invalid_input_size():
  with pytest.raises(InputError, match='input_size'):
    segmentation.segment(soft_step, {}, np.zeros((2, 2, 2)), (0, 1), (np.eye(2),) * 3, Options((2,)))


def test_mirror_averaging_is_the_mean_of_mirrored_predictions():
  ramp = jnp.linspace(0, 1, 6)

  def left_biased(variables, image, window):
    return jnp.broadcast_to(ramp, image.shape[:-1])[..., None]

  image = np.zeros((1, 4, 6, 1), np.float32)
  averaged = forward.mirror_averaged(left_biased, (1,))({}, image, None)
  np.testing.assert_allclose(averaged[0, :, :, 0], 0.5, atol=1e-6)
  assert forward.mirror_averaged(left_biased, ()) is left_biased
  both = forward.mirror_averaged(lambda v, x, w: x, (0, 1))
  x = np.random.default_rng(1).random((2, 4, 6, 1), np.float32)
  np.testing.assert_allclose(both({}, x, None), x, rtol=1e-6)
  ramps = lambda v, x, w: (
    sum(jnp.linspace(0, 1, n).reshape(-1, *[1] * (3 - i)) for i, n in enumerate(x.shape[1:4])) + 0 * x
  )
  np.testing.assert_allclose(
    forward.mirror_averaged(ramps, (0, 1, 2))({}, np.zeros((2, 3, 4, 5, 1)), None), 1.5, rtol=1e-6
  )


def test_largest_component_per_organ():
  labels = np.zeros((4, 10, 10), np.uint8)
  labels[0:2, 0:3, 0:3] = 1
  labels[3, 9, 9] = 1
  labels[1, 6:8, 6:8] = 2
  labels[2, 8, 8] = 2  # touches by a corner: the same component
  out = segmentation.largest_components(labels)
  assert (out == 1).sum() == 18 and out[3, 9, 9] == 0 and (out == 2).sum() == 5
  assert (labels == 1).sum() == 19  # the input is untouched


@pytest.mark.parametrize('axes', [(3,), (-1,), (0, 0), ('x',)])
def test_invalid_axes(axes):
  with pytest.raises(InputError, match='mirror_axes'):
    forward.mirror_averaged(threshold_step, axes)


def test_an_axis_that_a_slice_does_not_have():
  step = jax.jit(forward.mirror_averaged(soft_step, (0, 2)))
  assert step({}, np.zeros((1, 4, 4, 4, 1)), None).shape == (1, 4, 4, 4, 3)
  with pytest.raises(InputError, match='no axis 2'):
    step({}, np.zeros((1, 4, 4, 1)), None)
