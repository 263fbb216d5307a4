"""Training batches: one global order, the same for every start, rank and number of workers."""

import json
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest

from afw_jax.data import store
from afw_jax.data.crops import CropSource, foreground_voxels
from afw_jax.data.pipeline import SliceSource, VolumeSource, make_source, steps_per_epoch, train_batches
from afw_jax.errors import InputError

DEPTHS = {'a': 3, 'b': 4, 'c': 6}  # 13 slices, coprime to every batch size used here
IDS = list(DEPTHS)
WINDOWS = {case_id: (50.0 + n, 350.0 + n) for n, case_id in enumerate(IDS)}


def alike(*case_ids):
  """The same intensity window for each case."""
  return dict.fromkeys(case_ids, (50.0, 350.0))


def put_case(folder, case_id, image):
  label = (image % 9).astype(np.uint8)
  store.write_case(
    folder,
    case_id,
    {'image': image, 'label': label, 'native_label': label, 'foreground': foreground_voxels(label, case_id)},
    {},
  )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('store')
  for n, (case_id, depth) in enumerate(DEPTHS.items()):
    image = 1000 * n + np.arange(depth * 20, dtype=np.int16).reshape(depth, 4, 5)
    put_case(folder, case_id, image)
  return str(folder)


def take(folder, count, **options):
  options = {'batch_size': 4, 'seed': 3, **options}
  iterator = train_batches(SliceSource(folder, IDS, WINDOWS), **options)
  batches = [next(iterator) for _ in range(count)]
  iterator.close()
  return batches


def assert_same(one, two):
  assert len(one) == len(two)
  for a, b in zip(one, two):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def test_a_batch_is_the_slices_its_index_names(folder):
  rows = SliceSource(folder, IDS, WINDOWS).records
  assert rows == [(case_id, z) for case_id, depth in DEPTHS.items() for z in range(depth)]
  for batch in take(folder, 7):
    assert batch['image'].shape == (4, 4, 5, 1) and batch['image'].dtype == np.int16
    assert batch['label'].shape == (4, 4, 5) and batch['label'].dtype == np.uint8
    assert batch['window'].shape == (4, 2) and batch['window'].dtype == np.float32
    assert batch['index'].shape == (4,) and batch['index'].dtype == np.int32
    for b in range(4):
      case_id, z = rows[batch['index'][b]]
      n = IDS.index(case_id)
      expected = 1000 * n + np.arange(20).reshape(4, 5) + 20 * z
      np.testing.assert_array_equal(batch['image'][b, ..., 0], expected)
      np.testing.assert_array_equal(batch['label'][b], expected % 9)
      np.testing.assert_array_equal(batch['window'][b], [50 + n, 350 + n])


def test_every_epoch_holds_every_record_once_in_a_new_order(folder):
  stream = np.concatenate([b['index'] for b in take(folder, 39)])
  assert stream.size == 12 * 13
  epochs = stream.reshape(12, 13)
  for epoch in epochs:
    assert sorted(epoch) == list(range(13))
  assert len({tuple(epoch) for epoch in epochs}) == 12


def test_order_follows_the_seed(folder):
  one, two, other = (np.concatenate([b['index'] for b in take(folder, 6, seed=s)]) for s in (1, 1, 2))
  assert np.array_equal(one, two) and not np.array_equal(one, other)


@pytest.mark.parametrize('start', [0, 1, 3, 4, 1000003])
def test_any_start_continues_the_same_stream(folder, start):
  assert_same(take(folder, 8, start_step=start)[3:], take(folder, 5, start_step=start + 3))


@pytest.mark.parametrize('world', [2, 4])
@pytest.mark.parametrize('start', [0, 5])
def test_ranks_cut_the_same_global_batches(folder, world, start):
  whole = take(folder, 6, start_step=start)
  parts = [take(folder, 6, start_step=start, rank=rank, world=world) for rank in range(world)]
  joined = [{key: np.concatenate([part[k][key] for part in parts]) for key in whole[k]} for k in range(6)]
  assert_same(whole, joined)


