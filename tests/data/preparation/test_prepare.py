import shutil

import h5py
import numpy as np
import pytest
import scipy.ndimage
from restore_reference import from_working
from tiny_dataset import SHAPE, SMALL, contents, describe, geometry, label_map, make, scan

from afw_jax.data import resample, store
from afw_jax.data.formats import volumes
from afw_jax.data.formats.geometry import Geometry
from afw_jax.data.preparation import load_case, prepare
from afw_jax.errors import InputError, InputErrors


def problems_of(*args, **kwargs):
  with pytest.raises((InputError, InputErrors)) as e:
    prepare.prepare(*args, **{**SMALL, **kwargs})
  assert not (args[2] / 'dataset.json').exists() and not (args[2] / 'cases').exists()
  found = e.value.errors if isinstance(e.value, InputErrors) else [e.value]
  assert all('\n' not in str(f) for f in found)
  return [str(f) for f in found]


def test_what_a_store_holds(tmp_path):
  root = make(tmp_path / 'raw')
  index = prepare.prepare('folder', root, tmp_path / 's', **SMALL)
  assert index == store.read_index(tmp_path / 's')
  assert (index['modality'], index['organs'], index['labels']) == ('CT', ['liver', 'spleen'], {'liver': 1, 'spleen': 2})
  assert index['raw_ids'] == {'liver': [1], 'spleen': [7]} and index['output_ids'] == {'liver': 1, 'spleen': 7}
  assert index['window'] == [50, 350] and len(index['splits']['train']) == 3 and len(index['splits']['val']) == 1
  assert index['splits']['test'] == [] and any('no test part' in note for note in index['notes'])
  assert sorted(index['cases']) == ['c0', 'c1', 'c2', 'c3'] and index['excluded'] == {}
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
    assert meta['window'] == [50, 350] and meta['native_shape'] == list(SHAPE) and meta['shape'] == [6, 32, 32]
    np.testing.assert_allclose(meta['native_spacing_mm'], (3, 1.5, 1.25))
    np.testing.assert_allclose(meta['spacing_mm'], (3, 1.5 * 39 / 31, 1.25 * 47 / 31))
    assert meta['voxels'] == {'liver': (truth == 1).sum(), 'spleen': (truth == 2).sum()}
    assert meta['voxels'] == index['cases'][f'c{i}']['voxels']
    assert meta['options_hash'] == index['options_hash']
    assert Geometry.from_json(meta['geometry']) == volumes.read_image(root / 'images' / f'c{i}.nii.gz').geometry
    plan = resample.Resampling.from_json(meta['plan'])
    back = from_working(np.eye(3)[label], plan).argmax(-1)
    assert (back == truth).mean() > 0.97
  assert not (tmp_path / 's' / '.staging').exists()


def test_processes_make_the_same_store(tmp_path):
  root = make(tmp_path / 'raw')
  prepare.prepare('folder', root, tmp_path / 'a', **SMALL)
  prepare.prepare('folder', root, tmp_path / 'b', **{**SMALL, 'workers': 2})
  assert contents(tmp_path / 'a') == contents(tmp_path / 'b') and len(contents(tmp_path / 'a')) == 21


def test_a_second_run_reads_nothing_again_and_changed_choices_do(tmp_path, monkeypatch):
  root = make(tmp_path / 'raw')
  first = prepare.prepare('folder', root, tmp_path / 's', **SMALL)
  read, reads = load_case.load_and_validate, []
  monkeypatch.setattr(load_case, 'load_and_validate', lambda case, spec: reads.append(case.id) or read(case, spec))
  assert prepare.prepare('folder', root, tmp_path / 's', **SMALL) == first and not reads
  dealt = prepare.prepare('folder', root, tmp_path / 's', fractions=(1, 1, 0), **SMALL)['splits']
  assert dealt != first['splits'] and not reads
  volumes.write_image(root / 'images' / 'c2.nii.gz', scan(22), geometry(axes='LAS'))
  prepare.prepare('folder', root, tmp_path / 's', **SMALL)
  assert reads == ['c2']
  wide = prepare.prepare('folder', root, tmp_path / 's', window='transunet', **SMALL)
  assert len(reads) == 5 and wide['options_hash'] != first['options_hash']
  assert store.read_case(tmp_path / 's', 'c1').meta['window'] == [-125, 275]


def test_cases_of_an_older_version_are_made_again(tmp_path):
  root = make(tmp_path / 'raw', n=2)
  index = prepare.prepare('folder', root, tmp_path / 's', **SMALL)
  before = contents(tmp_path / 's')
  case = store.read_case(tmp_path / 's', 'c1')
  arrays = {name: np.array(array) for name, array in case.arrays.items() if name != 'foreground'}
  store.write_case(tmp_path / 's', 'c1', arrays, {k: v for k, v in case.meta.items() if k != 'meta_sha256'})
  assert prepare.prepare('folder', root, tmp_path / 's', **SMALL) == index and contents(tmp_path / 's') == before


