"""Tables of positions: interpolation against scipy, and the grid a table was made for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax import linen as nn

from afw_jax.errors import InputError
from afw_jax.models.layers.positions import position_table, resize_table


def draw(*shape):
  return jnp.asarray(np.random.default_rng(0).random(shape, dtype=np.float32))


class Table(nn.Module):
  position_grid: tuple | None = None

  @nn.compact
  def __call__(self, grid):
    return position_table(self, 'table', grid, 3, nn.initializers.normal(), self.position_grid)


@pytest.mark.parametrize('source, target', [((2, 3, 4), (4, 2, 5)), ((3, 3, 3), (3, 6, 1)), ((4, 4), (7, 3))])
def test_positions_are_resized_as_scipy_does_with_corners_onto_corners(source, target):
  table = draw(1, int(np.prod(source)), 3)
  ours = np.reshape(resize_table(table, source, target), (*target, 3))
  zoom = [m / n for n, m in zip(source, target)]
  wanted = scipy.ndimage.zoom(np.reshape(table, (*source, 3)), [*zoom, 1], order=1, grid_mode=False, mode='nearest')
  assert np.allclose(ours, wanted, atol=1e-6)


def test_a_table_of_positions_fits_the_grid_at_hand():
  variables = {'params': {'table': draw(1, 64, 3)}}
  assert np.array_equal(Table().apply(variables, (2, 4, 8)), variables['params']['table'])
  assert np.array_equal(
    Table().apply(variables, (2, 4, 4)), resize_table(variables['params']['table'], (4, 4, 4), (2, 4, 4))
  )
  assert np.array_equal(
    Table().apply(variables, (16, 16)), resize_table(variables['params']['table'], (8, 8), (16, 16))
  )
  assert np.array_equal(
    Table((8, 2, 4)).apply(variables, (2, 4, 8)), resize_table(variables['params']['table'], (8, 2, 4), (2, 4, 8))
  )
  assert np.array_equal(resize_table(variables['params']['table'], (4, 4, 4), (4, 4, 4)), variables['params']['table'])
  for wrong in ((4, 4, 5), (8, 8)):
    with pytest.raises(InputError, match='position_grid.*has 64 along 3'):
      Table(wrong).apply(variables, (2, 4, 8))
  resized = jax.grad(lambda v: jnp.sum(Table((8, 2, 4)).apply(v, (3, 3, 3))))(variables)
  assert np.isclose(
    np.sum(resized['params']['table']), 27 * 3, rtol=1e-5
  )  # the weights of every new position sum to one
