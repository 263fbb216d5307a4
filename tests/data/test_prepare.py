import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import h5py
import numpy as np
import pytest
import scipy.ndimage

from afw_jax.data import checks, datasets, prepare, resample, store, volumes
from afw_jax.data.geometry import Geometry
from afw_jax.errors import InputError, InputErrors

SHAPE = (6, 40, 48)  # z, y, x
DESCRIPTION = {'channel_names': {'0': 'CT'}, 'labels': {'background': 0, 'liver': 1, 'spleen': 7}, 'file_ending': '.nii.gz'}
SMALL = dict(size=(32, 32), progress=False, workers=0)


def geometry(shape=SHAPE, spacing_mm=(3.0, 1.5, 1.25), axes='RAS', origin=(-20, 30, 5)):
  """Native axes R/L, A/P, S/I in this order."""
  z, y, x = spacing_mm
  signs = [1 if a in 'RAS' else -1 for a in axes]
  affine = np.eye(4)
  affine[:3, :3] = np.diag(np.array([x, y, z]) * signs)
  affine[:3, 3] = origin
  return Geometry(shape=shape[::-1], affine=tuple(map(tuple, affine)))


def scan(seed, shape=SHAPE):
  noise = np.random.default_rng(seed).normal(size=shape)
  return np.rint(60 + 900 * scipy.ndimage.gaussian_filter(noise, (0, 2, 2))).astype(np.int16)


def label_map(seed, shape=SHAPE):
  z, y, x = np.indices(shape)
  label = np.zeros(shape, np.uint8)
  label[(y - 15 - seed % 5) ** 2 + (x - 14) ** 2 < 90] = 1
  label[(y - 25) ** 2 + (x - 34) ** 2 < 40 + z] = 7
  return label


def make(root, n=4, shape=SHAPE, **changes):
  for k in ('images', 'labels'):
    (root / k).mkdir(parents=True, exist_ok=True)
  for i in range(n):
    g = geometry(shape, axes=('RAS', 'LPS', 'LAS', 'RPI')[i % 4])
    volumes.write_image(root / 'images' / f'c{i}.nii.gz', scan(i, shape), g)
    volumes.write_label(root / 'labels' / f'c{i}.nii.gz', label_map(i, shape), g)
  describe(root, **changes)
  return root


def describe(root, **changes):
  (root / 'dataset.json').write_text(json.dumps({**DESCRIPTION, **changes}))


def contents(root):
  """Every file of a store but the lock, with its bytes."""
  return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob('*')) if p.is_file() and p.name != '.lock'}


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
    meta = case.meta
    assert meta['window'] == [50, 350] and meta['native_shape'] == list(SHAPE) and meta['shape'] == [6, 32, 32]
    np.testing.assert_allclose(meta['native_spacing_mm'], (3, 1.5, 1.25))
    np.testing.assert_allclose(meta['spacing_mm'], (3, 1.5 * 39 / 31, 1.25 * 47 / 31))
    assert meta['voxels'] == {'liver': (truth == 1).sum(), 'spleen': (truth == 2).sum()} == index['cases'][f'c{i}']['voxels']
    assert meta['options_hash'] == index['options_hash']
    assert Geometry.from_json(meta['geometry']) == volumes.read_image(root / 'images' / f'c{i}.nii.gz').geometry
    plan = resample.Plan.from_json(meta['plan'])
    back = resample.from_working(np.eye(3)[label], plan).argmax(-1)
    assert (back == truth).mean() > 0.97
  assert not (tmp_path / 's' / '.staging').exists()


def test_processes_make_the_same_store(tmp_path):
  root = make(tmp_path / 'raw')
  prepare.prepare('folder', root, tmp_path / 'a', **SMALL)
  prepare.prepare('folder', root, tmp_path / 'b', **{**SMALL, 'workers': 2})
  assert contents(tmp_path / 'a') == contents(tmp_path / 'b') and len(contents(tmp_path / 'a')) == 17


