import base64
import dataclasses
import gzip

import nibabel as nib
import numpy as np
import pytest
from tiny_dataset import geometry

from afw_jax.data import resample
from afw_jax.report.page import scenes
from afw_jax.report.page.scenes import Scene

SHAPE = (12, 30, 34)


def scene(in_hu=True, **changes):
  z, y, x = np.indices(SHAPE)
  body = ((y - 15) ** 2 + (x - 16) ** 2 < 120) & (z > 0)
  image = np.where(body, 40 + z * 10, -1000).astype(np.int16)
  mask = ((y - 12) ** 2 + (x - 20) ** 2 < 20).astype(np.uint8) * (1 + (z > 6)).astype(np.uint8)
  affine = geometry(SHAPE, axes='LPS').internal_affine
  made = Scene(image, {'truth': mask, 'prediction': np.roll(mask, 2, 2)}, affine, True, (-100.0, 200.0), in_hu)
  return dataclasses.replace(made, **changes)


def volume(entry):
  return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(entry['data'])))


def at(image, place_mm):
  """The value at a place in mm."""
  index = np.linalg.inv(image.affine) @ [*place_mm, 1]
  return image.get_fdata()[tuple(np.rint(index[:3]).astype(int))]


@pytest.mark.parametrize('axes', ['RAS', 'LPS', 'LAS', 'RPI'])
def test_files_are_where_the_scan_is(axes):
  one = scene(affine=geometry(SHAPE, axes=axes).internal_affine)
  image = nib.Nifti1Image.from_bytes(one.file('scan'))
  z, y, x = 7, 13, 5
  assert image.get_fdata()[x, y, z] == one.image[z, y, x] and image.get_data_dtype() == np.int16
  np.testing.assert_allclose(image.affine @ [x, y, z, 1], one.affine @ [z, y, x, 1], rtol=1e-5)
  assert nib.aff2axcodes(image.affine) == ('L', 'P', 'S')


def test_embedded_volumes_hold_the_same_places_cropped(tmp_path):
  one = scene()
  made = scenes.embedded(one, 10**6)
  scan, truth, prediction = (volume(made['volumes'][name]) for name in ('scan', 'truth', 'prediction'))
  assert scan.shape == truth.shape == prediction.shape and np.prod(scan.shape) < 0.8 * one.image.size
  assert (truth.get_fdata() > 0).sum() == (one.masks['truth'] > 0).sum()
  for z, y, x in [(3, 12, 20), (9, 12, 22), (11, 15, 16)]:
    place = (one.affine @ [z, y, x, 1])[:3]
    assert at(truth, place) == one.masks['truth'][z, y, x] and at(prediction, place) == one.masks['prediction'][z, y, x]
    assert at(scan, place) == pytest.approx(one.image[z, y, x], abs=1.1)  # 500 HU in 255 steps
  assert scan.get_data_dtype() == np.uint8 and 'merged' not in made['grid'] and '1.25 x 1.50 x 3.00 mm' in made['grid']


def test_a_small_budget_reduces_along_the_smallest_voxels_first():
  rng = np.random.default_rng(0)
  noise = scene(image=rng.integers(-100, 200, SHAPE).astype(np.int16))
  made = scenes.embedded(noise, 6000)
  scan, truth = (volume(made['volumes'][name]) for name in ('scan', 'truth'))
  assert sum(len(entry['data']) for entry in made['volumes'].values()) <= 6000
  assert made['grid'] == 'Voxels of 2.50 x 3.00 x 3.00 mm. Here 2 x 2 x 1 voxels are merged into one'
  assert scan.header.get_zooms() == pytest.approx((2.5, 3.0, 3.0))
  # The middle of a block of 2 x 2 voxels is where its value is.
  corner = np.linalg.inv(noise.affine) @ scan.affine @ [0, 0, 0, 1]
  assert (corner[1:3] % 1).tolist() == pytest.approx([0.5, 0.5])
  z, y, x = np.rint(corner[:3] - [0, 0.5, 0.5]).astype(int)
  assert scan.get_fdata()[0, 0, 0] == pytest.approx(noise.image[z, y : y + 2, x : x + 2].mean(), abs=1.1)
  assert set(np.unique(truth.get_fdata())) == {0, 1, 2}


def test_classes_of_merged_voxels():
  mask = np.zeros((1, 2, 4), np.uint8)
  mask[0] = [[1, 1, 2, 0], [1, 0, 0, 3]]
  np.testing.assert_array_equal(scenes._most_frequent(mask, np.array([1, 2, 2])), [[[1, 0]]])
  ids = np.full((2, 2, 2), 300, np.uint16)
  assert scenes._most_frequent(ids, np.array([2, 2, 2])).tolist() == [[[300]]]


def test_uneven_sides_and_single_voxels():
  one = scene(image=np.full((1, 3, 5), 50, np.int16), masks={'prediction': np.ones((1, 3, 5), np.uint8)})
  assert volume(scenes.embedded(one, 10**6)['volumes']['scan']).shape == (5, 3, 1)
  tiny = volume(scenes.embedded(one, 1)['volumes']['scan'])  # ends, however small the budget
  assert max(tiny.shape) <= 2 and tiny.get_fdata().max() == pytest.approx(50, abs=1.1)


def test_the_viewer_begins_within_the_organs():
  one = scene()
  x, y, z = scenes.details(one, whole=True)['focus']
  mask = one.masks['truth']
  assert mask[int(z * 12), int(y * 30), int(x * 34)] > 0
  empty = scenes.details(scene(masks={'prediction': np.zeros(SHAPE, np.uint8)}), whole=True)['focus']
  assert empty == pytest.approx([0.5, 0.5, 0.5], abs=0.05)


def test_windows():
  names = lambda one, whole: {w['name']: (w['low'], w['high']) for w in scenes.windows(one, whole=whole)}
  part, whole = names(scene(), False), names(scene(), True)
  assert list(part)[0] == 'as the network sees it' and part['as the network sees it'] == (-100, 200)
  assert 'lung' not in part and 'lung' in whole and part['soft tissue'] == (-160, 240)
  assert all(low < high for low, high in whole.values())
  assert list(names(scene(in_hu=False), True)) == ['as the network sees it', 'dark structures']


@pytest.mark.parametrize('fit', ['resize', 'crop_pad'])
def test_a_working_grid_lies_where_its_voxels_come_from(fit):
  grid_of = geometry((6, 40, 48), axes='RPI')
  z, y, x = np.indices((6, 40, 48)).astype(np.float32)
  size, spacing = ((24, 30), (None, 2.0, 2.0)) if fit == 'crop_pad' else ((20, 36), (None,) * 3)
  grid = resample.make_resampling((6, 40, 48), grid_of.spacing_mm, size=size, spacing=spacing, fit=fit)
  # Where each voxel of the working grid comes from, by the resampling of the coordinates themselves.
  found = np.stack([resample.to_working(axis, grid, 1) for axis in (z, y, x)])
  affine = scenes.working_affine(grid_of, grid)
  for place in ((0, 8, 9), (5, 12, 20), (3, 15, 11)):
    native = grid_of.internal_affine @ [*found[(slice(None), *place)], 1]
    np.testing.assert_allclose(affine @ [*place, 1], native, atol=1e-3)
