"""One store serves every split, window and number of cases: each scan is prepared once."""

import threading
import time

import pytest
from tiny_dataset import SMALL, add, contents, describe, geometry, make, prepare_and_select, prepare_store, scan

from afw_jax.data import pipeline, store
from afw_jax.data.formats import volumes
from afw_jax.data.preparation import prepare, publish
from afw_jax.data.preparation.options import StoreOptions
from afw_jax.data.run_record import data_record, recorded_selection
from afw_jax.data.selection import SelectionOptions, select
from afw_jax.system.atomic_files import process_name

SIZE = StoreOptions('folder', size=(32, 32))


def test_folds_and_windows_share_a_store_and_load_each_scan_once(tmp_path, loaded):
  root = make(tmp_path / 'raw', n=6)
  runs = [
    prepare_and_select('folder', root, tmp_path / 's', seed=seed, window=window, fractions=fractions, **SMALL)
    for seed, window, fractions in (
      (0, None, None),
      (1, 'transunet', (2, 1, 0)),
      (2, 'percentile', (1, 1, 1)),
      (0, (-10, 90), (1, 1, 0)),
    )
  ]
  assert sorted(loaded) == [f'c{i}' for i in range(6)]
  indices, selections = zip(*runs)
  assert all(index == indices[0] for index in indices)
  assert len({str(chosen.splits) for chosen in selections}) == 4
  for chosen in selections:
    source = pipeline.make_source(str(tmp_path / 's'), chosen.splits['train'], chosen.windows)
    assert tuple(source.read([0])['window'][0]) == pytest.approx(chosen.windows[source.records[0][0]])


def test_only_missing_cases_are_prepared_and_the_others_stay(tmp_path, loaded):
  root = make(tmp_path / 'raw', n=6)
  first, chosen = prepare_and_select('folder', root, tmp_path / 's', cases=3, **SMALL)
  assert sorted(loaded) == chosen.ids == sorted(first['cases'])
  record = data_record(first, chosen)
  assert prepare.outdated(tmp_path / 's', SIZE, root, SelectionOptions(cases=3)) == ''
  reason = prepare.outdated(tmp_path / 's', SIZE, root, SelectionOptions(cases=3, seed=1))
  other, _ = prepare_and_select('folder', root, tmp_path / 's', cases=3, seed=1, verify=False, **SMALL)
  assert f'{len(other["cases"]) - 3} cases of {root} are not in the store yet' in reason
  assert len(loaded) == len(set(loaded)) == len(other['cases']) > 3
  assert recorded_selection(other, record).splits == chosen.splits == select(other, SelectionOptions(cases=3)).splits
  prepare_store('folder', root, tmp_path / 's', **SMALL)
  prepare_store('folder', root, tmp_path / 'one', **SMALL)
  assert contents(tmp_path / 's') == contents(tmp_path / 'one')


def test_scans_added_later_change_no_run_that_has_begun(tmp_path):
  root = make(tmp_path / 'raw', n=6)
  index, chosen = prepare_and_select('folder', root, tmp_path / 's', **SMALL)
  add(root, 6, 7, 8)
  assert '3 cases' in prepare.outdated(tmp_path / 's', SIZE, root, SelectionOptions())
  grown, now = prepare_and_select('folder', root, tmp_path / 's', **SMALL)
  again = recorded_selection(grown, data_record(index, chosen))
  assert len(now.ids) == 9 and again.splits == chosen.splits and again.windows == chosen.windows


def test_scans_removed_later_are_not_selected_and_stay_for_runs_that_have_begun(tmp_path):
  root = make(tmp_path / 'raw', n=4)
  index, chosen = prepare_and_select('folder', root, tmp_path / 's', **SMALL)
  for kind in ('images', 'labels'):
    (root / kind / 'c1.nii.gz').unlink()
  assert 'have changed' in prepare.outdated(tmp_path / 's', SIZE, root, SelectionOptions())
  smaller, now = prepare_and_select('folder', root, tmp_path / 's', verify=False, **SMALL)
  assert now.ids == ['c0', 'c2', 'c3'] and 'c1' in smaller['cases']
  assert recorded_selection(smaller, data_record(index, chosen)).ids == chosen.ids


def test_scans_that_a_run_does_not_use_change_nothing(tmp_path):
  root = make(tmp_path / 'raw', n=3)
  prepare_store('folder', root, tmp_path / 's', **SMALL)
  (root / 'imagesTs').mkdir()
  volumes.write_image(root / 'imagesTs' / 'unlabelled.nii.gz', scan(7), geometry())
  assert prepare.outdated(tmp_path / 's', SIZE, root, SelectionOptions()) == ''
  add(root, 8)
  assert prepare.outdated(tmp_path / 's', SIZE, root, SelectionOptions(cases=['c0', 'c1', 'c2'])) == ''
  assert '1 cases' in prepare.outdated(tmp_path / 's', SIZE, root, SelectionOptions())


def test_a_new_split_in_dataset_json_counts_without_reading_a_scan(tmp_path, loaded):
  root = make(tmp_path / 'raw', n=3, split={'train': ['c0'], 'val': ['c1'], 'test': ['c2']})
  prepare_store('folder', root, tmp_path / 's', **SMALL)
  describe(root, split={'train': ['c2'], 'val': ['c1'], 'test': ['c0']})
  assert 'the scans or the split of' in prepare.outdated(tmp_path / 's', SIZE, root, SelectionOptions())
  _, chosen = prepare_and_select('folder', root, tmp_path / 's', verify=False, **SMALL)
  assert chosen.splits == {'train': ['c2'], 'val': ['c1'], 'test': ['c0']} and len(loaded) == 3


def test_a_damaged_case_is_prepared_again(tmp_path, loaded):
  root = make(tmp_path / 'raw', n=2)
  prepare_store('folder', root, tmp_path / 's', **SMALL)
  before = contents(tmp_path / 's')
  (tmp_path / 's' / 'cases' / 'c1' / 'image.npy').write_bytes(b'half')
  prepare_store('folder', root, tmp_path / 's', verify=False, **SMALL)
  assert loaded[2:] == ['c1'] and contents(tmp_path / 's') == before


def test_the_index_is_readable_while_cases_are_added(tmp_path, monkeypatch):
  root = make(tmp_path / 'raw', n=4)
  first = prepare_store('folder', root, tmp_path / 's', cases=['c0', 'c1'], **SMALL)
  move, seen = store.move_case, []
  monkeypatch.setattr(store, 'move_case', lambda *args: seen.append(store.read_index(tmp_path / 's')) or move(*args))
  prepare_store('folder', root, tmp_path / 's', **SMALL)
  assert seen == [first, first]


def test_a_second_process_waits_for_the_first(tmp_path, caplog):
  root = make(tmp_path / 'raw', n=2)
  with publish.lock(tmp_path / 's'):
    thread = threading.Thread(target=prepare_store, args=('folder', root, tmp_path / 's'), kwargs=SMALL)
    thread.start()
    end = time.monotonic() + 60
    while 'waiting for it' not in caplog.text and time.monotonic() < end:
      time.sleep(0.01)
    assert f'is being prepared by another process ({process_name()}, since 20' in caplog.text
    assert not (tmp_path / 's' / 'dataset.json').exists()
  thread.join(60)
  assert len(store.read_index(tmp_path / 's')['cases']) == 2
