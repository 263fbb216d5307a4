"""Preparation on disks that refuse locks, flushing or shared memory maps, and beside other processes."""

import errno
import fcntl
import mmap
import os
import threading
import time
from concurrent import futures

import numpy as np
import pytest
from tiny_dataset import SMALL, contents, make, prepare_store

from afw_jax import prepare as prepare_mode
from afw_jax.config import default_config
from afw_jax.data import store
from afw_jax.data.preparation import load_case, publish
from afw_jax.errors import InputError
from afw_jax.system import atomic_files, locks

REFUSALS = [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP]
QUIET = {**SMALL, 'workers': 0, 'progress': False}


def refuse(code):
  raise OSError(code, os.strerror(code))


def refuse_all(monkeypatch, code):
  """From now on all disks refuse locks, the flushing of folders, and shared memory maps."""
  sync, private = os.fsync, mmap.mmap
  shared = lambda *args, access, **more: access != mmap.ACCESS_COPY
  monkeypatch.setattr(fcntl, 'flock', lambda *_: refuse(code))
  monkeypatch.setattr(os, 'fsync', lambda f: refuse(code) if os.path.isdir(f'/proc/self/fd/{f}') else sync(f))
  monkeypatch.setattr(mmap, 'mmap', lambda *a, **k: refuse(errno.ENODEV) if shared(*a, **k) else private(*a, **k))


@pytest.mark.parametrize('code', REFUSALS)
def test_a_disk_that_refuses_gives_the_same_store(tmp_path, monkeypatch, caplog, code):
  root = make(tmp_path / 'raw', n=2)
  prepare_store('folder', root, tmp_path / 'usual', **QUIET)
  usual = store.read_case(tmp_path / 'usual', 'c0').arrays['image']
  refuse_all(monkeypatch, code)
  prepare_store('folder', root, tmp_path / 's', **QUIET)
  assert contents(tmp_path / 's') == contents(tmp_path / 'usual')
  assert caplog.text.count('cannot be locked') == 1
  image = store.read_case(tmp_path / 's', 'c0', verify=True).arrays['image']
  assert isinstance(image, np.memmap) and not image.flags.writeable and np.array_equal(image, usual)


def test_a_case_that_this_machine_cannot_read_is_not_called_damaged(tmp_path, monkeypatch):
  prepare_store('folder', make(tmp_path / 'raw', n=1), tmp_path / 's', **QUIET)
  monkeypatch.setattr(mmap, 'mmap', lambda *_, **__: refuse(errno.EMFILE))
  with pytest.raises(InputError, match='cannot be read here .Too many open files') as error:
    store.read_case(tmp_path / 's', 'c0')
  assert 'Delete' not in str(error.value)


def test_without_locks_several_processes_disturb_each_other_in_nothing(tmp_path, monkeypatch):
  root = make(tmp_path / 'raw', n=3)
  prepare_store('folder', root, tmp_path / 'one', **QUIET)
  monkeypatch.setattr(fcntl, 'flock', lambda *_: refuse(errno.ENOLCK))
  write, meet = store._write_array, threading.Barrier(2)
  names = {}

  def slow(path, array):  # each process begins while the other is writing
    if not names.setdefault(threading.get_ident(), []):
      meet.wait(30)
    names[threading.get_ident()].append(path)
    time.sleep(0.02)
    return write(path, array)

  monkeypatch.setattr(store, '_write_array', slow)
  for module in (store, atomic_files):  # as of two processes
    monkeypatch.setattr(module, 'process_name', lambda: f'host-{threading.get_ident()}')
  failed = []

  def prepare(wait):
    try:
      time.sleep(wait)
      prepare_store('folder', root, tmp_path / 's', **QUIET)
    except Exception as error:  # of a thread
      failed.append(error)

  runs = [threading.Thread(target=prepare, args=(0.1 * i,)) for i in range(2)]
  for run in runs:
    run.start()
  for run in runs:
    run.join()
  assert not failed and contents(tmp_path / 's') == contents(tmp_path / 'one')


