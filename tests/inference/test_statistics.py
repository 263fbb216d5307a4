"""Statistics of organs, against boxes and centroids known by hand, in every orientation of the file."""

import itertools

import numpy as np
import pytest

from afw_jax.data.formats.geometry import Geometry
from afw_jax.errors import InputError
from afw_jax.inference import statistics

SHAPE = (9, 7, 5)  # i, j, k of the file
ORGANS = ('liver', 'spleen')
AXES = np.diag([2.0, 3.0, 4.0])


def grid(columns=AXES, origin=(10.0, 20.0, 30.0), shape=SHAPE, **more):
  affine = np.eye(4)
  affine[:3, :3], affine[:3, 3] = columns, origin
  return Geometry(shape=shape, affine=affine.tolist(), **more)


def of(native, geometry, values=None, organs=ORGANS):
  """The statistics of a label map that is given as it is stored in the file."""
  scan = np.zeros(native.shape, np.int16) if values is None else values
  return statistics.of_organs(geometry.to_internal(native), geometry.to_internal(scan), geometry, organs)


def block(first, last, value=1, shape=SHAPE):
  native = np.zeros(shape, np.uint8)
  native[tuple(slice(a, b + 1) for a, b in zip(first, last))] = value
  return native


def test_a_block_by_hand():
  native = block((1, 2, 3), (3, 2, 3))  # three voxels along i
  values = np.full(SHAPE, -1000, np.int16)
  values[1:4, 2, 3] = 10, 20, 60
  found = of(native, grid(), values)['liver']
  assert found.voxels == 3 and found.volume_ml == pytest.approx(3 * 24 / 1000)
  assert found.mean == 30 and found.sd == pytest.approx((1400 / 3) ** 0.5)
  assert found.box == ((1, 3), (2, 2), (3, 3))
  assert found.centroid_ras_mm == (10 + 2 * 2, 20 + 3 * 2, 30 + 4 * 3)
  assert not found.touches_border and found.components == 1


def test_every_orientation_of_the_file_and_oblique_ones():
  turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, 0.96, -0.28], [0, 0.28, 0.96]])
  native = block((1, 2, 3), (4, 5, 3))
  values = np.arange(native.size, dtype=np.float32).reshape(SHAPE)
  for rotation in (np.eye(3), turn):
    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
      columns = rotation @ np.eye(3)[:, order] @ np.diag(signs) @ np.diag([2.0, 3.0, 4.0])
      geometry = grid(columns)
      found = of(native, geometry, values)['liver']
      assert found.box == ((1, 4), (2, 5), (3, 3))
      np.testing.assert_allclose(found.centroid_ras_mm, columns @ [2.5, 3.5, 3] + [10, 20, 30], atol=1e-9)
      assert found.volume_ml == pytest.approx(16 * 24 / 1000) and found.mean == pytest.approx(
        values[1:5, 2:6, 3].mean()
      )


@pytest.mark.parametrize('axis', range(3))
@pytest.mark.parametrize('at_end', [False, True])
def test_each_border_of_the_scan(axis, at_end):
  first, last = [2, 2, 2], [3, 3, 2]
  first[axis] = last[axis] = SHAPE[axis] - 1 if at_end else 0
  assert of(block(first, last), grid())['liver'].touches_border
  first[axis] = last[axis] = SHAPE[axis] - 2 if at_end else 1
  assert not of(block(first, last), grid())['liver'].touches_border


def test_parts_that_share_a_corner_are_one_and_others_are_not():
  native = block((1, 1, 1), (1, 1, 1)) + block((2, 2, 2), (2, 2, 2))
  assert of(native, grid())['liver'].components == 1
  assert of(native + block((4, 4, 2), (4, 4, 2)), grid())['liver'].components == 2
  between = native + block((4, 2, 2), (4, 2, 2)) + block((3, 2, 2), (3, 2, 2), 2)  # another organ does not join them
  assert of(between, grid())['liver'].components == 2 and of(between, grid())['spleen'].components == 1


def test_absent_organs_and_empty_label_maps():
  found = of(block((1, 1, 1), (2, 2, 2), 2), grid())
  assert list(found) == list(ORGANS) and found['liver'] == statistics.OrganStatistics()
  assert found['spleen'].voxels == 8
  nothing = of(np.zeros(SHAPE, np.uint8), grid())
  assert set(nothing.values()) == {statistics.OrganStatistics()} and nothing['liver'].centroid_ras_mm is None
  assert statistics.cells(nothing['liver'].to_json())[:-2] == [''] * 11
  assert statistics.cells(nothing['liver'].to_json())[-2:] == [0, 0] and statistics.cells(None) == [''] * 13


def test_voxels_without_a_number_are_not_measured():
  native, values = block((1, 1, 1), (4, 1, 1)), np.zeros(SHAPE, np.float32)
  values[1:5, 1, 1] = np.nan, 4, 6, np.inf
  found = of(native, grid(), values)['liver']
  assert (found.mean, found.sd, found.voxels) == (5, 1, 4)
  values[:] = np.nan
  found = of(native, grid(), values)['liver']
  assert found.mean is None and found.sd is None and found.box == ((1, 4), (1, 1), (1, 1))


def test_intensities_of_any_size_are_in_the_table():
  found = statistics.OrganStatistics(mean=2.34567e-6, sd=4.5e-8, centroid_ras_mm=(1e-15, 2.0004, -3.0)).to_json()
  assert (found['mean'], found['sd'], found['centroid_ras_mm']) == (2.35e-6, 4.5e-8, [0.0, 2.0, -3.0])
  found = statistics.OrganStatistics(mean=-40.12345, sd=0.43219).to_json()
  assert (found['mean'], found['sd']) == (-40.123, 0.432)


def test_large_integers_are_summed_without_overflow():
  values = np.full(SHAPE, 32000, np.int16)
  found = of(np.ones(SHAPE, np.uint8), grid(), values)['liver']
  assert found.mean == 32000 and found.sd == 0 and found.touches_border and found.box == ((0, 8), (0, 6), (0, 4))


def test_a_single_slice_and_a_file_without_a_voxel_size():
  found = of(block((1, 1, 0), (2, 2, 0), shape=(9, 7, 1)), grid(shape=(9, 7, 1), has_mm=False))['liver']
  assert found.touches_border and found.centroid_ras_mm is None and found.box == ((1, 2), (1, 2), (0, 0))


def test_other_shapes_are_refused():
  with pytest.raises(InputError, match='not on the grid'):
    statistics.of_organs(np.zeros(SHAPE, np.uint8), np.zeros(SHAPE), grid(), ORGANS)


def test_the_cells_of_a_table_are_in_the_order_of_its_columns():
  found = of(block((0, 2, 3), (3, 2, 3)), grid())['liver'].to_json()
  row = dict(zip(statistics.columns('left_kidney'), statistics.cells(found), strict=True))
  assert row['left_kidney_i_first'] == 0 and row['left_kidney_i_last'] == 3 and row['left_kidney_k_last'] == 3
  assert row['left_kidney_x_mm'] == 10 + 2 * 1.5 and row['left_kidney_z_mm'] == 42
  assert row['left_kidney_touches_border'] == 1 and row['left_kidney_components'] == 1
  assert all(map(statistics.is_column, row)) and not any(map(statistics.is_column, ('age', 'scan', 'liver')))
