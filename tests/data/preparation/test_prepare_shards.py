"""Several processes, as on several hosts, prepare the shards of one store."""

import contextlib
import os
import threading
import time

import pytest
from many_cases import ARRAY_TASK, CHOICES, ended, make_many, start_shard
from tiny_dataset import contents, prepare_store

from afw_jax.data import store
from afw_jax.data.formats import volumes
from afw_jax.data.preparation import load_case, publish
from afw_jax.errors import InputError

MANY = 1000 if 'AFW_SLOW' in os.environ else 200
QUIET = dict(workers=0, progress=False, **CHOICES)


def prepare_here(root, out, **choices):
  return prepare_store('folder', root, out, **{**QUIET, **choices})


def wait_until(what, seconds=60):
  end = time.monotonic() + seconds
  while not what():
    assert time.monotonic() < end, 'waited in vain'
    time.sleep(0.002)


def staged(out):
  return len(list(out.glob('.staging/cases/[!.]*')))


def test_shards_make_the_store_of_one_process(tmp_path):
  root = make_many(tmp_path / 'raw', MANY)
  prepare_here(root, tmp_path / 'one')
  said = ended([start_shard(tmp_path, root, tmp_path / 's', i, 3, gate='gate') for i in range(3)])
  assert set(said) <= {'published', 'left to others'} and 'published' in said
  assert contents(tmp_path / 's') == contents(tmp_path / 'one')
  assert len(store.read_index(tmp_path / 's')['cases']) == MANY
  assert sorted(p.name for p in (tmp_path / 's').iterdir()) == ['.lock', '.publishing', 'cases', 'dataset.json']


def test_a_killed_shard_is_given_again(tmp_path):
  root = make_many(tmp_path / 'raw', 12)
  prepare_here(root, tmp_path / 'one')
  first = start_shard(tmp_path, root, tmp_path / 's', 1, 3, slow=0.2)
  wait_until(lambda: staged(tmp_path / 's') == 2)
  first.kill()
  first.wait()
  assert ended([start_shard(tmp_path, root, tmp_path / 's', i, 3) for i in (0, 2)]) == ['left to others'] * 2
  with pytest.raises(InputError, match='did not finish'):
    store.read_index(tmp_path / 's')
  done = {p: p.stat().st_mtime_ns for p in tmp_path.glob('s/.staging/cases/c*/image.npy')}
  assert 8 <= len(done) < 12 and tmp_path / 's' / '.staging' / 'cases' / 'c0001' / 'image.npy' in done
  assert ended([start_shard(tmp_path, root, tmp_path / 's', 1, 3)]) == ['published']
  assert contents(tmp_path / 's') == contents(tmp_path / 'one')
  for path, when in done.items():  # none was done twice
    assert (tmp_path / 's' / 'cases' / path.parent.name / 'image.npy').stat().st_mtime_ns == when


@pytest.mark.parametrize('older', [False, True], ids=['new store', 'over an older one'])
def test_all_publish_at_once(tmp_path, monkeypatch, older):
  root = make_many(tmp_path / 'raw', 60)
  prepare_here(root, tmp_path / 'one')
  if older:
    prepare_here(root, tmp_path / 's', order='linear')
  with monkeypatch.context() as m:
    m.setattr(publish, 'publish', lambda *_, **__: None)
    prepare_here(root, tmp_path / 's')
  assert staged(tmp_path / 's') == 60
  ended([start_shard(tmp_path, root, tmp_path / 's', i, 4, gate='gate') for i in range(4)])
  found = contents(tmp_path / 's')
  assert found == contents(tmp_path / 'one') and not list(tmp_path.glob('s/cases/.*'))


def test_a_shard_that_publishes_leaves_what_another_has_staged(tmp_path, monkeypatch):
  root = make_many(tmp_path / 'raw', 4)
  prepare_here(root, tmp_path / 's')
  image = volumes.read_image(root / 'images' / 'c0001.nii')
  volumes.write_image(
    root / 'images' / 'c0001.nii', image.array + 1, image.geometry
  )  # a mended scan: all shards are given again
  with monkeypatch.context() as m:
    m.setattr(publish, 'publish', lambda *_, **__: None)
    prepare_here(root, tmp_path / 's', shard=(1, 2))
  assert staged(tmp_path / 's') == 1
  prepare_here(root, tmp_path / 's', shard=(0, 2))
  prepare_here(root, tmp_path / 's', shard=(1, 2))
  prepare_here(root, tmp_path / 'one')
  assert contents(tmp_path / 's') == contents(tmp_path / 'one') and not staged(tmp_path / 's')


def test_killed_while_it_publishes(tmp_path, monkeypatch):
  root = make_many(tmp_path / 'raw', 6)
  prepare_here(root, tmp_path / 'one')
  prepare_here(root, tmp_path / 's', order='linear')
  move, moved = store.move_case, []

  def killed(*args):
    if len(moved) == 3:
      raise KeyboardInterrupt
    moved.append(move(*args))

  with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
    m.setattr(store, 'move_case', killed)
    prepare_here(root, tmp_path / 's', shard=(0, 1))
  assert not (tmp_path / 's' / 'dataset.json').exists()
  assert prepare_here(root, tmp_path / 's', shard=(1, 2))  # any shard
  assert contents(tmp_path / 's') == contents(tmp_path / 'one')


