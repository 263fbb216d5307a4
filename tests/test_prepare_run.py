"""Preparing for a run: what it needs, what has changed behind its store, and what a run that has begun is refused."""

import logging
import os
import shutil

import pytest
from tiny_dataset import add, describe, label_map, make, scan

from afw_jax import prepare as prepare_mode
from afw_jax import train, workdir
from afw_jax.config import build, default_config
from afw_jax.data import store
from afw_jax.data.formats import volumes
from afw_jax.data.preparation import load_case
from afw_jax.data.run_record import data_record
from afw_jax.errors import InputError
from afw_jax.training import checkpoint


@pytest.fixture
def loaded(monkeypatch):
  """Ids of the cases whose files were decoded."""
  load, ids = load_case.load_and_validate, []
  monkeypatch.setattr(load_case, 'load_and_validate', lambda case, spec: ids.append(case.id) or load(case, spec))
  monkeypatch.setattr('afw_jax.data.preparation.worker_pool.run_jobs', run_here)
  return ids


def config(folder, **changes):
  config = default_config()
  config.data.update({'dataset': 'folder', 'root': str(folder), 'size': (32, 32), 'spacing_mm': (1.0, 1.0), **changes})
  config.runtime.workers = 1
  return config


def prepare_run(config, folder, *, anew=False):
  store_dir = workdir.store_path(config, str(folder))
  prepare_mode.prepare(config, str(folder), store_dir, anew=anew, shard='', scheduler=None)
  return store_dir


def test_the_store_of_a_config_is_named_by_what_changes_voxels(tmp_path):
  name = lambda **changes: workdir.store_path(config(tmp_path, **changes), str(tmp_path / 'run'))
  same = dict(window='paper', fractions=(1.0, 1.0, 0.0), num_cases=3, split_seed=7, keep_defective=True)
  assert name() == name(**same) == workdir.store_path(config(tmp_path), str(tmp_path / 'other'))
  different = [
    name(**{key: value})
    for key, value in dict(size=(64, 64), spacing_mm=(2.0, 2.0), fit='crop_pad', interpolation='linear').items()
  ]
  assert len({name(), name(root='elsewhere'), name(dataset='chaos_ct'), *different}) == 7
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
  (root / 'images').rename(root / 'gone')
  with pytest.raises(InputError, match='has neither images/ nor imagesTr/'):
    prepare_run(config(root), tmp_path / 'd')
  root.rename(tmp_path / 'offline')
  assert prepare_run(config(root), tmp_path / 'd') == first  # the store is enough


def run_here(function, jobs, *, workers, progress):
  return [function(job) for job in jobs]


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


def replace_scan(root, i):
  path = root / 'images' / f'c{i}.nii.gz'
  volumes.write_image(path, scan(100 + i), volumes.read_image(path).geometry)


def correct_label(root, i):
  grid = volumes.read_image(root / 'images' / f'c{i}.nii.gz').geometry
  volumes.write_label(root / 'labels' / f'c{i}.nii.gz', label_map(i + 1), grid)


def remove(root, i):
  for kind in ('images', 'labels'):
    (root / kind / f'c{i}.nii.gz').unlink()


def touch(root, i):
  for kind in ('images', 'labels'):
    os.utime(root / kind / f'c{i}.nii.gz', (1, 1))


def contents_of(index):
  return {case_id: case['content_sha256'] for case_id, case in index['cases'].items()}


def selected(run, folder):
  index = store.read_index(prepare_run(run, folder))
  return index, build.selection(run, index)


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


SPLIT = {'train': ['c0', 'c1'], 'val': ['c2'], 'test': ['c3']}


@pytest.fixture
def begun(tmp_path, loaded, monkeypatch):
  """(data set, config, workdir) of a run that has a checkpoint."""
  root = make(tmp_path / 'raw', n=4, split=SPLIT)
  run = config(root)
  index, chosen = selected(run, tmp_path / 'a')
  meta = {'data': data_record(index, chosen)}
  monkeypatch.setattr(checkpoint, 'read_meta', lambda folder: meta if folder.startswith(str(tmp_path / 'a')) else None)
  loaded.clear()
  return root, run, tmp_path / 'a'