def test_those_that_wait_prepare_nothing_again_and_follow_one_that_failed(tmp_path, monkeypatch):
  root = make(tmp_path / 'raw', n=2)
  load, loaded, results = load_case.load_and_validate, [], []

  def once_broken(*args, **more):
    loaded.append(args)
    time.sleep(0.05)
    if len(loaded) == 1:
      raise InputError('c0', 'the first process fails', 'Nothing')
    return load(*args, **more)

  monkeypatch.setattr(load_case, 'load_and_validate', once_broken)

  def prepare():
    try:
      results.append(len(prepare_store('folder', root, tmp_path / 's', verify=False, **QUIET)['cases']))
    except InputError as error:
      results.append(error.problem)

  runs = [threading.Thread(target=prepare) for _ in range(3)]
  for run in runs:
    run.start()
  for run in runs:
    run.join()
  assert sorted(map(str, results)) == ['2', '2', 'the first process fails']
  assert len(loaded) <= 4  # two by each of two processes: the third finds them


def test_waiting_for_a_store_that_nobody_prepares_makes_no_file(tmp_path):
  assert publish.wait_for_others(tmp_path / 'none') is False
  assert not list(tmp_path.iterdir())


def until(what, seconds=60):
  end = time.monotonic() + seconds
  while not what():
    assert time.monotonic() < end, 'waited in vain'
    time.sleep(0.01)


def test_training_waits_for_a_preparation_and_for_the_one_that_takes_it_over(tmp_path, monkeypatch, caplog):
  root = make(tmp_path / 'raw', n=4)
  config, store_dir = default_config(), str(tmp_path / 's')
  config.data.update({'dataset': 'folder', 'root': str(root), 'size': (32, 32), 'spacing_mm': (1.0, 1.0)})
  monkeypatch.setattr(locks, '_LONGEST_PAUSE_S', 0.02)
  wait = lambda: prepare_mode.check_current(config, str(tmp_path / 'run'), store_dir)
  with pytest.raises(InputError, match='no prepared store'):  # nobody prepares
    wait()
  assert not (tmp_path / 's').exists()
  waiting = threading.Thread(target=wait)
  with publish.lock(store_dir):  # by one that ends without a store
    waiting.start()
    until(lambda: 'waiting for it' in caplog.text)
  time.sleep(0.3)
  with publish.lock(store_dir):  # by its successor
    until(lambda: caplog.text.count('waiting for it') == 2)
    assert waiting.is_alive()
  prepare_store('folder', root, store_dir, **QUIET)
  waiting.join(30)
  assert not waiting.is_alive()
  with publish.lock(store_dir):  # one that adds cases which this run does not use
    wait()
  assert publish.wait_for_others(store_dir) is False


def test_a_store_that_is_published_while_it_is_checked_is_checked_again(tmp_path, monkeypatch):
  root = make(tmp_path / 'raw', n=4)
  config, store_dir = default_config(), str(tmp_path / 's')
  config.data.update({'dataset': 'folder', 'root': str(root), 'size': (32, 32), 'spacing_mm': (1.0, 1.0)})
  check, calls = prepare_mode._check_current, []

  def slow(*arguments):
    calls.append(1)
    try:
      check(*arguments)
    except InputError:
      prepare_store('folder', root, store_dir, **QUIET)  # another process, which ends before the lock is looked at
      raise

  monkeypatch.setattr(prepare_mode, '_check_current', slow)
  prepare_mode.check_current(config, str(tmp_path / 'run'), store_dir)
  assert len(calls) == 2


def test_many_that_look_whether_a_store_is_free_do_not_take_each_other_for_preparing(tmp_path, caplog):
  with publish.lock(tmp_path):
    name = (tmp_path / '.lock').read_bytes()
  with futures.ThreadPoolExecutor(16) as pool:
    found = list(pool.map(lambda _: publish.wait_for_others(tmp_path), range(64)))
  assert not any(found) and not caplog.text and (tmp_path / '.lock').read_bytes() == name


def test_an_index_that_appears_while_it_is_looked_for_is_taken(tmp_path, monkeypatch):
  prepare_store('folder', make(tmp_path / 'raw', n=1), tmp_path / 's', **QUIET)
  index, read = (tmp_path / 's' / 'dataset.json'), store.read_index
  index.rename(tmp_path / 'later')

  def published_meanwhile(folder):
    try:
      return read(folder)
    except InputError:
      (tmp_path / 'later').exists() and (tmp_path / 'later').rename(index)
      raise

  monkeypatch.setattr(store, 'read_index', published_meanwhile)
  assert len(publish.read_index(tmp_path / 's')['cases']) == 1
