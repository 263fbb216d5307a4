"""The store: cases are written atomically, every damage is found, and one process writes at a time."""

import concurrent.futures
import errno
import json
import os
import threading

import numpy as np
import pytest

from afw_jax.data import store
from afw_jax.data.preparation import publish
from afw_jax.errors import InputError

ARRAYS = {'image': np.arange(2 * 5 * 4, dtype=np.int16).reshape(2, 5, 4), 'label': np.ones((2, 5, 4), np.uint8)}
META = {'options_hash': 'abc', 'percentile_window': [50.0, 350.0]}


def is_complete(root, case_id, options_hash):
  """Whether the case can be read, and was prepared with these options."""
  try:
    meta = store.read_case(root, case_id).meta
  except InputError:
    return False
  return meta['options_hash'] == options_hash and meta['format'] == store.FORMAT


def files(root):
  return sorted(str(p.relative_to(root)) for p in root.rglob('*') if p.is_file())


def test_round_trip(tmp_path):
  written = store.write_case(tmp_path, 'c 1', ARRAYS, META)
  case = store.read_case(tmp_path, 'c 1', verify=True)
  assert case.id == 'c 1' and case.meta == written and case.meta['percentile_window'] == [50.0, 350.0]
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(case.arrays[name], array)
    assert isinstance(case.arrays[name], np.memmap) and case.arrays[name].dtype == array.dtype
    assert case.meta['arrays'][name]['shape'] == [2, 5, 4]
  assert files(tmp_path) == ['cases/c 1/case.json', 'cases/c 1/image.npy', 'cases/c 1/label.npy']
  with pytest.raises(ValueError, match='read-only'):
    case.arrays['image'][0, 0, 0] = 1


def test_the_content_of_a_case(tmp_path):
  first = store.content_digest(store.write_case(tmp_path, 'c', ARRAYS, META))
  renamed = store.write_case(tmp_path, 'other', ARRAYS, {**META, 'source': 'elsewhere', 'geometry': {'qform_code': 2}})
  assert store.content_digest(renamed) == first and store.read_case(tmp_path, 'c', content=first).id == 'c'
  for arrays, meta in (
    ({**ARRAYS, 'label': 1 - ARRAYS['label']}, META),
    (ARRAYS, {**META, 'geometry': {'affine': [1, 2]}}),
    (ARRAYS, {**META, 'spacing_mm': [1, 2, 3]}),
  ):
    store.write_case(tmp_path, 'c', arrays, meta)
    with pytest.raises(InputError, match='prepared again from other files while this process was using it'):
      store.read_case(tmp_path, 'c', content=first)


def test_a_case_is_replaced_whole(tmp_path):
  store.write_case(tmp_path, 'c', {**ARRAYS, 'extra': ARRAYS['label']}, META)
  store.write_case(tmp_path, 'c', {'image': ARRAYS['image'] + 1}, {'options_hash': 'new'})
  case = store.read_case(tmp_path, 'c', verify=True)
  assert set(case.arrays) == {'image'} and case.arrays['image'][0, 0, 1] == 2
  assert files(tmp_path) == ['cases/c/case.json', 'cases/c/image.npy']
  assert is_complete(tmp_path, 'c', 'new') and not is_complete(tmp_path, 'c', 'abc')


