"""Preparing a data set: what the store holds, and what is prepared again."""

import h5py
import numpy as np
import pytest
import scipy.ndimage
from restore_reference import from_working
from tiny_dataset import (
  SHAPE,
  SMALL,
  contents,
  describe,
  geometry,
  label_map,
  make,
  prepare_and_select,
  prepare_store,
  scan,
)

from afw_jax.data import resample, store
from afw_jax.data.formats import volumes
from afw_jax.data.formats.geometry import Geometry
from afw_jax.data.preparation import load_case, prepare
from afw_jax.data.preparation.options import StoreOptions
from afw_jax.data.sets.window import percentile_window
from afw_jax.errors import InputError, InputErrors


def test_what_a_store_holds(tmp_path):
  root = make(tmp_path / 'raw')
  index, selection = prepare_and_select('folder', root, tmp_path / 's', **SMALL)
  assert index == store.read_index(tmp_path / 's')
  assert (index['modality'], index['organs'], index['labels']) == ('CT', ['liver', 'spleen'], {'liver': 1, 'spleen': 2})
  assert index['options']['raw_ids'] == {'liver': [1], 'spleen': [7]}
  assert index['output_ids'] == {'liver': 1, 'spleen': 7} and not index.keys() & {'window', 'splits'}
  assert [len(ids) for ids in selection.splits.values()] == [3, 1, 0] and selection.excluded == {}
  assert selection.window == (-125, 275) and any('no test part' in note for note in selection.notes)
  assert sorted(index['cases']) == ['c0', 'c1', 'c2', 'c3']
  for i in range(4):
    case = store.read_case(tmp_path / 's', f'c{i}', verify=True)
    image, label, native = (case.arrays[k] for k in ('image', 'label', 'native_label'))
    truth = np.select([label_map(i) == 1, label_map(i) == 7], [1, 2])
    np.testing.assert_array_equal(native, truth)
    steps = [(round(40 * 1.5), round(48 * 1.25)), (32, 32)]
    expected, nearest = scan(i).astype(np.float64), truth
    for size in steps:
      if size != expected.shape[1:]:
        factors = np.divide(size, expected.shape[1:])
        expected = np.stack([scipy.ndimage.zoom(p, factors, order=3) for p in expected])
        nearest = np.stack([scipy.ndimage.zoom(p, factors, order=0) for p in nearest])
    assert image.dtype == np.int16 and np.abs(image - expected).max() <= 0.51
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, nearest)
    foreground = case.arrays['foreground']
    np.testing.assert_array_equal(label[tuple(foreground[:, 1:].T)], foreground[:, 0])
    assert np.bincount(foreground[:, 0])[1:].tolist() == [min(500, (label == c).sum()) for c in (1, 2)]
    meta = case.meta
    assert 'window' not in meta and meta['native_shape'] == list(SHAPE) and meta['shape'] == [6, 32, 32]
    np.testing.assert_allclose(meta['native_spacing_mm'], (3, 1.5, 1.25))
    np.testing.assert_allclose(meta['spacing_mm'], (3, 1.5 * 39 / 31, 1.25 * 47 / 31))
    assert meta['voxels'] == {'liver': (truth == 1).sum(), 'spleen': (truth == 2).sum()}
    assert meta['voxels'] == index['cases'][f'c{i}']['voxels']
    assert meta['percentile_window'] == list(percentile_window(scan(i)))
    assert meta['options_hash'] == index['options_hash']
    assert Geometry.from_json(meta['geometry']) == volumes.read_image(root / 'images' / f'c{i}.nii.gz').geometry
    resampling = resample.Resampling.from_json(meta['resampling'])
    back = from_working(np.eye(3)[label], resampling).argmax(-1)
    assert (back == truth).mean() > 0.97
  assert not (tmp_path / 's' / '.staging').exists()


def test_processes_make_the_same_store(tmp_path):
  root = make(tmp_path / 'raw')
  prepare_store('folder', root, tmp_path / 'a', **SMALL)
  prepare_store('folder', root, tmp_path / 'b', **{**SMALL, 'workers': 2})
  assert contents(tmp_path / 'a') == contents(tmp_path / 'b') and len(contents(tmp_path / 'a')) == 21


