"""Locks between processes: who waits for whom, and what happens on disks that have no locks."""

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

from afw_jax.errors import InputError
from afw_jax.system import locks
from afw_jax.system.atomic_files import process_name

HOLDER = """
import sys, time
from afw_jax.system import locks
with locks.locked(sys.argv[1]):
  print('held', flush=True)
  time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
  """A process that holds the lock of tmp_path/x."""
  holder = subprocess.Popen(
    [sys.executable, '-c', HOLDER, str(tmp_path / 'x')],
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
  )
  assert holder.stdout.readline() == 'held\n'
  yield holder
  holder.kill()
  holder.wait()


def test_the_holder_is_named_with_the_time_and_a_killed_one_is_followed(tmp_path, held):
  said = rf'in use by another process \(.*-{held.pid}, since 20.*\)\. Use another'
  with pytest.raises(InputError, match=said), locks.locked(tmp_path / 'x', patience_s=0, cure='Use another.'):
    pass
  said = []
  threading.Timer(0.6, held.send_signal, [signal.SIGKILL]).start()
  with locks.locked(tmp_path / 'x', waiting=said.append) as mine:
    assert mine and len(said) == 1 and f'-{held.pid}, since 20' in said[0]
    assert (tmp_path / 'x').read_text().startswith(process_name())


def test_readers_share_and_writers_do_not(tmp_path):
  with locks.locked(tmp_path / 'x', shared=True), locks.locked(tmp_path / 'x', shared=True, patience_s=0) as both:
    assert both
    with pytest.raises(InputError, match='in use'), locks.locked(tmp_path / 'x', patience_s=0):
      pass


def test_one_after_the_other(tmp_path):
  inside, most = [], []

  def work():
    with locks.locked(tmp_path / 'deep' / 'x'):
      inside.append(1)
      most.append(len(inside))
      time.sleep(0.02)
      inside.pop()

  threads = [threading.Thread(target=work) for _ in range(6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  assert most == [1] * 6


@pytest.mark.parametrize('code', locks.WITHOUT_LOCKS)
def test_a_disk_without_locks_gives_one_warning(tmp_path, monkeypatch, caplog, code):
  monkeypatch.setattr(locks.fcntl, 'flock', lambda *_: refuse(code))
  with locks.locked(tmp_path / 'x') as first, locks.locked(tmp_path / 'y', shared=True) as second:
    assert not first and not second
  assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
    (logging.WARNING, f'{tmp_path} cannot be locked on this file system: make sure that no two runs use it')
  ]


@pytest.mark.parametrize('code', [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_failing_disk_is_an_error(tmp_path, monkeypatch, code):
  monkeypatch.setattr(locks.fcntl, 'flock', lambda *_: refuse(code))
  with pytest.raises(InputError, match='x: cannot be locked'), locks.locked(tmp_path / 'x'):
    pass


def refuse(code):
  raise OSError(code, os.strerror(code))
