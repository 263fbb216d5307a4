"""Preparation on the workers of a Dask cluster."""

import os
import signal
import sys
import threading
import time

import distributed
import pytest
from many_cases import CHOICES, make_many
from tiny_dataset import contents, prepare_store

from afw_jax.data import store
from afw_jax.errors import InputError

MANY = 1000 if 'AFW_SLOW' in os.environ else 200
QUIET = dict(progress=False, **CHOICES)


@pytest.fixture(scope='module')
def scheduler_file(tmp_path_factory):
  return tmp_path_factory.mktemp('dask') / 'scheduler.json'


@pytest.fixture(scope='module')
def dask_cluster(scheduler_file):
  with distributed.LocalCluster(
    n_workers=2,
    threads_per_worker=1,
    dashboard_address=None,
    host='127.0.0.1',
    scheduler_kwargs={'scheduler_file': str(scheduler_file)},
  ) as started:
    yield started


def test_workers_make_the_store_of_one_process(dask_cluster, tmp_path):
  root = make_many(tmp_path / 'raw', MANY)
  prepare_store('folder', root, tmp_path / 'one', workers=0, **QUIET)
  index = prepare_store('folder', root, tmp_path / 's', scheduler=dask_cluster.scheduler_address, **QUIET)
  assert contents(tmp_path / 's') == contents(tmp_path / 'one') and len(index['cases']) == MANY


def test_a_worker_killed_on_the_way(dask_cluster, scheduler_file, tmp_path):
  root = make_many(tmp_path / 'raw', 60)
  prepare_store('folder', root, tmp_path / 'one', workers=0, **QUIET)
  victim = dask_cluster.workers[0].pid
  killed = []

  def kill():
    while len(list(tmp_path.glob('s/.staging/cases/[!.]*'))) < 5:
      time.sleep(0.002)
    os.kill(victim, signal.SIGKILL)
    killed.append(victim)

  thread = threading.Thread(target=kill, daemon=True)
  thread.start()
  prepare_store('folder', root, tmp_path / 's', scheduler=str(scheduler_file), **QUIET)
  thread.join(10)
  assert killed and contents(tmp_path / 's') == contents(tmp_path / 'one')


def test_problems_come_back(dask_cluster, tmp_path):
  root = make_many(tmp_path / 'raw', 3)
  (root / 'images' / 'c0001.nii').write_bytes(b'')
  with pytest.raises(InputError, match='c0001.nii'):
    prepare_store('folder', root, tmp_path / 's', scheduler=dask_cluster.scheduler_address, **QUIET)
  with pytest.raises(InputError, match='did not finish'):
    store.read_index(tmp_path / 's')


def test_without_dask(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'distributed', None)
  with pytest.raises(InputError, match=r"pip install 'afw_jax\[cluster\]'"):
    prepare_store('folder', make_many(tmp_path / 'raw', 2), tmp_path / 's', scheduler='tcp://host:8786', **QUIET)


def test_no_scheduler_there(tmp_path, monkeypatch):
  monkeypatch.setattr('afw_jax.data.preparation.dask_cluster.CONNECT_S', 1)
  root = make_many(tmp_path / 'raw', 2)
  for scheduler, said in (('tcp://127.0.0.1:9', 'does not answer'), (str(tmp_path / 'none.json'), 'no such file')):
    with pytest.raises(InputError, match=said):
      prepare_store('folder', root, tmp_path / 's', scheduler=scheduler, **QUIET)
