"""Random crops: where they lie, what fills them, that they are a function of their place, and what is read for them."""

import hashlib
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from afw_jax.data import crops, store
from afw_jax.data.crops import CropSource, foreground_voxels, read_crop
from afw_jax.data.pipeline import train_batches
from afw_jax.data.sets.spec import IGNORED
from afw_jax.errors import InputError

SHAPES = {'a': (9, 20, 15), 'b': (12, 14, 14), 'c': (4, 30, 9), 'd': (10, 16, 18), 'e': (8, 15, 16)}
IDS = list(SHAPES)
PATCH = (8, 12, 10)
WINDOWS = dict.fromkeys(IDS, (50.0, 350.0))


def put_case(folder, case_id, image, label):
  store.write_case(
    folder,
    case_id,
    {'image': image, 'label': label, 'native_label': label, 'foreground': foreground_voxels(label, case_id)},
    {},
  )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Every voxel holds its own number, and two organs lie in corners."""
  folder = tmp_path_factory.mktemp('store')
  for case_id, shape in SHAPES.items():
    label = np.zeros(shape, np.uint8)
    label[:2, :3, :2], label[-1, -1, -1] = 1, 7
    put_case(folder, case_id, np.arange(100, 100 + label.size, dtype=np.int16).reshape(shape), label)
  return str(folder)


def take(folder, count, *, source=None, **options):
  iterator = train_batches(source or CropSource(folder, IDS, WINDOWS, PATCH), **{'batch_size': 4, 'seed': 3, **options})
  batches = [next(iterator) for _ in range(count)]
  iterator.close()
  return batches


def assert_same(one, two):
  assert len(one) == len(two)
  for a, b in zip(one, two):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def draws(source, index, count):
  return [source.draw(index, np.random.default_rng(i)) for i in range(count)]


def test_foreground_voxels_are_voxels_of_every_organ():
  label = np.zeros((20, 40, 50), np.uint8)
  label[3:15, 5:30, 5:30], label[17, 2, 3:6], label[16:18, 30:, 40:] = 2, 5, 13
  found = foreground_voxels(label, 'case 1')
  assert found.dtype == np.int32 and [(found[:, 0] == c).sum() for c in (2, 5, 13)] == [500, 3, 200]
  np.testing.assert_array_equal(label[tuple(found[:, 1:].T)], found[:, 0])
  assert len(np.unique(found, axis=0)) == len(found)
  np.testing.assert_array_equal(found, foreground_voxels(label, 'case 1'))
  assert not np.array_equal(found, foreground_voxels(label, 'case 2'))
  middle = found[found[:, 0] == 2, 1:].mean(0)
  np.testing.assert_allclose(middle, (8.5, 17, 17), atol=1.5)  # drawn from all of the organ
  assert foreground_voxels(np.zeros((3, 4, 5), np.uint8), 'empty').shape == (0, 4)


@pytest.mark.parametrize(
  'start, size', [((0, 0, 0), (2, 3, 4)), ((1, 2, 3), (2, 2, 2)), ((-2, 1, -1), (7, 2, 9)), ((2, 2, 3), (4, 4, 4))]
)
def test_a_crop_is_cut_or_filled(start, size):
  array = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
  around = np.pad(array, 10, constant_values=-9)
  expected = around[tuple(slice(10 + s, 10 + s + n) for s, n in zip(start, size))]
  crop = read_crop(array, start, size, -9)
  np.testing.assert_array_equal(crop, expected)
  crop[:] = 0
  assert array.sum() == 60 * 59 // 2  # a copy


def test_crops_are_whole_pieces_of_their_case(folder):
  source = CropSource(folder, IDS, WINDOWS, PATCH, crops_per_case=2)
  assert [r[0] for r in source.records] == [i for i in IDS for _ in range(2)] and len(source) == 10
  for batch in take(folder, 10, source=source):
    assert batch['image'].shape == (4, *PATCH, 1) and batch['image'].dtype == np.int16
    assert batch['label'].shape == (4, *PATCH) and batch['label'].dtype == np.uint8
    assert batch['window'].shape == (4, 2) and batch['window'].dtype == np.float32 and batch['index'].dtype == np.int32
    for b in range(4):
      case = store.read_case(folder, source.records[batch['index'][b]][0])
      image, label, shape = batch['image'][b, ..., 0], batch['label'][b], case.arrays['image'].shape
      inside = image != 50  # the low end of the window fills the rest
      spare = [max(p - n, 0) for p, n in zip(PATCH, shape)]
      expected = np.zeros(PATCH, bool)
      expected[tuple(slice(s // 2, p - (s - s // 2)) for s, p in zip(spare, PATCH))] = True
      np.testing.assert_array_equal(inside, expected)
      np.testing.assert_array_equal(label[inside], case.arrays['label'].ravel()[image[inside] - 100])
      assert not label[~inside].any()
      z, y, x = np.unravel_index(image[inside] - 100, shape)
      for axis, at in enumerate((z, y, x)):
        assert np.ptp(at) + 1 == PATCH[axis] - spare[axis]
      assert (np.diff(image[inside]) > 0).all()


def test_all_places_and_only_those_are_drawn(folder):
  corners = {int(c['image'].min()) for c in draws(CropSource(folder, ['a'], WINDOWS, PATCH, foreground=0), 0, 800)}
  assert corners == {100 + (z * 20 + y) * 15 + x for z in range(2) for y in range(9) for x in range(6)}
  shares = [
    len(np.unique(c['image'])) for c in draws(CropSource(folder, ['c'], WINDOWS, (8, 40, 10), foreground=1), 0, 5)
  ]
  assert shares == [4 * 30 * 9 + 1] * 5  # smaller along every axis: the same crop each time


@pytest.mark.parametrize('share', [0.0, 1 / 3, 1.0])
def test_organs_are_met_as_often_as_asked_each_alike(tmp_path, share):
  label = np.zeros((10, 60, 60), np.uint8)
  label[2, 5:25, 5:25], label[7, 50, 50] = 1, 2  # one organ of 400 voxels, one of 1, never in one crop
  put_case(tmp_path, 'x', np.zeros(label.shape, np.int16), label)
  drawn = draws(CropSource(tmp_path, ['x'], {'x': (50, 350)}, (4, 6, 6), foreground=share), 0, 1500)
  met = np.array([[(c['label'] == k).any() for k in (1, 2)] for c in drawn]).mean(0)
  if share == 1:
    np.testing.assert_allclose(met, (0.5, 0.5), atol=0.05)
    places = {tuple(np.argwhere(c['label'] == 2)[0]) for c in drawn if (c['label'] == 2).any()}
    assert places == {(z, y, x) for z in range(1, 4) for y in range(6) for x in range(6)}  # z 7 of 10: not the first
  else:
    assert abs(met[1] - share / 2) < 0.04 and met[0] > share / 2 - 0.04 and met[0] < share / 2 + 0.15


def test_the_draw_follows_seed_and_place_only(folder):
  one, two, other = (take(folder, 6, seed=s) for s in (1, 1, 2))
  assert_same(one, two)
  assert not np.array_equal([b['image'] for b in one], [b['image'] for b in other])
  stream = [row.tobytes() for batch in take(folder, 40) for row in batch['image']]
  assert len(set(stream)) > 60  # the five cases are cropped anew in every epoch


@pytest.mark.parametrize('start', [0, 1, 4, 1000003])
def test_any_start_continues_the_same_stream(folder, start):
  assert_same(take(folder, 8, start_step=start)[3:], take(folder, 5, start_step=start + 3))


@pytest.mark.parametrize('world', [2, 4])
def test_ranks_cut_the_same_global_batches(folder, world):
  whole = take(folder, 5, start_step=5)
  parts = [take(folder, 5, start_step=5, rank=rank, world=world) for rank in range(world)]
  assert_same(whole, [{key: np.concatenate([part[k][key] for part in parts]) for key in whole[k]} for k in range(5)])


def test_worker_processes_change_nothing(folder):
  code = f"""
