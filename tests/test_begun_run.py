"""A run that has begun: it keeps its cases, and is refused others."""

import pytest
from changing_data import config, contents_of, correct_label, prepare_run, remove, replace_scan, selected, touch
from tiny_dataset import describe, make

from afw_jax import prepare as prepare_mode
from afw_jax import train, workdir
from afw_jax.data import store
from afw_jax.data.run_record import data_record
from afw_jax.errors import InputError
from afw_jax.training import checkpoint

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


def test_a_file_that_was_restored_is_prepared_again_for_the_run_that_began_with_it(begun, loaded, tmp_path):
  root, run, folder = begun
  path = root / 'labels' / 'c0.nii.gz'
  original = path.read_bytes()
  before = contents_of(store.read_index(workdir.store_path(run, str(folder))))
  correct_label(root, 0)
  store_dir = prepare_run(run, tmp_path / 'b')  # another run
  assert contents_of(store.read_index(store_dir))['c0'] != before['c0']
  path.write_bytes(original)
  prepare_run(run, folder)
  assert contents_of(store.read_index(store_dir)) == before
  prepare_mode.check_current(run, str(folder), store_dir)


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


def test_a_run_goes_on_with_its_own_fold_only(begun):
  """Also where config.json, which is compared first, is gone."""
  root, run, folder = begun
  store_dir = workdir.store_path(run, str(folder))
  run.data.fold = '2/3'
  for call in (
    lambda: prepare_mode.check_current(run, str(folder), store_dir),
    lambda: train.train(run, str(folder), store_dir),
  ):
    with pytest.raises(InputError, match=r"data.fold: is '2/3', but the checkpoints of this run were trained with ''"):
      call()
