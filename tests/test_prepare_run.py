"""Preparing for a run: what it needs, and what has changed behind its store."""

import logging
import shutil

import pytest
from changing_data import (
  config,
  contents_of,
  correct_label,
  prepare_run,
  remove,
  replace_scan,
  run_here,
  selected,
  touch,
)
from tiny_dataset import add, make

from afw_jax import workdir
from afw_jax.config import build
from afw_jax.data import store
from afw_jax.data.run_record import data_record
from afw_jax.errors import InputError
from afw_jax.training import checkpoint


def test_the_store_of_a_config_is_named_by_what_changes_voxels(tmp_path):
  name = lambda **changes: workdir.store_path(config(tmp_path, **changes), str(tmp_path / 'run'))
  same = dict(window='paper', fractions=(1.0, 1.0, 0.0), num_cases=3, split_seed=7, keep_defective=True, fold='2/3')
  assert name() == name(**same) == workdir.store_path(config(tmp_path), str(tmp_path / 'other'))
  different = [
    name(**{key: value})
    for key, value in dict(size=(64, 64), spacing_mm=(2.0, 2.0), fit='crop_pad', interpolation='linear').items()
  ]
  different += [name(organs='liver'), name(organs='liver,spleen'), name(overlap='last')]
  assert len({name(), name(root='elsewhere'), name(dataset='chaos_ct'), *different}) == 10
  assert name(store='mine') == 'mine'


def test_runs_prepare_what_is_missing_and_say_what_they_use(tmp_path, loaded, caplog, monkeypatch):
  caplog.set_level(logging.INFO, 'afw_jax')
  monkeypatch.setattr('afw_jax.data.preparation.worker_pool.run_jobs', run_here)
  root = make(tmp_path / 'raw', n=6)
  first = prepare_run(config(root, num_cases=3), tmp_path / 'a')
  assert len(loaded) == 3 and 'prepared cases: 2 train, 1 val, 0 test' in caplog.text
  assert prepare_run(config(root), tmp_path / 'b') == first
  assert sorted(loaded) == [f'c{i}' for i in range(6)] and '3 cases of' in caplog.text
  caplog.clear()
  assert prepare_run(config(root, split_seed=5, window='transunet'), tmp_path / 'c') == first
  assert len(loaded) == 6 and 'no test part' in caplog.text and 'preparing' not in caplog.text
  for k in (1, 2, 3):
    assert prepare_run(config(root, fold=f'{k}/3'), tmp_path / f'fold {k}') == first
  assert len(loaded) == 6 and 'fold 3 of 3: 2 of 6 cases are held out' in caplog.text
  (root / 'images').rename(root / 'gone')
  with pytest.raises(InputError, match='has neither images/ nor imagesTr/'):
    prepare_run(config(root), tmp_path / 'd')
  root.rename(tmp_path / 'offline')
  assert prepare_run(config(root), tmp_path / 'd') == first  # the store is enough


def test_a_run_that_has_begun_keeps_its_cases(tmp_path, loaded, monkeypatch):
  monkeypatch.setattr('afw_jax.data.preparation.worker_pool.run_jobs', run_here)
  root = make(tmp_path / 'raw', n=6)
  run = config(root)
  store_dir = prepare_run(run, tmp_path / 'a')
  index = store.read_index(store_dir)
  meta = {'data': data_record(index, build.selection(run, index))}
  add(root, 6, 7)
  prepare_run(run, tmp_path / 'b')
  grown = store.read_index(store_dir)
  assert len(grown['cases']) == 8 and build.selection(run, grown).ids != build.selection(run, index).ids
  assert build.selection(run, grown, meta).splits == meta['data']['splits']
  monkeypatch.setattr(checkpoint, 'read_meta', lambda folder: meta)
  shutil.rmtree(store_dir)
  loaded.clear()
  prepare_run(run, tmp_path / 'a')  # its store is lost: it prepares its own cases, not the new ones
  assert sorted(loaded) == [f'c{i}' for i in range(6)]
  shutil.rmtree(store_dir)
  prepare_run(run, tmp_path / 'a', anew=True)
  assert sorted(store.read_index(store_dir)['cases']) == [f'c{i}' for i in range(6)]
  damaged = store.read_index(store_dir)
  del damaged['cases']['c1']
  with pytest.raises(InputError, match='lacks 1 of the 6 cases that this run has begun with .c1.*--mode=prepare'):
    build.selection(run, damaged, meta)
  shutil.rmtree(root)
  prepare_run(run, tmp_path / 'a')
  assert build.selection(run, store.read_index(store_dir), meta).splits == meta['data']['splits']