def test_a_second_run_reads_nothing_again_and_changed_choices_do(tmp_path, monkeypatch):
  root = make(tmp_path / 'raw')
  first = prepare.prepare('folder', root, tmp_path / 's', **SMALL)
  read, reads = checks.read_checked, []
  monkeypatch.setattr(checks, 'read_checked', lambda case, spec: reads.append(case.id) or read(case, spec))
  assert prepare.prepare('folder', root, tmp_path / 's', **SMALL) == first and not reads
  assert prepare.prepare('folder', root, tmp_path / 's', fractions=(1, 1, 0), **SMALL)['splits'] != first['splits'] and not reads
  volumes.write_image(root / 'images' / 'c2.nii.gz', scan(22), geometry(axes='LAS'))
  prepare.prepare('folder', root, tmp_path / 's', **SMALL)
  assert reads == ['c2']
  wide = prepare.prepare('folder', root, tmp_path / 's', window='transunet', **SMALL)
  assert len(reads) == 5 and wide['options_hash'] != first['options_hash']
  assert store.read_case(tmp_path / 's', 'c1').meta['window'] == [-125, 275]


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
  index = prepare.prepare('folder', root, tmp_path / 's', fit='crop_pad', order='linear', cases=['c3', 'c1'],
                          spacing_mm=(None, None, None), fractions=(1, 1, 0), **SMALL)
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
  assert 'ids that my data does not know: 1 (' in problems_of('folder', root, tmp_path / 's')[0]
  describe(root, labels={'background': 0, 'spleen': 7}, other_labels='background')
  index = prepare.prepare('folder', root, tmp_path / 's', **SMALL)
  assert index['labels'] == {'spleen': 1}
  np.testing.assert_array_equal(store.read_case(tmp_path / 's', 'c0').arrays['native_label'], label_map(0) == 7)


def test_every_problem_is_told_at_once_and_good_cases_are_kept(tmp_path, monkeypatch):
  root = make(tmp_path / 'raw', n=7)
  write = lambda i, array, **kw: volumes.write_label(root / 'labels' / f'c{i}.nii.gz', array, geometry(array.shape, **kw))
  write(0, label_map(0)[1:])                                       # a slice is missing
  write(1, np.where(label_map(1) == 7, 9, label_map(1)), axes='LPS')  # an id nobody named
  write(2, np.zeros(SHAPE, np.uint8), axes='LAS')                  # nothing in it
  write(3, label_map(3), axes='RPI', origin=(0, 0, 0))             # lies elsewhere
  packed = (root / 'images' / 'c4.nii.gz').read_bytes()
  (root / 'images' / 'c4.nii.gz').write_bytes(packed[:-50])        # cut short
  found = problems_of('folder', root, tmp_path / 's')
  assert len(found) == 5
  for name, word in (('labels/c0', 'shape'), ('labels/c1', '9 ('), ('labels/c2', 'empty'), ('labels/c3', 'affine'),
                     ('images/c4', '')):
    assert any(name in p and word in p for p in found), (name, word)
  with pytest.raises(InputError):
    store.read_index(tmp_path / 's')
  make(root, n=5)
  read, reads = checks.read_checked, []
  monkeypatch.setattr(checks, 'read_checked', lambda case, spec: reads.append(case.id) or read(case, spec))
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
  found, = problems_of('folder', root, tmp_path / 's')
  assert 'd.nii.gz: is the same scan as' in found and 'c1.nii.gz' in found
  # not compressed, the other way round, and in another part: still the same voxels
  for kind, write, array in (('images', volumes.write_image, scan(1)), ('labels', volumes.write_label, label_map(1))):
    (root / kind / 'd.nii.gz').unlink()
    write(root / kind / 'd.nii', array, geometry(axes='RPI'))
  describe(root, split={'train': ['c0', 'c1', 'c2'], 'val': ['c3'], 'test': ['d']})
  found, = problems_of('folder', root, tmp_path / 't')
  assert 'c1 in train, d in test' in found


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
    for folder, suffix, write, array in (('img', '_0000', volumes.write_image, scan(seed)),
                                         ('Mask', '', volumes.write_label, label_map(seed) % 4)):
      (tmp_path / 'raw' / folder).mkdir(parents=True, exist_ok=True)
      write(tmp_path / 'raw' / folder / f'Case_{n}{suffix}.nii.gz', array, geometry())
  index = prepare.prepare('abdomenct1k', tmp_path / 'raw', tmp_path / 's', **SMALL)
  assert sorted(index['cases']) == ['Case_00001', 'Case_00002']
  assert index['excluded'] == {'Case_00219': 'known defect: it has no spleen'}
  index = prepare.prepare('abdomenct1k', tmp_path / 'raw', tmp_path / 't', keep_defective=True, **SMALL)
  assert len(index['cases']) == 3 and 'Case_00219 is used although it has no spleen' in index['notes']