@pytest.mark.parametrize('prefetch', [1, 2, 5])
def test_prefetch_changes_nothing(folder, prefetch):
  assert_same(take(folder, 6), take(folder, 6, prefetch=prefetch))


def test_worker_processes_change_nothing(folder):
  code = f"""
import json
from afw_jax.data.pipeline import SliceSource, train_batches
if __name__ == '__main__':
  for workers, options in ((2, dict(start_step=2)), (2, dict(start_step=2, rank=1, world=2))):
    source = SliceSource({folder!r}, {IDS!r}, {WINDOWS!r})
    it = train_batches(source, batch_size=4, seed=3, num_workers=workers, **options)
    print(json.dumps([[int(i) for i in next(it)['index']] for _ in range(6)]))
    it.close()
"""
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
  assert out.returncode == 0, out.stderr[-2000:]
  whole, part = [json.loads(line) for line in out.stdout.splitlines()]
  assert whole == [b['index'].tolist() for b in take(folder, 6, start_step=2)]
  assert part == [b['index'].tolist() for b in take(folder, 6, start_step=2, rank=1, world=2)]


def test_source_travels_by_path_only(folder):
  source = SliceSource(folder, IDS, WINDOWS)
  source.read([0])
  sent = pickle.dumps(source)
  assert len(sent) < 2000
  again = pickle.loads(sent)
  assert len(again) == 13
  assert_same([again.read([0, 7, 12])], [source.read([0, 7, 12])])


def test_slices_are_copies_not_views_of_the_store(folder):
  batch = SliceSource(folder, IDS, WINDOWS).read([0])
  batch['image'][:] = -5  # a memory map would refuse, or change the file
  assert SliceSource(folder, IDS, WINDOWS).read([0])['image'].min() == 0


def test_batches_are_ready_before_they_are_asked_for(folder, monkeypatch):
  class Slow(SliceSource):
    def read(self, indices):
      time.sleep(0.01 * len(indices))
      return super().read(indices)

  iterator = train_batches(Slow(folder, IDS, WINDOWS), batch_size=4, seed=0)
  next(iterator)
  waits = []
  for _ in range(5):
    time.sleep(0.2)  # the step
    start = time.perf_counter()
    next(iterator)
    waits.append(time.perf_counter() - start)
  iterator.close()
  assert np.median(waits) < 0.02  # reading one batch takes 0.04 s


@pytest.mark.parametrize('prefetch', [1, 3])
def test_reading_ahead_is_bounded(folder, prefetch):
  read = []

  class Counting(SliceSource):
    def read(self, indices):
      read.extend(indices)
      return super().read(indices)

  iterator = train_batches(Counting(folder, IDS, WINDOWS), batch_size=4, seed=0, prefetch=prefetch)
  for taken in range(1, 4):
    next(iterator)
    time.sleep(0.3)
    assert len(read) <= 4 * (taken + prefetch)
  iterator.close()


@pytest.mark.parametrize(
  'size, patch, kind, record',
  [
    ([4, 5], None, SliceSource, ('a', 0)),
    ([3, 4, 5], (), VolumeSource, ('a',)),
    ([3, 4, 5], (2, 2, 2), CropSource, ('a', 0)),
    ([4, 5], (2, 2, 2), CropSource, ('a', 0)),
    ([None, None, None], (2, 2, 2), CropSource, ('a', 0)),
  ],
)
def test_the_source_follows_size_and_patch(tmp_path, size, patch, kind, record):
  for case_id in 'ab':
    put_case(tmp_path, case_id, np.arange(60, dtype=np.int16).reshape(3, 4, 5))
  store.write_index(tmp_path, {'options': {'size': size}})
  source = make_source(tmp_path, ['a', 'b'], alike('a', 'b'), patch)
  assert isinstance(source, kind) and source.records[0] == record
  assert len(source) == len(source.records) == (6 if kind is SliceSource else 2) and 'c' not in {
    r[0] for r in source.records
  }
  batch = next(train_batches(source, batch_size=2, seed=0))
  assert batch['image'].shape == (2, *batch['label'].shape[1:], 1) and len(source.records[batch['index'][0]]) == len(
    record
  )