@pytest.mark.parametrize('change', [replace_scan, correct_label, remove])
@pytest.mark.parametrize('part', ['train', 'val'])
def test_a_run_that_has_begun_is_refused_changed_cases(begun, loaded, part, change):
  root, run, folder = begun
  case_id = SPLIT[part][-1]
  change(root, int(case_id[1:]))
  describe(root, split={name: [i for i in ids if change is not remove or i != case_id] for name, ids in SPLIT.items()})
  store_dir = workdir.store_path(run, str(folder))
  before = store.read_index(store_dir)
  said = f'{case_id} any more, which is in the {part} part' if change is remove else f'{part} part .case {case_id}'
  for call in (lambda: prepare_run(run, folder), lambda: prepare_mode.check_current(run, str(folder), store_dir)):
    with pytest.raises(InputError, match=f'{said}.*Choose another --workdir'):
      call()
  assert store.read_index(store_dir) == before and not loaded


@pytest.mark.parametrize('part', ['train', 'val', 'test'])
def test_preparing_anew_says_which_cases_of_a_begun_run_have_changed(begun, caplog, part):
  root, run, folder = begun
  case_id = SPLIT[part][0]
  touch(root, int(case_id[1:]))
  prepare_run(run, folder, anew=True)
  assert 'cannot be trained further' not in caplog.text
  replace_scan(root, int(case_id[1:]))
  prepare_run(run, folder, anew=True)
  assert (f'cannot be trained further: it began with other content of {case_id}.' in caplog.text) is (part != 'test')


def test_a_changed_test_case_is_prepared_again_for_a_run_that_has_begun(begun, loaded):
  root, run, folder = begun
  correct_label(root, 3)
  with pytest.raises(InputError, match=r'c3.nii.gz .case c3. changed after it was prepared. Run --mode=prepare'):
    prepare_mode.check_current(run, str(folder), workdir.store_path(run, str(folder)))
  prepare_run(run, folder)
  assert loaded == ['c3']
  prepare_mode.check_current(run, str(folder), workdir.store_path(run, str(folder)))


def test_a_removed_test_case_and_new_files_do_not_stop_a_run_that_has_begun(begun, loaded, caplog):
  root, run, folder = begun
  remove(root, 3)
  describe(root, split={**SPLIT, 'test': []})
  prepare_run(run, folder)
  assert 'has no case c3 any more' in caplog.text
  (root / 'images' / 'c3.nii.gz').write_bytes(b'being copied')  # its label is not there yet
  prepare_run(run, folder)
  assert 'has no label file named c3' in caplog.text and 'the files that they were made from' in caplog.text
  correct_label(root, 0)
  with pytest.raises(InputError, match='c0.nii.gz: has changed since the run'):  # it is still noticed
    prepare_run(run, folder)
  assert not loaded


def test_a_store_that_cannot_be_written_is_compared_all_the_same(begun, monkeypatch):
  root, run, folder = begun
  for i in (0, 1):
    touch(root, i)

  def refuse(*arguments):
    raise InputError('dataset.json', 'cannot be written', 'Check')

  monkeypatch.setattr('afw_jax.data.preparation.publish.note_stamps', refuse)
  prepare_run(run, folder)
  correct_label(root, 0)
  with pytest.raises(InputError, match='c0.nii.gz: has changed since the run'):
    prepare_run(run, folder)


@pytest.mark.parametrize('change', [replace_scan, correct_label, remove])
def test_modes_that_prepare_nothing_refuse_a_store_that_is_not_current(tmp_path, loaded, change):
  root = make(tmp_path / 'raw', n=4)
  run = config(root)
  store_dir = prepare_run(run, tmp_path / 'a')
  prepare_mode.check_current(run, str(tmp_path / 'b'), store_dir)
  change(root, 2)
  with pytest.raises(InputError, match='is not up to date: .*Run --mode=prepare'):
    prepare_mode.check_current(run, str(tmp_path / 'b'), store_dir)
  root.rename(tmp_path / 'offline')
  prepare_mode.check_current(run, str(tmp_path / 'b'), store_dir)  # the store is enough


def test_a_resumed_training_refuses_a_store_with_other_cases(tmp_path, loaded, monkeypatch):
  root = make(tmp_path / 'raw', n=4, split=SPLIT)
  run = config(root)
  index, chosen = selected(run, tmp_path / 'a')
  meta = {'data': data_record(index, chosen)}
  for i in (1, 3):
    replace_scan(root, i)
  store_dir = prepare_run(run, tmp_path / 'b')  # another run prepares the new files
  monkeypatch.setattr(checkpoint, 'read_meta', lambda folder: meta)
  with pytest.raises(InputError, match='trained with other scans or labels of c1 than'):  # c3 is a test case
    train.train(run, str(tmp_path / 'a'), store_dir)
