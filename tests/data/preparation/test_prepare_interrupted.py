"""Preparation that is killed, or runs out of disk space, continues and ends with the same store."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from tiny_dataset import SMALL, contents, make, prepare_store

from afw_jax.data import store
from afw_jax.errors import InputError

SCRIPT = """
import sys, time, resource
from afw_jax.data.preparation import load_case, prepare
from afw_jax.data.preparation.options import StoreOptions
root, out, workers, mode = sys.argv[1:]
if mode == 'slow':
  read = load_case.load_and_validate
  load_case.load_and_validate = lambda *a, **k: time.sleep(0.15) or read(*a, **k)
if mode == 'no space':
  resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
prepare.prepare(StoreOptions('folder', size=(32, 32)), root, out, workers=int(workers), progress=mode == 'bar')
"""


def run(tmp_path, *args):
  (tmp_path / 'script.py').write_text(textwrap.dedent(SCRIPT))  # on purpose without a guard: workers must not run it
  return subprocess.Popen(
    [sys.executable, str(tmp_path / 'script.py'), *map(str, args)],
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
  )


def staged(out):
  return len(list(out.glob('.staging/cases/[!.]*')))


def wait_until(what, seconds=60):
  end = time.monotonic() + seconds
  while not what():
    assert time.monotonic() < end, 'waited in vain'
    time.sleep(0.005)


def test_a_killed_prepare_goes_on_and_ends_the_same(tmp_path):
  root = make(tmp_path / 'raw', n=8)
  prepare_store('folder', root, tmp_path / 'whole', **SMALL)
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
  prepare_store('folder', root, tmp_path / 's', **SMALL)
  assert contents(tmp_path / 's') == contents(tmp_path / 'whole')
  for path, when in done.items():
    assert (tmp_path / 's' / 'cases' / path.parent.name / 'image.npy').stat().st_mtime_ns == when


@pytest.mark.skipif(not os.path.exists('/proc/self/task'), reason='finds child processes in /proc')
def test_workers_end_with_a_killed_parent(tmp_path):
  root = make(tmp_path / 'raw', n=6, shape=(60, 128, 128))
  process = run(tmp_path, root, tmp_path / 's', 1, 'pool')
  wait_until(lambda: staged(tmp_path / 's') >= 1)
  pids = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text(encoding='utf-8').split()
  assert pids
  process.send_signal(signal.SIGKILL)
  process.wait()
  wait_until(lambda: not any(_alive(pid) for pid in pids), 20)
  prepare_store('folder', root, tmp_path / 's', **SMALL)
  assert len(store.read_index(tmp_path / 's')['cases']) == 6


def _alive(pid):
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text(encoding='utf-8').split(') ')[1][0] != 'Z'
  except FileNotFoundError:
    return False


def test_a_full_disk_is_told_in_one_line(tmp_path):
  root = make(tmp_path / 'raw', n=3)
  process = run(tmp_path, root, tmp_path / 's', 0, 'no space')
  error = process.communicate()[1].strip().splitlines()
  assert process.returncode != 0
  assert 'InputError' in error[-1] and str(tmp_path / 's') in error[-1] and 'cannot be written' in error[-1]
  assert not [p for p in (tmp_path / 's').rglob('*') if p.is_file() and p.name not in ('.lock', '.publishing')]


def test_no_space_in_a_worker_stops_the_run(tmp_path, monkeypatch):
  root = make(tmp_path / 'raw', n=3)
  blocked = tmp_path / 's' / '.staging'
  blocked.parent.mkdir()
  blocked.touch()  # a file where a folder is needed: refused to root too
  with pytest.raises(InputError, match='cannot be written'):
    prepare_store('folder', root, tmp_path / 's', **{**SMALL, 'workers': 1})


def test_a_bar_with_the_time_left(tmp_path):
  process = run(tmp_path, make(tmp_path / 'raw', n=2), tmp_path / 's', 0, 'bar')
  error = process.communicate()[1]
  assert process.returncode == 0 and '2/2' in error and 'prepare' in error and '<' in error