def test_transunet_folders(tmp_path, monkeypatch):
  monkeypatch.setattr('afw_jax.data.layouts.TRANSUNET_TRAIN_SLICES', {})
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
  assert any(np.allclose(np.rot90(e, k, (1, 2)), case.arrays['image'], atol=1e-5)
             for e in (expected, expected.transpose(0, 2, 1)) for k in range(4))
  assert 'carries no voxel size' in problems_of('synapse', tmp_path / 'raw', tmp_path / 't', fit='crop_pad')[0]


@pytest.mark.parametrize('fits', [dict(order=2), dict(order='cubik'), dict(window='papr'), dict(cases=0), dict(fit='x'),
                                  dict(size=(0, 1)), dict(fractions=(0, 1, 0)), dict(spacing_mm=(1, 1))])
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


SCRIPT = """
import sys, time, resource
from afw_jax.data import checks, prepare
root, out, workers, mode = sys.argv[1:]
if mode == 'slow':
  read = checks.read_checked
  checks.read_checked = lambda *a: time.sleep(0.15) or read(*a)
if mode == 'no space':
  resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
prepare.prepare('folder', root, out, size=(32, 32), workers=int(workers), progress=mode == 'bar')
"""


def run(tmp_path, *args):
  (tmp_path / 'script.py').write_text(textwrap.dedent(SCRIPT))  # on purpose without a guard: workers must not run it
  return subprocess.Popen([sys.executable, str(tmp_path / 'script.py'), *map(str, args)], stderr=subprocess.PIPE, text=True,
                          env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})


def staged(out):
  return len(list(out.glob('.staging/cases/[!.]*')))


def wait_until(what, seconds=60):
  end = time.monotonic() + seconds
  while not what():
    assert time.monotonic() < end, 'waited in vain'
    time.sleep(0.005)


def test_a_killed_prepare_goes_on_and_ends_the_same(tmp_path):
  root = make(tmp_path / 'raw', n=8)
  prepare.prepare('folder', root, tmp_path / 'whole', **SMALL)
  for kill in (1, 4):
    process = run(tmp_path, root, tmp_path / 's', 0, 'slow')
    wait_until(lambda kill=kill: staged(tmp_path / 's') >= kill)
    process.kill()
    process.wait()
    with pytest.raises(InputError, match='did not finish'):
      store.read_index(tmp_path / 's')
  (tmp_path / 's' / '.staging' / 'cases' / '.tmp-c7-1').mkdir()  # what a kill in the middle of a write leaves
  done = {p: p.stat().st_mtime_ns for p in tmp_path.glob('s/.staging/cases/c*/image.npy')}
  assert 4 <= len(done) < 8
  prepare.prepare('folder', root, tmp_path / 's', **SMALL)
  assert contents(tmp_path / 's') == contents(tmp_path / 'whole')
  for path, when in done.items():
    assert (tmp_path / 's' / 'cases' / path.parent.name / 'image.npy').stat().st_mtime_ns == when


@pytest.mark.skipif(not os.path.exists('/proc/self/task'), reason='finds child processes in /proc')
def test_workers_end_with_a_killed_parent(tmp_path):
  root = make(tmp_path / 'raw', n=6, shape=(60, 128, 128))
  process = run(tmp_path, root, tmp_path / 's', 1, 'pool')
  wait_until(lambda: staged(tmp_path / 's') >= 1)
  pids = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
  assert pids
  process.send_signal(signal.SIGKILL)
  process.wait()
  wait_until(lambda: not any(_alive(pid) for pid in pids), 20)
  prepare.prepare('folder', root, tmp_path / 's', **SMALL)
  assert len(store.read_index(tmp_path / 's')['cases']) == 6


def _alive(pid):
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().split(') ')[1][0] != 'Z'
  except FileNotFoundError:
    return False


def test_a_full_disk_is_told_in_one_line(tmp_path):
  root = make(tmp_path / 'raw', n=3)
  process = run(tmp_path, root, tmp_path / 's', 0, 'no space')
  error = process.communicate()[1].strip().splitlines()
  assert process.returncode != 0
  assert 'InputError' in error[-1] and str(tmp_path / 's') in error[-1] and 'cannot be written' in error[-1]
  assert not [p for p in (tmp_path / 's').rglob('*') if p.is_file() and p.name != '.lock']


