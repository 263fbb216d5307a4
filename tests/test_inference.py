"""Slices to volumes and back onto the source grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afw_jax import inference
from afw_jax.errors import InputError


def threshold_step(variables, image, window):
  """A 'network' whose organ 1 is where the image exceeds the middle of the window."""
  middle = window.mean(1).reshape(-1, 1, 1)
  p = jax.nn.sigmoid(50 * (image[..., 0].astype(jnp.float32) - middle))
  return jnp.stack([1 - p, p], -1)


def test_identity_grid_gives_the_pixels_back():
  image = np.random.default_rng(0).integers(-100, 100, (7, 16, 12)).astype(np.int16)
  image[image == 0] = 1
  for batch_size in (1, 3, 7, 20):
    labels, probabilities = inference.segment(
        threshold_step, {}, image, (-100, 100), (np.eye(16), np.eye(12)), batch_size=batch_size, keep_probabilities=True)
    np.testing.assert_array_equal(labels, image > 0)
    assert probabilities.shape == (7, 16, 12, 2) and labels.dtype == np.uint8
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=2e-3)


def test_outside_the_field_of_view_is_background():
  image = np.full((2, 4, 4), 50, np.int16)
  rows = np.zeros((8, 4))
  rows[2:6] = np.eye(4)
  labels, _ = inference.segment(threshold_step, {}, image, (-10, 10), (rows, np.eye(4)))
  assert (labels[:, 2:6] == 1).all() and (labels[:, :2] == 0).all() and (labels[:, 6:] == 0).all()


def test_mirror_averaging_is_the_mean_of_mirrored_predictions():
  ramp = jnp.linspace(0, 1, 6)

  def left_biased(variables, image, window):
    return jnp.broadcast_to(ramp, image.shape[:-1])[..., None]

  image = np.zeros((1, 4, 6, 1), np.float32)
  averaged = inference.mirror_averaged(left_biased, (1,))({}, image, None)
  np.testing.assert_allclose(averaged[0, :, :, 0], 0.5, atol=1e-6)
  assert inference.mirror_averaged(left_biased, ()) is left_biased
  both = inference.mirror_averaged(lambda v, x, w: x, (0, 1))
  x = np.random.default_rng(1).random((2, 4, 6, 1), np.float32)
  np.testing.assert_allclose(both({}, x, None), x, rtol=1e-6)


def test_largest_component_per_organ():
  labels = np.zeros((4, 10, 10), np.uint8)
  labels[0:2, 0:3, 0:3] = 1
  labels[3, 9, 9] = 1
  labels[1, 6:8, 6:8] = 2
  labels[2, 8, 8] = 2  # touches by a corner: the same component
  out = inference.largest_components(labels, 4)
  assert (out == 1).sum() == 18 and out[3, 9, 9] == 0 and (out == 2).sum() == 5
  assert (labels == 1).sum() == 19  # the input is untouched


@pytest.mark.parametrize('axes', [(2,), (-1,), (0, 0), ('x',)])
def test_axes_that_a_slice_has_not(axes):
  with pytest.raises(InputError, match='mirror_axes'):
    inference.mirror_averaged(threshold_step, axes)