def test_every_flipped_bit_is_found(tmp_path):
  store.write_case(tmp_path, 'c', ARRAYS, META)
  for name in ('image.npy', 'label.npy', 'case.json'):
    path = tmp_path / 'cases' / 'c' / name
    good = path.read_bytes()
    for at in np.random.default_rng(0).integers(0, 8 * len(good), 40):
      bad = bytearray(good)
      bad[at // 8] ^= 1 << (at % 8)
      path.write_bytes(bad)
      if name == 'case.json' and json.loads(good) == _loads(bad):
        continue  # a space became another kind of space
      with pytest.raises(InputError, match=name):
        store.read_case(tmp_path, 'c', verify=True)
    path.write_bytes(good)
  store.read_case(tmp_path, 'c', verify=True)


def _loads(content):
  try:
    return json.loads(content)
  except ValueError:
    return None


def test_half_a_case_is_none(tmp_path):
  store.write_case(tmp_path, 'c', ARRAYS, META)
  folder = tmp_path / 'cases' / 'c'
  good = (folder / 'label.npy').read_bytes()
  (folder / 'label.npy').write_bytes(good[:-1])
  with pytest.raises(InputError, match=r'label.npy.*bytes instead of.*prepare again'):
    store.read_case(tmp_path, 'c')
  assert not is_complete(tmp_path, 'c', 'abc')
  (folder / 'label.npy').unlink()
  with pytest.raises(InputError, match='label.npy.*no such file'):
    store.read_case(tmp_path, 'c')
  (folder / 'label.npy').write_bytes(good)
  assert is_complete(tmp_path, 'c', 'abc')
  (folder / 'case.json').unlink()
  assert not is_complete(tmp_path, 'c', 'abc')
  with pytest.raises(InputError, match='no such case'):
    store.read_case(tmp_path, 'c')


@pytest.mark.parametrize(
  'number, word',
  [(errno.ENOSPC, 'disk space'), (errno.EACCES, 'permissions'), (errno.EFBIG, 'ulimit'), (errno.EDQUOT, 'quota')],
)
@pytest.mark.parametrize('call', range(4))
def test_a_refused_write_leaves_nothing(tmp_path, monkeypatch, number, word, call):
  sync, calls = os.fsync, []

  def failing(fd):
    calls.append(fd)
    if len(calls) == call + 1:
      raise OSError(number, os.strerror(number))
    sync(fd)

  monkeypatch.setattr(os, 'fsync', failing)
  with pytest.raises(InputError, match=word) as e:
    store.write_case(tmp_path, 'c', ARRAYS, META)
  assert str(tmp_path) in str(e.value) and files(tmp_path) == []
  store.write_case(tmp_path, 'c', ARRAYS, META)
  assert is_complete(tmp_path, 'c', 'abc')


def test_a_file_where_a_folder_is_needed(tmp_path):
  (tmp_path / 'cases').write_text('', encoding='utf-8')
  with pytest.raises(InputError, match='cannot be written'):
    store.write_case(tmp_path, 'c', ARRAYS, META)
  (tmp_path / 'file').write_text('', encoding='utf-8')
  with pytest.raises(InputError, match='cannot be written'), publish.lock(tmp_path / 'file'):
    pass


def test_pickles_are_never_written_or_read(tmp_path):
  with pytest.raises(ValueError, match='allow_pickle'):
    store.write_case(tmp_path, 'c', {'image': np.array([{}])}, META)
  assert files(tmp_path) == []


def test_index(tmp_path):
  with pytest.raises(InputError, match='no prepared store.*prepare'):
    store.read_index(tmp_path / 'nowhere')
  store.write_index(tmp_path, {'name': 'x', 'cases': {}})
  assert store.read_index(tmp_path)['name'] == 'x' and files(tmp_path) == ['dataset.json']
  for content, message in (
    ('{"labels": {}}', 'not the index'),
    ('{"kind": ', 'damaged'),
    ('[]', 'not a JSON object'),
    ('{"kind": "afw_jax store", "format": 99}', 'format 99'),
  ):
    (tmp_path / 'dataset.json').write_text(content, encoding='utf-8')
    with pytest.raises(InputError, match=message):
      store.read_index(tmp_path)


def test_leftovers_go_and_cases_stay(tmp_path):
  store.write_case(tmp_path, 'c', ARRAYS, META)
  for leftover in (
    tmp_path / '.tmp-index-6',
    tmp_path / 'cases' / '.tmp-d-7',
    tmp_path / '.staging' / 'cases' / '.tmp-e-8',
  ):
    leftover.mkdir(parents=True)
    (leftover / 'image.npy').write_bytes(b'half')
  (tmp_path / 'dataset.json.host-9.tmp').write_bytes(b'{')
  store.remove_stale(tmp_path)
  assert files(tmp_path) == ['cases/c/case.json', 'cases/c/image.npy', 'cases/c/label.npy']


def holds(tmp_path, shared):
  """Whether a second process gets the lock while another one holds it, shared or not."""
  waiting = threading.Event()

  def take():
    with publish.lock(tmp_path, shared=shared):
      waiting.set()

  thread = threading.Thread(target=take)
  thread.start()
  taken = waiting.wait(0.3)
  return taken, thread


@pytest.mark.parametrize(
  'first, second, together', [(False, False, False), (True, True, True), (False, True, False), (True, False, False)]
)
def test_one_writer_at_a_time_and_shards_together(tmp_path, first, second, together):
  with publish.lock(tmp_path, shared=first):
    taken, thread = holds(tmp_path, second)
    assert taken is together
  thread.join(10)
  assert not thread.is_alive()


def test_many_threads_may_open_cases_at_once(tmp_path):
  for i in range(4):
    store.write_case(tmp_path, f'c{i}', {'image': np.zeros((2, 3, 3), np.int16)}, {})
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    cases = list(pool.map(lambda i: store.read_case(tmp_path, f'c{i % 4}'), range(1500)))
  assert all(case.arrays['image'].shape == (2, 3, 3) for case in cases)


def test_cases_of_any_name(tmp_path):
  names = ['a/b', '..', 'a:b*?', 'con', 'trail.', 'n' * 250, 'n' * 251, '%63on']
  for i, name in enumerate(names):
    store.write_case(tmp_path, name, {'image': np.full((1, 2, 2), i, np.int16)}, {})
    store.write_case(tmp_path / store.STAGING, name, {'image': np.full((1, 2, 2), -i, np.int16)}, {})
  assert len(list((tmp_path / 'cases').iterdir())) == len(names)
  for i, name in enumerate(names):
    case = store.read_case(tmp_path, name, verify=True)
    assert case.id == case.meta['id'] == name and (case.arrays['image'] == i).all()
    staged = store.read_case(tmp_path / store.STAGING, name).meta
    store.move_case(tmp_path / store.STAGING, tmp_path, name, staged)
    assert (store.read_case(tmp_path, name).arrays['image'] == -i).all()
