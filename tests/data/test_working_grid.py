"""A scan comes to the same grid and voxels by prediction as by preparation, wherever the patient lies in it."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_dataset import describe, geometry, prepare_store

from afw_jax.data import phantom, resample, store, working_grid
from afw_jax.data.formats import volumes
from afw_jax.data.padding import without_padding

SPACING = (14.0, 6.0, 6.0)
IMAGE, LABEL = phantom.make_phantom(3, (16, 60, 64), SPACING)
WIDER = [[[[0, 0]], 0], [[[0.05, 0.02], [0, 0.1]], 0.05], [[[0.06, 0.06]], 0]]
PLACES = {  # ((before, after) of rows, of columns) of air beside the body
  'in the middle': ((0, 0), (0, 0)),
  'to the left': ((0, 0), (50, 0)),
  'to the right': ((3, 0), (0, 51)),
  'to the front': ((0, 57), (0, 0)),
  'everywhere': ((60, 61), (33, 30)),
}


def padded(place, image, fill):
  return np.pad(image, [(0, 0), *PLACES[place]], constant_values=fill)


def make(root, place):
  image, label = padded(place, IMAGE, -1024), padded(place, (LABEL == 5).astype(np.uint8), 0)
  for sub, write, array in (('images', volumes.write_image, image), ('labels', volumes.write_label, label)):
    (root / sub).mkdir(parents=True, exist_ok=True)
    write(root / sub / 'c0.nii.gz', array, geometry(image.shape, SPACING))
  describe(root, labels={'background': 0, 'liver': 1})
  return root


def prepared(root, place, **options):
  """(index, the scan, the prepared case)."""
  index = prepare_store('folder', make(root / 'raw', place), root / 's', workers=0, progress=False, **options)
  scan = volumes.read_image(root / 'raw' / 'images' / 'c0.nii.gz')
  scan = dataclasses.replace(scan, array=without_padding(scan.array, in_hu=True))  # as both do
  return index, scan, store.read_case(root / 's', 'c0', verify=True)


GRIDS = {
  'slices as large as the body': dict(size=(48, 64), spacing_mm=(None, 6.0, 6.0), fit='crop_pad'),
  'slices smaller than the body': dict(size=(32, 32), spacing_mm=(None, 6.0, 6.0), fit='crop_pad'),
  'slices larger than most scans': dict(size=(121, 121), spacing_mm=(None, 5.0, 5.0), fit='crop_pad'),
  'volumes smaller than the body': dict(size=(10, 24, 33), spacing_mm=(14.0, 9.0, 7.0), fit='crop_pad'),
  'volumes as large as the spacing says': dict(size=(), spacing_mm=(14.0, 9.0, 7.0), fit='crop_pad'),
  'resized': dict(size=(32, 32), spacing_mm=(None, 6.0, 6.0), fit='resize'),
}


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('grid', GRIDS)
def test_prediction_and_preparation_see_the_same(tmp_path, grid, place):
  index, scan, case = prepared(tmp_path, place, **GRIDS[grid])
  for usual in (None, WIDER):
    expected, image = working_grid.to_working_grid(scan, index['options'], usual)
    found, stored = working_grid.prepared_case(case, usual)
    assert json.dumps(found.to_json()) == json.dumps(expected.to_json())
    np.testing.assert_array_equal(stored, image)
  whole = working_grid.to_working_grid(scan, index['options'])[0]
  liver = padded(place, LABEL == 5, 0)
  back = [np.flatnonzero(m.any(1)) for m in resample.restore_matrices(whole)]
  seen = np.zeros_like(liver)
  seen[np.ix_(*back)] = True
  assert seen[liver].all()  # not a voxel of the liver lies outside of what is predicted


def test_training_moves_the_grid_to_the_body_where_an_organ_is_cut(tmp_path):
  index, _, case = prepared(tmp_path, 'to the left', **GRIDS['slices as large as the body'])
  assert case.arrays['image'].shape[1:] == (48, 64) and index['cases']['c0']['cut_off'] == {}
  assert case.meta['working_voxels']['liver'] == (LABEL == 5).sum() and case.meta['notes'] == []
  middle = prepared(tmp_path / 'm', 'in the middle', **GRIDS['slices as large as the body'])[2]
  at = [np.argwhere(c.arrays['label']).mean(0) for c in (case, middle)]
  np.testing.assert_allclose(*at, atol=3)  # as if the patient lay in the middle, to the accuracy of the body's box


def test_what_training_does_not_see_is_noted(tmp_path):
  index, _, case = prepared(tmp_path, 'in the middle', **GRIDS['slices smaller than the body'])
  lost = 1 - case.meta['working_voxels']['liver'] / (LABEL == 5).sum()
  assert 0.1 < lost < 0.9 and index['cases']['c0']['cut_off'] == {'liver': pytest.approx(lost)}
  assert any(f'cuts off {lost:.1%} of liver' in note for note in index['cases']['c0']['notes'])


def test_a_scan_in_the_middle_is_stored_as_ever(tmp_path):
  _, scan, case = prepared(tmp_path, 'in the middle', **GRIDS['slices larger than most scans'])
  assert set(case.arrays) == {'image', 'label', 'native_label', 'foreground'} and case.meta['cut_off'] == {}
  plan = resample.make_resampling(
    scan.array.shape, scan.spacing_mm, size=(121, 121), spacing=(None, 5.0, 5.0), fit='crop_pad'
  )
  np.testing.assert_array_equal(case.arrays['image'], resample.to_working(scan.array, plan, 3))
