"""Preparing scans of several channels: what the store holds of each, and what is wrong with one of them."""

import json

import numpy as np
import pytest
import tiny_dataset
from tiny_dataset import SMALL, geometry, label_map, prepare_and_select, prepare_store, scan

from afw_jax.data import crops, pipeline, resample, store, usual
from afw_jax.data.formats import volumes
from afw_jax.data.preparation.options import StoreOptions
from afw_jax.data.sets.lookup import get_spec
from afw_jax.data.sets.window import percentile_window
from afw_jax.errors import InputError, InputErrors

NAMES = {'0': 'PET', '1': 'CT'}


def pet(seed):
  return (np.abs(scan(seed)) / 300).astype(np.float32) + 1


def write(root, i, channel, array, grid=None):
  volumes.write_image(root / 'images' / f'c{i}_{channel:04d}.nii.gz', array, grid or geometry())


@pytest.fixture
def root(tmp_path):
  root = tiny_dataset.make(tmp_path / 'raw', n=0, channel_names=NAMES)
  for i in range(3):
    write(root, i, 0, pet(i))
    write(root, i, 1, scan(i))
    volumes.write_label(root / 'labels' / f'c{i}.nii.gz', label_map(i), geometry())
  return root


def test_each_channel_is_prepared_as_if_it_were_alone(root, tmp_path):
  index, selection = prepare_and_select('folder', root, tmp_path / 's', **SMALL)
  assert index['modality'] == 'CT' and index['options']['channels'] == [['PET', 'MR'], ['CT', 'CT']]
  assert selection.window == ('percentile', (-125, 275))
  for i in range(3):
    case = store.read_case(tmp_path / 's', f'c{i}', verify=True)
    grid, image = resample.Resampling.from_json(case.meta['resampling']), case.arrays['image']
    assert image.shape == (6, 32, 32, 2) and case.arrays['label'].shape == (6, 32, 32)
    for channel, alone in enumerate((pet(i), scan(i).astype(np.float32))):
      np.testing.assert_array_equal(image[..., channel], resample.to_working(alone, grid, 3))
      assert case.meta['percentile_window'][channel] == list(percentile_window(alone))
    assert selection.windows[f'c{i}'] == (percentile_window(pet(i)), (-125.0, 275.0))
    assert [len(one['percentiles']) for one in case.meta['intensities']] == [4, 4]
  assert len(usual.usual_of_training(index, selection)['intensities']) == 2


def test_whole_numbers_of_all_channels_stay_whole(tmp_path):
  root = tiny_dataset.make(tmp_path / 'raw', n=0, channel_names={'0': 'T1', '1': 'T2'})
  for channel in (0, 1):
    write(root, 0, channel, scan(channel) + np.int16(900))
  volumes.write_label(root / 'labels' / 'c0.nii.gz', label_map(0), geometry())
  prepare_store('folder', root, tmp_path / 's', **SMALL)
  assert store.read_case(tmp_path / 's', 'c0').arrays['image'].dtype == np.int16


def test_a_change_of_any_channel_is_noticed(root, tmp_path):
  first = prepare_store('folder', root, tmp_path / 's', **SMALL)
  write(root, 1, 1, scan(77))
  second = prepare_store('folder', root, tmp_path / 's', **SMALL)
  content = lambda index: {case_id: case['content_sha256'] for case_id, case in index['cases'].items()}
  assert {i for i in content(first) if content(first)[i] != content(second)[i]} == {'c1'}