import hashlib, json
from afw_jax.data.crops import CropSource
from afw_jax.data.pipeline import train_batches
from afw_jax.data.sets.spec import IGNORED
if __name__ == '__main__':
  source = CropSource({folder!r}, {IDS!r}, {WINDOWS!r}, {PATCH!r})
  it = train_batches(source, batch_size=4, seed=3, num_workers=2, start_step=2)
  print(json.dumps([hashlib.sha256(next(it)['image'].tobytes()).hexdigest() for _ in range(6)]))
  it.close()
"""
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
  assert out.returncode == 0, out.stderr[-2000:]
  digest = hashlib.sha256
  assert json.loads(out.stdout) == [digest(b['image'].tobytes()).hexdigest() for b in take(folder, 6, start_step=2)]


def test_source_travels_whole_by_path(folder):
  source = CropSource(folder, IDS, WINDOWS, PATCH, foreground=0.5, crops_per_case=3)
  source.draw(0, np.random.default_rng(0))
  sent = pickle.dumps(source)
  assert len(sent) < 2000
  again = pickle.loads(sent)
  assert again.records == source.records and again.foreground == 0.5
  assert_same(draws(again, 7, 3), draws(source, 7, 3))


def test_a_window_below_what_the_dtype_holds_and_fractions(tmp_path):
  label = np.ones((2, 3, 3), np.uint8)
  put_case(tmp_path, 'whole', np.full((2, 3, 3), 7, np.int16), label)
  put_case(tmp_path, 'real', np.full((2, 3, 3), 0.5, np.float32), label)
  windows = {'whole': (-40000.5, 10), 'real': (0.25, 0.75)}
  source = CropSource(tmp_path, ['whole', 'real'], windows, (2, 3, 5))
  for i, (dark, value) in enumerate(((-32768, 7), (0.25, 0.5))):
    crop = source.draw(i, np.random.default_rng(0))
    assert crop['image'].dtype == np.float32 and set(np.unique(crop['image'])) == {dark, value}
  assert crops.darkest((12.7, 90), np.dtype(np.int16)) == 12  # shown as 0 too


READS = """
import sys, time, numpy as np
from afw_jax.data.crops import read_crop
volume = np.load(sys.argv[1], mmap_mode='r')
read_crop(volume[:8], (0, 0, 0), (2, 2, 2), 0)
resident = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096
before, start = resident(), time.perf_counter()
crop = read_crop(volume, (1000, 200, 300), (32, 32, 32), 0)
print(crop.shape == (32, 32, 32), resident() - before < 40e6, time.perf_counter() - start < 2)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='asks /proc for the memory')
def test_only_the_crop_is_read(tmp_path):
  path = tmp_path / 'huge.npy'
  np.lib.format.open_memmap(path, 'w+', np.int16, (2000, 512, 512)).flush()  # 1 GB, all holes: it takes no disk
  out = subprocess.run([sys.executable, '-c', READS, str(path)], capture_output=True, text=True, timeout=120)
  assert out.stdout.split() == ['True'] * 3, out.stdout + out.stderr[-2000:]


@pytest.mark.parametrize(
  'bad',
  [
    dict(patch_size=(4, 4)),
    dict(patch_size=(4, 0, 4)),
    dict(patch_size=(4, 4.5, 4)),
    dict(foreground=1.5),
    dict(crops_per_case=0),
  ],
)
def test_senseless_crops(folder, bad):
  with pytest.raises(InputError, match=next(iter(bad))):
    CropSource(folder, IDS, WINDOWS, **{'patch_size': PATCH, **bad})


def test_a_store_of_an_older_version_says_what_to_do(tmp_path):
  store.write_case(tmp_path, 'old', {k: np.zeros((2, 3, 3), np.uint8) for k in ('image', 'label')}, {})
  with pytest.raises(InputError, match='case old: has no array foreground.*--mode=prepare'):
    CropSource(tmp_path, ['old'], {'old': (0, 1)}, (2, 2, 2))


def test_ignored_voxels_are_no_organ():
  label = np.zeros((4, 6, 6), np.uint8)
  label[0], label[2, 3, 3] = IGNORED, 2
  assert foreground_voxels(label, 'a').tolist() == [[2, 2, 3, 3]]