def test_volumes_of_one_size(tmp_path):
  root = make(tmp_path / 'raw', n=2)
  index = prepare.prepare('folder', root, tmp_path / 's', size=(8, 24, 24), progress=False, workers=0)
  assert index['options']['size'] == [8, 24, 24]
  assert store.read_case(tmp_path / 's', 'c0').arrays['image'].shape == (8, 24, 24)


def test_differences_name_the_choice(tmp_path):
  root = make(tmp_path / 'raw')
  prepare.prepare('folder', root, tmp_path / 's', **SMALL)
  same = dict(size=(32, 32))
  assert prepare.differences(tmp_path / 's', 'folder', root, **same) == {}
  assert prepare.differences(tmp_path / 's', 'folder', None, **same) == {}
  assert prepare.differences(tmp_path / 's', 'folder', root, order='linear', **same) == {'order': (3, 1)}
  assert set(prepare.differences(tmp_path / 's', 'chaos_ct', None, size=(9, 9))) == {'dataset', 'size'}
  describe(root, labels={'background': 0, 'liver': 1, 'kidney': 7})
  assert 'organs' in prepare.differences(tmp_path / 's', 'folder', root, **same)


def test_crop_linear_percentiles_and_a_subset(tmp_path):
  root = make(tmp_path / 'raw', channel_names={'0': 'MRI'})
  index = prepare.prepare(
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
  assert index['window'] == 'percentile' and sorted(index['cases']) == ['c1', 'c3']
  case = store.read_case(tmp_path / 's', 'c1')
  np.testing.assert_array_equal(case.arrays['image'], scan(1)[:, 4:36, 8:40])
  low, high = case.meta['window']
  assert scan(1).min() < low < high < scan(1).max()
  assert len(prepare.prepare('folder', root, tmp_path / 't', cases=2, **SMALL)['cases']) == 2
  assert any('c1' in str(p) for p in problems_of('folder', root, tmp_path / 'u', cases=['c9']))
  problems_of('folder', root, tmp_path / 'u', cases=9)


def test_other_labels_become_background(tmp_path):
  root = make(tmp_path / 'raw', labels={'background': 0, 'spleen': 7})
  assert 'ids that are unknown to my data: 1 (' in problems_of('folder', root, tmp_path / 's', workers=1)[0]
  describe(root, labels={'background': 0, 'spleen': 7}, other_labels='background')
  index = prepare.prepare('folder', root, tmp_path / 's', **SMALL)
  assert index['labels'] == {'spleen': 1}
  np.testing.assert_array_equal(store.read_case(tmp_path / 's', 'c0').arrays['native_label'], label_map(0) == 7)


def test_every_problem_is_told_at_once_and_good_cases_are_kept(tmp_path, monkeypatch):
  root = make(tmp_path / 'raw', n=7)
  write = lambda i, array, **kw: volumes.write_label(
    root / 'labels' / f'c{i}.nii.gz', array, geometry(array.shape, **kw)
  )
  write(0, label_map(0)[1:])  # a slice is missing
  write(1, np.where(label_map(1) == 7, 9, label_map(1)), axes='LPS')  # an id nobody named
  write(2, np.zeros(SHAPE, np.uint8), axes='LAS')  # nothing in it
  write(3, label_map(3), axes='RPI', origin=(0, 0, 0))  # lies elsewhere
  packed = (root / 'images' / 'c4.nii.gz').read_bytes()
  (root / 'images' / 'c4.nii.gz').write_bytes(packed[:-50])  # cut short
  found = problems_of('folder', root, tmp_path / 's')
  assert len(found) == 5
  for name, word in (
    ('labels/c0', 'shape'),
    ('labels/c1', '9 ('),
    ('labels/c2', 'empty'),
    ('labels/c3', 'affine'),
    ('images/c4', ''),
  ):
    assert any(name in p and word in p for p in found), (name, word)
  with pytest.raises(InputError):
    store.read_index(tmp_path / 's')
  make(root, n=5)
  read, reads = load_case.load_and_validate, []
  monkeypatch.setattr(load_case, 'load_and_validate', lambda case, spec: reads.append(case.id) or read(case, spec))
  prepare.prepare('folder', root, tmp_path / 's', **SMALL)
  assert sorted(reads) == ['c0', 'c1', 'c2', 'c3', 'c4']  # c5 and c6 were fine


def test_a_problem_leaves_an_older_store_as_it_was(tmp_path):
  root = make(tmp_path / 'raw')
  prepare.prepare('folder', root, tmp_path / 's', **SMALL)
  before = contents(tmp_path / 's')
  volumes.write_label(root / 'labels' / 'c1.nii.gz', np.zeros(SHAPE, np.uint8), geometry(axes='LPS'))
  with pytest.raises(InputError, match='c1.nii.gz: is empty'):
    prepare.prepare('folder', root, tmp_path / 's', order='linear', **SMALL)
  after = contents(tmp_path / 's')
  assert before == {k: v for k, v in after.items() if not k.startswith('.staging')}


def test_the_same_scan_twice(tmp_path):
  root = make(tmp_path / 'raw')
  shutil.copy(root / 'images' / 'c1.nii.gz', root / 'images' / 'd.nii.gz')
  shutil.copy(root / 'labels' / 'c1.nii.gz', root / 'labels' / 'd.nii.gz')
  (found,) = problems_of('folder', root, tmp_path / 's')
  assert 'd.nii.gz: is the same scan as' in found and 'c1.nii.gz' in found
  # not compressed, the other way round, and in another part: still the same voxels
  for kind, write, array in (('images', volumes.write_image, scan(1)), ('labels', volumes.write_label, label_map(1))):
    (root / kind / 'd.nii.gz').unlink()
    write(root / kind / 'd.nii', array, geometry(axes='RPI'))
  describe(root, split={'train': ['c0', 'c1', 'c2'], 'val': ['c3'], 'test': ['d']})
  (found,) = problems_of('folder', root, tmp_path / 't')
  assert 'c1 in train, d in test' in found


def test_a_set_without_labels_makes_no_store(tmp_path):
  root = make(tmp_path / 'raw', n=1)
  (root / 'images').rename(root / 'imagesTs')
  for folder in ('imagesTr', 'labelsTr'):
    (root / folder).mkdir()
  assert 'no usable labelled case' in problems_of('folder', root, tmp_path / 's')[0]


def test_explicit_split_and_unlisted_cases(tmp_path):
  root = make(tmp_path / 'raw', split={'train': ['c0', 'c3'], 'test': ['c1']}, numTraining=9)
  index = prepare.prepare('folder', root, tmp_path / 's', **SMALL)
  assert index['splits'] == {'train': ['c0', 'c3'], 'val': [], 'test': ['c1']}
  assert list(index['excluded']) == ['c2'] and 'c2' not in index['cases']
  assert any('no val part' in n for n in index['notes']) and any('numTraining 9' in n for n in index['notes'])


def test_oddities_are_noted(tmp_path):
  root = make(tmp_path / 'raw', labels={'background': 0, 'liver': 1, 'spleen': 7, 'pancreas': 8})
  volumes.write_image(root / 'images' / 'c0.nii.gz', scan(0) + 3000, geometry())
  notes = prepare.prepare('folder', root, tmp_path / 's', **SMALL)['notes']
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
  index = prepare.prepare('abdomenct1k', tmp_path / 'raw', tmp_path / 's', **SMALL)
  assert sorted(index['cases']) == ['Case_00001', 'Case_00002']
  assert index['excluded'] == {'Case_00219': 'known defect: it has no spleen'}
  index = prepare.prepare('abdomenct1k', tmp_path / 'raw', tmp_path / 't', keep_defective=True, **SMALL)
  assert len(index['cases']) == 3 and 'Case_00219 is used although it has no spleen' in index['notes']


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
  index = prepare.prepare('synapse', tmp_path / 'raw', tmp_path / 's', **SMALL)
  assert index['splits'] == {'train': ['case0005'], 'val': [], 'test': ['case0001']} and index['window'] == [0, 1]
  case = store.read_case(tmp_path / 's', 'case0005')
  assert case.arrays['image'].dtype == np.float32 and case.meta['voxels']['liver'] == 3 * 600
  expected = np.stack([scipy.ndimage.zoom(p, 0.5, order=3) for p in image[0]])
  assert any(
    np.allclose(np.rot90(e, k, (1, 2)), case.arrays['image'], atol=1e-5)
    for e in (expected, expected.transpose(0, 2, 1))
    for k in range(4)
  )
  assert 'has no voxel size' in problems_of('synapse', tmp_path / 'raw', tmp_path / 't', fit='crop_pad')[0]


@pytest.mark.parametrize(
  'fits',
  [
    dict(order=2),
    dict(order='cubik'),
    dict(window='papr'),
    dict(cases=0),
    dict(fit='x'),
    dict(size=(0, 1)),
    dict(fractions=(0, 1, 0)),
    dict(spacing_mm=(1, 1)),
  ],
)
def test_senseless_choices(tmp_path, fits):
  problems_of('folder', make(tmp_path / 'raw', n=1), tmp_path / 's', **fits)


def test_paths_that_cannot_hold_a_store(tmp_path):
  root = make(tmp_path / 'raw', n=1)
  before = contents(root)
  with pytest.raises(InputError, match='not the index of a store'):
    prepare.prepare('folder', root, root, **SMALL)  # would overwrite the user's dataset.json
  assert contents(root) == before
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.tex').touch()
  assert 'holds other files' in problems_of('folder', root, tmp_path / 'mine')[0]
  (tmp_path / 'file').touch()
  with pytest.raises(InputError, match='file/store: cannot be written'):
    prepare.prepare('folder', root, tmp_path / 'file' / 'store', **SMALL)
  with pytest.raises(InputError, match='nowhere: no such folder'):
    prepare.prepare('chaos_ct', tmp_path / 'nowhere', tmp_path / 's', **SMALL)
  assert not (tmp_path / 's').exists()