def test_the_body_is_found_in_the_ct(root, tmp_path):
  """The PET has no body that a threshold could find; the CT has one at the side, to which the grid moves."""
  body = np.full((6, 60, 60), -1000, np.int16)
  body[:, 20:44, 4:30] = 40
  flat = np.random.default_rng(0).random(body.shape, np.float32)
  label = (body > 0).astype(np.uint8)
  grid = geometry(body.shape, (3.0, 3.0, 3.0))
  for i in range(3):
    write(root, i, 0, flat, grid)
    write(root, i, 1, body + np.int16(i), grid)
    volumes.write_label(root / 'labels' / f'c{i}.nii.gz', label, grid)
  grid = dict(size=(32, 32), spacing_mm=(None, 3.0, 3.0), fit='crop_pad', progress=False, workers=0)
  prepare_store('folder', root, tmp_path / 's', **grid)
  case = store.read_case(tmp_path / 's', 'c0')
  np.testing.assert_allclose(case.meta['body'], [(0, 6), (20, 44), (4, 30)], atol=2)
  assert case.arrays['whole'].shape[-1] == 2 and case.meta['cut_off'] == {}
  assert case.meta['resampling']['offset'][2] < 4  # around the middle it would be 14
  middle = case.arrays['image'][:, 12:20, 10:20, 1]
  assert (middle == 40).all()


@pytest.mark.parametrize('lacks', ['shape', 'place'])
def test_a_channel_on_another_grid_is_named_with_its_cure(root, tmp_path, lacks):
  if lacks == 'shape':
    write(root, 1, 1, scan(1)[1:], geometry((5, 40, 48)))
  else:
    write(root, 1, 1, scan(1), geometry(origin=(-20, 30, 6)))
  with pytest.raises(InputError, match=r'c1_0001.nii.gz: channel 1: .*channel 0 .*c1_0000.nii.gz.*Resample') as error:
    prepare_store('folder', root, tmp_path / 's', **SMALL)
  assert ('shape (5, 40, 48)' if lacks == 'shape' else '0.33 voxels (1 mm)') in str(error.value)


def test_damage_of_any_channel_is_told_of_all(root, tmp_path):
  for i in (0, 2):
    path = root / 'images' / f'c{i}_0001.nii.gz'
    path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(InputErrors, match=r'(?s)c0_0001.*c2_0001'):
    prepare_store('folder', root, tmp_path / 's', **SMALL)


def test_the_stores_of_one_channel_keep_their_options(tmp_path):
  """Their digest is that of these keys; another key would prepare every store again and refuse every checkpoint."""
  root = tiny_dataset.make(tmp_path / 'raw', n=1)
  options = StoreOptions('folder', size=(32, 32)).to_json(get_spec('folder', str(root)))
  assert json.dumps(options, sort_keys=True) == (
    '{"fit": "resize", "ignored_ids": [], "modality": "CT", "order": 3, "organs": ["liver", "spleen"], '
    '"raw_ids": {"liver": [1], "spleen": [7]}, "size": [32, 32], "source": "nifti", "spacing_mm": [null, 1.0, 1.0]}'
  )
  assert 'channels' not in prepare_store('folder', root, tmp_path / 's', **SMALL)['listing']


def test_batches_of_slices_and_of_crops_that_reach_beyond_the_scan(root, tmp_path):
  index, selection = prepare_and_select('folder', root, tmp_path / 's', **{**SMALL, 'size': ()})
  ids, windows = selection.ids, selection.windows
  slices = pipeline.SliceSource(str(tmp_path / 's'), ids, windows)
  batch = slices.read([0, 7])
  case_id, z = slices.records[7]
  assert batch['image'].shape == (2, *batch['label'].shape[1:], 2) and batch['window'].shape == (2, 2, 2)
  image = store.read_case(tmp_path / 's', case_id).arrays['image']
  np.testing.assert_array_equal(batch['image'][1], image[z])
  np.testing.assert_array_equal(batch['window'][1], np.float32(windows[case_id]))
  source = crops.CropSource(str(tmp_path / 's'), ids, windows, (10, 16, 16), foreground=0)
  crop = source.draw(0, np.random.default_rng(0))
  assert crop['image'].shape == (10, 16, 16, 2) and crop['window'].shape == (2, 2)
  low = np.float32(windows[source.records[0][0]])[:, 0]
  np.testing.assert_array_equal(crop['image'][[0, 1, 8, 9]], np.broadcast_to(low, (4, 16, 16, 2)))
