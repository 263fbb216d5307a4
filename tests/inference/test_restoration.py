"""The two forms of the way back to the scan's grid: sums of neighbours, and products of matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afw_jax.data import resample
from afw_jax.inference import restoration


def slab(native, working, *, fit='resize', spacing=(None, None, None)):
  plan = resample.make_resampling(native, (2.0, 1.0, 1.0), size=working, spacing=spacing, fit=fit)
  drawn = np.random.default_rng(0).random((*plan.working, 3), np.float32)
  along_z, *others = resample.restore_matrices(plan)
  slices = tuple(jnp.asarray(drawn / drawn.sum(-1, keepdims=True)))
  return restoration.Slab(slices, along_z, *map(restoration.interpolation, others))


@pytest.mark.parametrize(
  'case',
  [
    slab((9, 40, 33), (9, 16, 17)),
    slab((9, 12, 10), (4, 31, 30)),
    slab((7, 20, 18), (7, 20, 18)),
    slab((6, 30, 28), (6, 14, 14), fit='crop_pad', spacing=(1.5, 1.7, 1.3)),
    slab((1, 8, 8), (6, 5, 1)),
  ],
  ids=['finer', 'coarser', 'same', 'cropped', 'one'],
)
def test_both_forms_are_the_same_numbers(case):
  products, neighbours = jax.jit(restoration._by_products)(case), jax.jit(restoration._by_neighbours)(case)
  assert products.shape == neighbours.shape
  np.testing.assert_allclose(products, neighbours, atol=2e-6)
  labels, probabilities = restoration.restore([case], keep_probabilities=True)
  np.testing.assert_array_equal(labels, np.argmax(probabilities, -1))
  alone, none = restoration.restore([case], keep_probabilities=False)
  assert none is None
  sure = np.diff(np.sort(probabilities, -1)[..., -2:])[..., 0] > 1e-6
  np.testing.assert_array_equal(np.asarray(alone)[sure], np.asarray(labels)[sure])


def test_the_mean_of_several_decides():
  one, other = slab((4, 9, 9), (4, 6, 6)), slab((4, 9, 9), (4, 5, 7))
  labels, mean = restoration.restore([one, other], keep_probabilities=True)
  parts = [restoration.restore([each], keep_probabilities=True)[1] for each in (one, other)]
  np.testing.assert_allclose(mean, sum(parts) / 2, atol=1e-6)
  np.testing.assert_array_equal(labels, np.argmax(mean, -1))


def test_neighbours_are_those_of_the_matrix():
  matrix = np.array([[1, 0, 0, 0], [0.25, 0.75, 0, 0], [0, 0, 0, 0], [0.2, 0, 0.3, 0.5]], np.float32)
  along = restoration.interpolation(matrix)
  again = np.zeros_like(matrix)
  np.add.at(again, (np.arange(4)[:, None], along.index), along.weights)
  np.testing.assert_array_equal(again, matrix)
  assert along.index.shape == (4, 3)


def test_on_a_cpu_no_probability_is_written_on_the_grid_of_the_scan():
  case = slab((8, 64, 64), (8, 32, 32))
  compiled = restoration._restore.lower((case,), False).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 8 * 64 * 64 * 3 * 4
