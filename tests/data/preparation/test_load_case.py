"""Cases with a mask for each organ: TotalSegmentator's layout from its files to the store."""

import os
import shutil

import numpy as np
import pytest
from tiny_dataset import SMALL, geometry, prepare_store, scan

from afw_jax.data import store
from afw_jax.data.formats import volumes
from afw_jax.data.sets.multi_organ import TOTALSEGMENTATOR_ORGANS
from afw_jax.errors import InputError

# Of TotalSegmentator's map of 117 classes.
IDS = dict(
  zip(TOTALSEGMENTATOR_ORGANS, (1, 2, 3, 4, 15, 5, 6, 52, 63, 64, 7, 8, 9, 19), strict=True),
  heart=51,
  kidney_cyst_left=23,
)


def write_case(root, name, image, masks):
  """A case of (organ -> mask) on the grid of a scan."""
  (root / name / 'segmentations').mkdir(parents=True)
  volumes.write_image(root / name / 'ct.nii.gz', image.array, image.geometry)
  for organ, mask in masks.items():
    volumes.write_label(root / name / 'segmentations' / f'{organ}.nii.gz', mask, image.geometry)


@pytest.fixture
def real(tmp_path):
  """(folder in the published layout, its scan, the map of 117 classes)."""
  if 'AFW_REAL_DATA' not in os.environ:
    pytest.skip('AFW_REAL_DATA does not name a folder of real scans')
  data = os.path.join(os.path.abspath(os.environ['AFW_REAL_DATA']), 'totalsegmentator')
  image, labels = volumes.read_image(f'{data}/example_ct_sm.nii.gz'), volumes.read_label(f'{data}/example_seg.nii.gz')
  write_case(tmp_path / 'ts', 's0001', image, {organ: labels.array == i for organ, i in IDS.items()})
  shutil.copy(f'{data}/example_ct_sm.nii.gz', tmp_path / 'ts' / 's0001' / 'ct.nii.gz')
  return tmp_path / 'ts', image, labels.array


def test_the_organs_of_a_real_scan(tmp_path, real):
  root, image, labels = real
  index = prepare_store('totalsegmentator', root, tmp_path / 's', **SMALL)
  assert index['organs'] == list(TOTALSEGMENTATOR_ORGANS) and index['options']['overlapping'] == 'error'
  native = store.read_case(tmp_path / 's', 's0001').arrays['native_label']
  for organ, c in index['labels'].items():
    np.testing.assert_array_equal(native == c, labels == IDS[organ])
    assert index['cases']['s0001']['voxels'][organ] == (labels == IDS[organ]).sum()
  assert index['cases']['s0001']['voxels']['liver'] > 1000
  # Other organs, or another rule for overlaps, are another store.
  chosen = prepare_store('totalsegmentator', root, tmp_path / 't', organs=('aorta', 'heart'), overlap='last', **SMALL)
  native = store.read_case(tmp_path / 't', 's0001').arrays['native_label']
  np.testing.assert_array_equal(native, np.select([labels == 52, labels == 51], [1, 2]))
  again = prepare_store('totalsegmentator', root, tmp_path / 't', organs=('aorta', 'heart'), **SMALL)
  assert chosen['options_hash'] != again['options_hash']


def tiny(seed, shape=(6, 40, 48)):
  return volumes.Volume(scan(seed, shape), geometry(shape), '', '')


def box(*slices, shape=(6, 40, 48)):
  mask = np.zeros(shape, bool)
  mask[slices] = True
  return mask


@pytest.mark.parametrize('overlap', ['error', 'first', 'last'])
def test_overlapping_masks(tmp_path, overlap):
  masks = {'liver': box(slice(3), slice(10), slice(10)), 'spleen': box(slice(2, 5), slice(10), slice(10))}
  write_case(tmp_path / 'ts', 's0', tiny(0), masks)
  prepared = lambda: prepare_store(
    *('totalsegmentator', tmp_path / 'ts', tmp_path / 's'), organs=('liver', 'spleen'), overlap=overlap, **SMALL
  )
  if overlap == 'error':
    with pytest.raises(InputError, match=r's0/segmentations: masks overlap: liver and spleen \(100 voxels\)'):
      prepared()
    return
  case = prepared()['cases']['s0']
  assert case['voxels'] == {'liver': 300 - 100 * (overlap == 'last'), 'spleen': 300 - 100 * (overlap == 'first')}
  assert any(f'the {overlap} organ got the voxels' in note for note in case['notes'])


def test_a_scan_of_another_part_of_the_body_is_background(tmp_path):
  write_case(tmp_path / 'ts', 's0', tiny(0), {'liver': box(slice(3), slice(10), slice(10))})
  write_case(tmp_path / 'ts', 's1', tiny(1), {'liver': box(0, 0, slice(0))})
  index = prepare_store('totalsegmentator', tmp_path / 'ts', tmp_path / 's', organs=('liver',), **SMALL)
  assert index['cases']['s1']['voxels'] == {'liver': 0}
  assert any('none of the organs' in note for note in index['cases']['s1']['notes'])
  assert not any('none of the organs' in note for note in index['cases']['s0']['notes'])


def test_masks_on_another_grid_than_the_scan(tmp_path):
  write_case(tmp_path / 'ts', 's0', tiny(0), {'liver': box(slice(3), slice(10), slice(10))})
  other = (6, 40, 47)
  volumes.write_image(tmp_path / 'ts' / 's0' / 'ct.nii.gz', tiny(0, other).array, geometry(other))
  with pytest.raises(InputError, match=r's0/segmentations: its shape \(6, 40, 48\) .* differs from that of the scan'):
    prepare_store('totalsegmentator', tmp_path / 'ts', tmp_path / 's', organs=('liver',), **SMALL)