def test_no_space_in_a_worker_stops_the_run(tmp_path, monkeypatch):
  root = make(tmp_path / 'raw', n=3)
  blocked = tmp_path / 's' / '.staging'
  blocked.parent.mkdir()
  blocked.touch()  # a file where a folder is needed: refused to root too
  with pytest.raises(InputError, match='cannot be written'):
    prepare.prepare('folder', root, tmp_path / 's', **{**SMALL, 'workers': 1})


def test_a_bar_with_the_time_left(tmp_path):
  process = run(tmp_path, make(tmp_path / 'raw', n=2), tmp_path / 's', 0, 'bar')
  error = process.communicate()[1]
  assert process.returncode == 0 and '2/2' in error and 'prepare' in error and '<' in error


# --- real scans ------------------------------------------------------------------------------------------------------

@pytest.fixture
def real():
  if 'AFW_REAL_DATA' not in os.environ:
    pytest.skip('AFW_REAL_DATA does not name a folder of real scans')
  return os.path.abspath(os.environ['AFW_REAL_DATA'])


def test_real_chaos_mr(tmp_path, real):
  index = prepare.prepare('chaos_mr_t2', f'{real}/chaos_mr_t2', tmp_path / 's', cases=3, workers=2, progress=False)
  assert index['organs'] == ['liver', 'right_kidney', 'left_kidney', 'spleen'] and len(index['cases']) == 3
  for i, summary in index['cases'].items():
    case = store.read_case(tmp_path / 's', i, verify=True)
    assert case.arrays['image'].shape[1:] == (224, 224) and case.arrays['image'].dtype == np.int16
    assert summary['voxels']['liver'] > 50_000 and all(summary['voxels'].values())
    raw = volumes.read_label(f'{real}/chaos_mr_t2/labels/{i}.nii.gz').array
    np.testing.assert_array_equal(case.arrays['native_label'], raw)
    native, working = np.prod(summary['native_spacing_mm']), np.prod(summary['spacing_mm'])
    for organ, n in case.meta['working_voxels'].items():
      assert abs(n * working / (summary['voxels'][organ] * native) - 1) < 0.03
    low, high = summary['window']
    organs = case.arrays['image'][case.arrays['label'] > 0]
    assert 0 <= low < np.percentile(organs, 1) and np.percentile(organs, 99) <= high


def test_real_chaos_ct(tmp_path, real):
  index = prepare.prepare('chaos_ct', f'{real}/chaos_ct', tmp_path / 's', order='linear', **SMALL)
  assert index['cases']['case_01']['voxels'] == {'liver': 1_342_595}
  native = store.read_case(tmp_path / 's', 'case_01').arrays['native_label']
  image = volumes.read_image(f'{real}/chaos_ct/1/DICOM_anon').array
  assert abs(image[native == 1].mean() - 141) < 1


def test_real_totalsegmentator_ct(tmp_path, real):
  for kind, name in (('images', 'example_ct_sm'), ('labels', 'example_seg')):
    (tmp_path / kind).mkdir()
    shutil.copy(f'{real}/totalsegmentator/{name}.nii.gz', tmp_path / kind / 's0.nii.gz')
  organs = dict(spleen=1, right_kidney=2, left_kidney=3, gallbladder=4, liver=5, stomach=6, pancreas=7, aorta=52)
  describe(tmp_path, labels={'background': 0, **organs}, other_labels='background')
  index = prepare.prepare('folder', tmp_path, tmp_path / 's', progress=False, workers=0)
  assert index['output_ids'] == organs and index['splits'] == {'train': ['s0'], 'val': [], 'test': []}
  raw = volumes.read_label(tmp_path / 'labels' / 's0.nii.gz').array
  case = store.read_case(tmp_path / 's', 's0')
  for organ, raw_id in organs.items():
    assert index['cases']['s0']['voxels'][organ] == (raw == raw_id).sum() > 0
    np.testing.assert_array_equal(case.arrays['native_label'] == index['labels'][organ], raw == raw_id)
  assert case.arrays['image'].shape == (30, 224, 224) and datasets.spec('folder', str(tmp_path)).window_hu == (50, 350)