# --- files that change behind a store --------------------------------------------------------------------------------


@pytest.mark.parametrize('change', [replace_scan, correct_label])
def test_changed_files_are_prepared_again_and_only_they(tmp_path, loaded, caplog, change):
  caplog.set_level(logging.INFO, 'afw_jax')
  root = make(tmp_path / 'raw', n=5)
  run = config(root)
  before, _ = selected(run, tmp_path / 'a')
  change(root, 2)
  touch(root, 3)
  loaded.clear()
  caplog.clear()
  after, _ = selected(run, tmp_path / 'b')
  assert loaded == ['c2'] and 'prepared again, because their files have changed: c2' in caplog.text
  differing = [
    i for i in before['cases'] if before['cases'][i]['content_sha256'] != after['cases'][i]['content_sha256']
  ]
  assert differing == ['c2']
  selected(run, tmp_path / 'c')
  assert loaded == ['c2']


def test_a_second_start_reads_no_file_even_if_all_were_touched(tmp_path, loaded, monkeypatch):
  root = make(tmp_path / 'raw', n=3)
  run = config(root)
  first, _ = selected(run, tmp_path / 'a')
  shutil.copytree(root, tmp_path / 'copy')
  shutil.rmtree(root)
  (tmp_path / 'copy').rename(root)
  for i in range(3):
    touch(root, i)
  second, _ = selected(run, tmp_path / 'a')
  monkeypatch.setattr('afw_jax.data.preparation.sources._file_digest', None)
  third, _ = selected(run, tmp_path / 'a')
  assert sorted(loaded) == ['c0', 'c1', 'c2'] and second == third
  assert contents_of(first) == contents_of(third)


def test_another_data_set_with_the_same_names_replaces_the_cases_of_a_store(tmp_path, loaded):
  one, two = make(tmp_path / 'one', n=3), make(tmp_path / 'two', n=4)
  for i in range(4):
    replace_scan(two, i)
  first, _ = selected(config(one, store=str(tmp_path / 's')), tmp_path / 'a')
  second, chosen = selected(config(two, store=str(tmp_path / 's')), tmp_path / 'b')
  assert chosen.ids == ['c0', 'c1', 'c2', 'c3'] and len(loaded) == 7
  assert not set(contents_of(first).values()) & set(contents_of(second).values())


def test_a_case_that_was_removed_is_not_used_again(tmp_path, loaded):
  root = make(tmp_path / 'raw', n=5)
  selected(config(root), tmp_path / 'a')
  remove(root, 1)
  _, chosen = selected(config(root), tmp_path / 'b')
  assert chosen.ids == ['c0', 'c2', 'c3', 'c4'] and len(loaded) == 5


def test_preparing_mends_cases_whose_bytes_have_changed(tmp_path, loaded):
  run = config(make(tmp_path / 'raw', n=3))
  store_dir = prepare_run(run, tmp_path / 'a')
  before = contents_of(store.read_index(store_dir))
  damaged = store.case_folder(store_dir, 'c1') / 'label.npy'
  whole = damaged.read_bytes()
  damaged.write_bytes(whole[:128] + bytes(len(whole) - 128))
  loaded.clear()
  prepare_run(run, tmp_path / 'a', anew=True)
  assert loaded == ['c1'] and damaged.read_bytes() == whole and contents_of(store.read_index(store_dir)) == before
  assert store.read_case(store_dir, 'c1', verify=True).id == 'c1'