def test_a_shard_again_changes_nothing_and_reads_no_scan(tmp_path, monkeypatch):
  root = make_many(tmp_path / 'raw', 5)
  index = prepare_here(root, tmp_path / 's', shard=(0, 1))
  before = contents(tmp_path / 's')
  monkeypatch.setattr(load_case, 'load_and_validate', None)
  for i in range(7):  # more shards than cases: some have nothing to do
    assert prepare_here(root, tmp_path / 's', shard=(i, 7)) == index
  assert contents(tmp_path / 's') == before


def test_a_preparation_of_other_cases_keeps_what_a_shard_has_staged(tmp_path):
  root = make_many(tmp_path / 'raw', 6)
  assert prepare_here(root, tmp_path / 's', shard=(0, 2)) is None
  assert len(prepare_here(root, tmp_path / 's', cases=['c0000', 'c0001'])['cases']) == 2
  assert staged(tmp_path / 's') == 2  # c0002 and c0004
  assert len(prepare_here(root, tmp_path / 's', shard=(1, 2))['cases']) == 6
  assert not (tmp_path / 's' / '.staging').exists()


def test_a_preparation_with_other_options_removes_what_was_staged(tmp_path):
  root = make_many(tmp_path / 'raw', 4)
  assert prepare_here(root, tmp_path / 's', shard=(0, 2)) is None
  prepare_here(root, tmp_path / 's', fit='crop_pad')
  assert not (tmp_path / 's' / '.staging').exists()


def test_shards_of_two_runs_publish_in_turn(tmp_path, monkeypatch):
  root = make_many(tmp_path / 'raw', 4)
  write, both = store.write_index, threading.Barrier(2)

  def slow_write(*args):
    with contextlib.suppress(threading.BrokenBarrierError):
      both.wait(0.5)  # for another thread that has read the index, too: there must be none
    return write(*args)

  monkeypatch.setattr(store, 'write_index', slow_write)
  runs = [
    threading.Thread(target=prepare_here, args=(root, tmp_path / 's'), kwargs=dict(shard=(0, 1), cases=cases))
    for cases in (['c0000', 'c0001'], ['c0002', 'c0003'])
  ]
  for run in runs:
    run.start()
  for run in runs:
    run.join()
  assert len(store.read_index(tmp_path / 's')['cases']) == 4


def test_problems_of_a_share_and_leaks_between_shares(tmp_path):
  root = make_many(tmp_path / 'raw', 4)
  label = (root / 'labels' / 'c0001.nii').read_bytes()
  (root / 'labels' / 'c0001.nii').write_bytes(label[:-40])
  assert prepare_here(root, tmp_path / 's', shard=(0, 2)) is None
  with pytest.raises(InputError, match='c0001.nii'):
    prepare_here(root, tmp_path / 's', shard=(1, 2))
  (root / 'labels' / 'c0001.nii').write_bytes(label)
  (root / 'images' / 'c0001.nii').write_bytes((root / 'images' / 'c0002.nii').read_bytes())
  with pytest.raises(InputError, match='is the same scan as'):
    prepare_here(root, tmp_path / 's', shard=(1, 2))
  assert not (tmp_path / 's' / 'dataset.json').exists()
  volumes.write_image(
    root / 'images' / 'c0001.nii',
    volumes.read_image(root / 'images' / 'c0000.nii').array - 1,
    volumes.read_image(root / 'images' / 'c0000.nii').geometry,
  )
  assert len(prepare_here(root, tmp_path / 's', shard=(1, 2))['cases']) == 4


def test_array_jobs_on_the_command_line_and_scans_added_later(tmp_path, run_main):
  root = make_many(tmp_path / 'raw', 5)
  arguments = (
    '--config=configs/folder.py',
    f'--config.data.root={root}',
    '--config.data.size=(16, 16)',
    f'--config.data.store={tmp_path}/s',
    f'--workdir={tmp_path}/run',
    '--config.runtime.workers=1',
  )
  task = ARRAY_TASK | {'SLURM_ARRAY_TASK_ID': '9'}
  said = run_main(*arguments, '--mode=prepare', **task).stderr
  assert (
    'shard 2/3 is done; 4 of 5 cases are not prepared yet' in said and not (tmp_path / 's' / 'dataset.json').exists()
  )
  said = run_main(*arguments, '--mode=prepare', '--shard=0/1', **task).stderr
  assert 'prepared cases: 4 train, 1 val' in said
  make_many(tmp_path / 'more', 6)
  for kind in ('images', 'labels'):
    (tmp_path / 'more' / kind / 'c0005.nii').rename(root / kind / 'c0005.nii')
  said = run_main(*arguments, '--config.loss.ce_afw.rare=("none",)', check=2).stderr  # which ends it before it trains
  assert f'1 cases of {root} are not in the store yet (c0005): preparing' in said
  assert 'c0005' in store.read_index(tmp_path / 's')['cases']