def test_volumes_are_whole_and_share_a_shape(tmp_path):
  image = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
  for case_id in 'ab':
    put_case(tmp_path, case_id, image)
  source = pickle.loads(pickle.dumps(VolumeSource(tmp_path, ['a', 'b'], alike('a', 'b'))))
  batch = source.read([1, 0])
  np.testing.assert_array_equal(batch['image'], np.stack([image[..., None]] * 2))
  np.testing.assert_array_equal(batch['label'], np.stack([image % 9] * 2))
  assert batch['index'].tolist() == [1, 0] and batch['window'].tolist() == [[50, 350]] * 2
  batch['image'][:] = 0  # a copy
  put_case(tmp_path, 'deep', np.zeros((7, 4, 5), np.int16))
  with pytest.raises(
    InputError, match=r'case deep: volumes are \(7, 4, 5\) but those of a are \(3, 4, 5\).*train.patch_size'
  ):
    VolumeSource(tmp_path, ['a', 'deep'], alike('a', 'deep'))


def test_other_sources_fit_the_same_pipe():
  class Numbers:
    def __len__(self):
      return 5

    def read(self, indices):
      return {'image': np.ones((1, 2, 3, 4, 1)) * np.reshape(indices, (-1, 1, 1, 1, 1)), 'index': np.asarray(indices)}

  iterator = train_batches(Numbers(), batch_size=2, seed=0)
  batch = next(iterator)
  iterator.close()
  assert batch['image'].shape == (2, 2, 3, 4, 1)
  np.testing.assert_array_equal(batch['image'][:, 0, 0, 0, 0], batch['index'])


def test_steps_per_epoch_rounds_up():
  assert [steps_per_epoch(n, 4) for n in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(
  'options, words',
  [
    ({'batch_size': 6, 'world': 4}, ['6', '4 ranks']),
    ({'batch_size': 0}, ['0 rows']),
    ({'rank': 2, 'world': 2}, ['2 of 2']),
    ({'start_step': -1}, ['start_step', '-1']),
    ({'prefetch': 0}, ['prefetch']),
    ({'num_workers': -2}, ['num_workers']),
  ],
)
def test_impossible_requests_are_one_clear_line(folder, options, words):
  with pytest.raises(InputError) as e:
    take(folder, 1, **options)
  assert '\n' not in str(e.value) and all(word in str(e.value) for word in words)


def test_cases_that_cannot_share_a_batch_are_named(tmp_path):
  put_case(tmp_path, 'one', np.zeros((2, 4, 5), np.int16))
  put_case(tmp_path, 'wide', np.zeros((2, 4, 6), np.int16))
  with pytest.raises(InputError, match='case wide'):
    SliceSource(tmp_path, ['one', 'wide'], alike('one', 'wide'))
  with pytest.raises(InputError, match='no case'):
    SliceSource(tmp_path, [], {})
  with pytest.raises(InputError, match='missing'):
    SliceSource(tmp_path, ['one', 'missing'], alike('one', 'missing'))


def test_integers_and_fractions_share_a_batch_as_fractions(tmp_path):
  put_case(tmp_path, 'whole', np.full((2, 4, 5), 7, np.int16))
  put_case(tmp_path, 'real', np.full((2, 4, 5), 0.5, np.float32))
  batch = next(train_batches(SliceSource(tmp_path, ['whole', 'real'], alike('whole', 'real')), batch_size=4, seed=0))
  assert batch['image'].dtype == np.float32 and set(np.unique(batch['image'])) == {0.5, 7}