def test_a_second_run_reads_nothing_again_but_changed_scans_and_options(tmp_path, monkeypatch):
  root = make(tmp_path / 'raw')
  first = prepare_store('folder', root, tmp_path / 's', **SMALL)
  load, loaded = load_case.load_and_validate, []
  monkeypatch.setattr(
    load_case, 'load_and_validate', lambda case, *a, **k: loaded.append(case.id) or load(case, *a, **k)
  )
  assert prepare_store('folder', root, tmp_path / 's', **SMALL) == first and not loaded
  volumes.write_image(root / 'images' / 'c2.nii.gz', scan(22), geometry(axes='LAS'))
  prepare_store('folder', root, tmp_path / 's', verify=False, **SMALL)
  assert loaded == ['c2']
  linear = prepare_store('folder', root, tmp_path / 's', order='linear', **SMALL)
  assert len(loaded) == 5 and linear['options_hash'] != first['options_hash']


def test_a_store_of_an_older_format_is_refused_and_prepared_again(tmp_path, monkeypatch):
  root = make(tmp_path / 'raw', n=2)
  prepare_store('folder', root, tmp_path / 'new', **SMALL)
  with monkeypatch.context() as m:
    m.setattr(store, 'FORMAT', 1)
    prepare_store('folder', root, tmp_path / 's', **SMALL)
  for read in (store.read_index, lambda folder: prepare.differences(folder, StoreOptions('folder', size=(32, 32)))):
    with pytest.raises(InputError, match='is of format 1, not 5. Run --mode=prepare'):
      read(tmp_path / 's')
  prepare_store('folder', root, tmp_path / 's', **SMALL)
  assert contents(tmp_path / 's') == contents(tmp_path / 'new')


def test_volumes_of_one_size(tmp_path):
  root = make(tmp_path / 'raw', n=2)
  index = prepare_store('folder', root, tmp_path / 's', size=(8, 24, 24), progress=False, workers=0)
  assert index['options']['size'] == [8, 24, 24]
  assert store.read_case(tmp_path / 's', 'c0').arrays['image'].shape == (8, 24, 24)


def test_differences_name_the_option(tmp_path):
  root = make(tmp_path / 'raw')
  prepare_store('folder', root, tmp_path / 's', **SMALL)
  same = StoreOptions('folder', size=(32, 32))
  assert prepare.differences(tmp_path / 's', same, root) == {} == prepare.differences(tmp_path / 's', same)
  linear = StoreOptions('folder', size=(32, 32), order='linear')
  assert prepare.differences(tmp_path / 's', linear, root) == {'order': (3, 1)}
  assert set(prepare.differences(tmp_path / 's', StoreOptions('chaos_ct', size=(9, 9)))) == {'dataset', 'size'}
  describe(root, labels={'background': 0, 'liver': 1, 'kidney': 7})
  assert 'organs' in prepare.differences(tmp_path / 's', same, root)


@pytest.mark.parametrize(
  'labels, key',
  [
    ({'background': 0, 'liver': 1, 'spleen': 7, 'ignore': 9}, 'unlabelled_id'),
    ({'background': 0, 'liver': 1, 'spleen': 7, 'both': [1, 7]}, 'regions'),
  ],
)
def test_what_a_description_gains_or_loses_makes_another_store(tmp_path, labels, key):
  root, same = make(tmp_path / 'raw'), StoreOptions('folder', size=(32, 32))
  prepare_store('folder', root, tmp_path / 'without', **SMALL)
  describe(root, labels=labels)
  prepare_store('folder', root, tmp_path / 'with', **SMALL)
  assert prepare.differences(tmp_path / 'with', same, root) == {}
  assert set(prepare.differences(tmp_path / 'without', same, root)) == {key}
  describe(root)
  assert set(prepare.differences(tmp_path / 'with', same, root)) == {key}


def test_crop_linear_percentiles_and_a_subset(tmp_path):
  root = make(tmp_path / 'raw', channel_names={'0': 'MRI'})
  index, selection = prepare_and_select(
    'folder',
    root,
    tmp_path / 's',
    fit='crop_pad',
    order='linear',
    cases=['c3', 'c1'],
    spacing_mm=(None, None, None),
    fractions=(1, 1, 0),
    **SMALL,
  )
  assert selection.window == 'percentile' and sorted(index['cases']) == ['c1', 'c3']
  case = store.read_case(tmp_path / 's', 'c1')
  np.testing.assert_array_equal(case.arrays['image'], scan(1)[:, 4:36, 8:40])
  low, high = selection.windows['c1']
  assert scan(1).min() < low < high < scan(1).max()
  assert len(prepare_store('folder', root, tmp_path / 't', cases=2, **SMALL)['cases']) == 2


