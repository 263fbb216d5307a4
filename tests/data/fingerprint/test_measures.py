"""Measures of a case against numpy on the arrays it was made from, and their range over cases."""

import numpy as np
import pytest
from measured_cases import case, organ
from tiny_dataset import SHAPE, geometry, label_map, scan

from afw_jax.data.fingerprint import measures
from afw_jax.data.formats.volume import Volume
from afw_jax.data.sets.spec import IGNORED


def volume(array, grid):
  return Volume(array, grid, 'scan.nii.gz', '')


@pytest.mark.parametrize('axes', ['RAS', 'LPS', 'RPI'])
def test_a_case_equals_numpy(axes):
  image, classes = scan(0), np.where(label_map(0) == 7, 2, label_map(0)).astype(np.uint8)
  found = measures.of_case(volume(image, geometry(axes=axes)), classes, ('liver', 'spleen', 'aorta'))
  assert found['shape'] == list(SHAPE)
  assert found['spacing_mm'] == pytest.approx([3.0, 1.5, 1.25])
  assert found['extent_mm'] == pytest.approx([18.0, 60.0, 60.0])
  assert found['percentiles'] == pytest.approx(np.percentile(image[classes > 0], [0.5, 50, 99.5]).tolist())
  for c, name in ((1, 'liver'), (2, 'spleen')):
    assert found['organs'][name]['volume_ml'] == pytest.approx((classes == c).sum() * 3 * 1.5 * 1.25 / 1000, abs=5e-4)
  assert found['absent'] == ['aorta'] and found['organs']['aorta']['volume_ml'] == 0


def test_unlabelled_voxels_count_nowhere():
  image = np.full(SHAPE, 1000, np.int16)
  classes = np.full(SHAPE, IGNORED, np.uint8)
  classes[2:4, 5:9, 5:9], image[2:4, 5:9, 5:9] = 1, 40
  found = measures.of_case(volume(image, geometry()), classes, ('liver',))
  assert found['percentiles'] == [40, 40, 40] and found['organs']['liver']['voxels'] == 32


def test_the_second_part_of_an_organ():
  classes = np.zeros(SHAPE, np.uint8)
  classes[0:2, 0:3, 0:5], classes[4, 10:12, 10:15] = 1, 1  # 30 and 10 voxels
  classes[5, 30, 30] = 1
  found = measures.of_case(volume(scan(0), geometry()), classes, ('liver',))['organs']['liver']
  assert found['components'] == 3 and found['second_share'] == pytest.approx(10 / 41, abs=5e-4)


def test_without_a_voxel_size_there_are_no_lengths():
  grid = geometry()
  grid = type(grid).from_json(grid.to_json() | {'has_mm': False})
  classes = np.where(label_map(0) == 7, 2, label_map(0)).astype(np.uint8)
  found = measures.of_case(volume(scan(0), grid), classes, ('liver', 'spleen'))
  assert found['spacing_mm'] is None and found['extent_mm'] is None
  assert found['organs']['liver']['volume_ml'] is None and found['organs']['liver']['voxels'] > 0
  summary = measures.over_cases([found])
  assert summary['spacing_mm'] is None and summary['distinct_spacings'] == 0
  assert summary['volume_ml']['liver'] == {'median': None, 'lowest': None, 'highest': None, 'cases': 1}


def test_median_and_range_over_cases():
  cases = [case(0), case(1, liver=organ(0)), case(5)]
  cases[0]['spacing_mm'] = [2.5, 0.7501, 0.75]  # another by less than a micrometre
  found = measures.over_cases(cases)
  assert found['shape'] == {'median': [101, 512, 512], 'lowest': [100, 512, 512], 'highest': [105, 512, 512]}
  assert found['percentiles']['median'] == [-51, 101, 251]
  assert found['volume_ml']['liver'] == {'median': 1550, 'lowest': 1500, 'highest': 1600, 'cases': 2}
  assert found['distinct_spacings'] == 3
  assert measures.over_cases([case(0), cases[0]])['distinct_spacings'] == 1


def test_a_scan_without_any_organ_has_no_intensities():
  """As in data sets of the whole body: it counts in everything else."""
  nothing = measures.of_case(volume(scan(0), geometry()), np.zeros(SHAPE, np.uint8), ('liver',))
  assert nothing['percentiles'] is None and nothing['absent'] == ['liver']
  one = measures.of_case(volume(scan(1), geometry()), (label_map(0) == 1).astype(np.uint8), ('liver',))
  found = measures.over_cases([nothing, one])
  assert found['percentiles']['median'] == one['percentiles'] and found['volume_ml']['liver']['cases'] == 1
  assert measures.over_cases([nothing])['percentiles'] is None
