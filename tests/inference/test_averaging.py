"""Averaging networks: the mean of their probabilities on the grid of the scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afw_jax.data import resample
from afw_jax.inference import segmentation


def peaked_at(shift):
  """Three classes, whose probabilities depend on the intensity."""
  return jax.jit(lambda v, x, w: jax.nn.softmax(jnp.stack([jnp.sin(x[..., 0] / 40 + shift + c) for c in range(3)], -1)))


@pytest.mark.parametrize('count', [2, 3])
def test_the_mean_of_unlike_networks_on_the_grid_of_the_scan(count):
  native, views, singles = (13, 20, 18), [], []
  rng = np.random.default_rng(0)
  grids = [((16, 16), (16, 16)), ((9, 24, 20), (4, 16, 16)), ((20, 18), (20, 18))][:count]
  for i, (size, seen) in enumerate(grids):
    plan = resample.make_resampling(native, (2.0, 1.0, 1.0), size=size, spacing=(None,) * 3, fit='resize')
    image = rng.integers(-100, 100, plan.working).astype(np.int16)
    matrices = resample.restore_matrices(plan)
    options = segmentation.Options(seen, batch_size=3)
    views.append(segmentation.View(peaked_at(2 * i), {}, image, (0, 1), matrices, options))
    singles.append(segmentation.segment_views(views[-1:], keep_probabilities=True)[1].astype(np.float32))
  labels, probabilities = segmentation.segment_views(views, keep_probabilities=True)
  expected = np.mean(singles, 0)
  np.testing.assert_allclose(probabilities.astype(np.float32), expected, atol=1e-3)
  top = np.sort(expected, -1)
  sure = top[..., -1] - top[..., -2] > 2e-3
  np.testing.assert_array_equal(labels[sure], expected.argmax(-1)[sure])
  assert sure.mean() > 0.95 and any((labels != single.argmax(-1)).mean() > 0.1 for single in singles)


def test_where_the_grid_of_one_does_not_reach_the_others_decide():
  image = np.full((2, 4, 4), 50, np.int16)
  organ = lambda v, x, w: jnp.stack([0 * x[..., 0] + 0.4, 0 * x[..., 0] + 0.6], -1)
  shifted = np.zeros((8, 4))
  shifted[2:6] = np.eye(4)
  wide = np.repeat(np.eye(4), 2, 0)
  view = lambda rows: segmentation.View(
    organ, {}, image, (0, 1), (np.eye(2), rows, np.eye(4)), segmentation.Options((4, 4))
  )
  assert (segmentation.segment_views([view(shifted), view(wide)])[0] == 1).all()
  assert (segmentation.segment_views([view(shifted), view(shifted)])[0][:, :2] == 0).all()