def test_other_labels_become_background(tmp_path):
  root = make(tmp_path / 'raw', labels={'background': 0, 'spleen': 7})
  with pytest.raises(InputErrors, match=r'ids that are unknown to my data: 1 \('):
    prepare_store('folder', root, tmp_path / 's', **{**SMALL, 'workers': 1})
  describe(root, labels={'background': 0, 'spleen': 7}, other_labels='background')
  index = prepare_store('folder', root, tmp_path / 's', **SMALL)
  assert index['labels'] == {'spleen': 1}
  np.testing.assert_array_equal(store.read_case(tmp_path / 's', 'c0').arrays['native_label'], label_map(0) == 7)


def test_explicit_split_and_unlisted_cases(tmp_path):
  root = make(tmp_path / 'raw', split={'train': ['c0', 'c3'], 'test': ['c1']}, numTraining=9)
  index, selection = prepare_and_select('folder', root, tmp_path / 's', **SMALL)
  assert selection.splits == {'train': ['c0', 'c3'], 'val': [], 'test': ['c1']}
  assert list(selection.excluded) == ['c2'] and 'c2' not in index['cases']
  assert any('no val part' in n for n in selection.notes) and any('numTraining 9' in n for n in selection.notes)


def test_oddities_are_noted(tmp_path):
  root = make(tmp_path / 'raw', labels={'background': 0, 'liver': 1, 'spleen': 7, 'pancreas': 8})
  volumes.write_image(root / 'images' / 'c0.nii.gz', scan(0) + 3000, geometry())
  notes = prepare_and_select('folder', root, tmp_path / 's', **SMALL)[1].notes
  assert 'c0: the scan has no value below 0: are its intensities HU?' in notes
  assert 'pancreas is in no training case' in notes


def test_defective_cases_of_abdomenct1k(tmp_path):
  for n, seed in (('00001', 1), ('00002', 2), ('00219', 3)):
    for folder, suffix, write, array in (
      ('img', '_0000', volumes.write_image, scan(seed)),
      ('Mask', '', volumes.write_label, label_map(seed) % 4),
    ):
      (tmp_path / 'raw' / folder).mkdir(parents=True, exist_ok=True)
      write(tmp_path / 'raw' / folder / f'Case_{n}{suffix}.nii.gz', array, geometry())
  index, selection = prepare_and_select('abdomenct1k', tmp_path / 'raw', tmp_path / 's', **SMALL)
  assert sorted(index['cases']) == ['Case_00001', 'Case_00002']
  assert selection.excluded == {'Case_00219': 'known defect: it has no spleen'}
  index, selection = prepare_and_select('abdomenct1k', tmp_path / 'raw', tmp_path / 't', keep_defective=True, **SMALL)
  assert len(index['cases']) == 3 and 'Case_00219 is used although it has no spleen' in selection.notes


def test_transunet_folders(tmp_path, monkeypatch):
  monkeypatch.setattr('afw_jax.data.sets.challenge_layouts.TRANSUNET_TRAIN_SLICES', {})
  image, label = np.random.default_rng(0).random((2, 3, 64, 64), np.float32), np.zeros((2, 3, 64, 64), np.float32)
  label[:, :, 10:30, 20:50], label[:, :, 40:50, 5:20] = 5, 7
  (tmp_path / 'raw' / 'train_npz').mkdir(parents=True)
  (tmp_path / 'raw' / 'test_vol_h5').mkdir()
  for z in range(3):
    np.savez(tmp_path / 'raw' / 'train_npz' / f'case0005_slice{z:03d}.npz', image=image[0, z], label=label[0, z])
  with h5py.File(tmp_path / 'raw' / 'test_vol_h5' / 'case0001.npy.h5', 'w') as f:
    f['image'], f['label'] = image[1], label[1]
  _, selection = prepare_and_select('synapse', tmp_path / 'raw', tmp_path / 's', **SMALL)
  assert selection.splits == {'train': ['case0005'], 'val': [], 'test': ['case0001']}
  assert selection.window == (0, 1)
  case = store.read_case(tmp_path / 's', 'case0005')
  assert case.arrays['image'].dtype == np.float32 and case.meta['voxels']['liver'] == 3 * 600
  expected = np.stack([scipy.ndimage.zoom(p, 0.5, order=3) for p in image[0]])
  assert any(
    np.allclose(np.rot90(e, k, (1, 2)), case.arrays['image'], atol=1e-5)
    for e in (expected, expected.transpose(0, 2, 1))
    for k in range(4)
  )
  with pytest.raises(InputErrors, match='has no voxel size'):
    prepare_store('synapse', tmp_path / 'raw', tmp_path / 't', fit='crop_pad', **SMALL)
