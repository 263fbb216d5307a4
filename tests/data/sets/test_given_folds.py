"""Folds of nnU-Net's splits_final.json: used as they are, or refused with the name of what is wrong."""

import json

import pytest
from tiny_dataset import make, prepare_and_select

from afw_jax.data.sets.given_folds import read_folds, split_given
from afw_jax.data.sets.split import Fold
from afw_jax.errors import InputError

FOLDS = [{'train': ['c0', 'c1'], 'val': ['c2']}, {'train': ['c1', 'c2'], 'val': ['c0']}]
CASES = [(f'c{i}', f'c{i}', 'test' if i == 4 else None) for i in range(5)]


def write(folder, content):
  (folder / 'splits_final.json').write_text(content if isinstance(content, str) else json.dumps(content), 'utf-8')


def test_an_entry_is_the_fold_of_its_number(tmp_path):
  write(tmp_path, FOLDS)
  folds = read_folds(str(tmp_path))
  second = split_given(CASES, folds, Fold(2, 2), drawn=False)
  assert second == {'train': ['c1', 'c2'], 'val': ['c0'], 'test': ['c4']}
  assert read_folds(str(tmp_path / 'other')) == ()


@pytest.mark.parametrize(
  'content, said',
  [
    ('{', 'splits_final.json'),
    ({'train': ['c0'], 'val': ['c1']}, 'is not a JSON list'),
    ([], 'is not a list of folds'),
    ([{'train': ['c0']}], 'is not a list of folds'),
    ([{'train': ['c0'], 'val': []}], 'is not a list of folds'),
    ([{'train': ['c0'], 'val': [1]}], 'is not a list of folds'),
    ([FOLDS[0], {'train': ['c0', 'c1'], 'val': ['c1']}], 'fold 2 lists c1 twice'),
  ],
)
def test_a_file_of_another_form_is_refused(tmp_path, content, said):
  write(tmp_path, content)
  with pytest.raises(InputError, match=said) as raised:
    read_folds(str(tmp_path))
  assert 'Write [{"train"' in str(raised.value) or 'Keep each case' in str(raised.value)


@pytest.mark.parametrize(
  'folds, fold, said',
  [
    (FOLDS, Fold(1, 5), 'is one of 5 folds, but splits_final.json has 2. Give K/2'),
    ([{'train': ['c0', 'x'], 'val': ['c2']}, FOLDS[1]], Fold(1, 2), 'fold 1 lists x: no usable case'),
    ([{'train': ['c0', 'c4'], 'val': ['c2']}, FOLDS[1]], Fold(1, 2), 'fold 1 lists c4 of the test part'),
  ],
)
def test_a_fold_that_does_not_fit_the_cases_is_refused(folds, fold, said):
  with pytest.raises(InputError, match=said):
    split_given(CASES, folds, fold, drawn=False)


def test_a_run_uses_them_and_a_change_of_the_file_counts_at_once(tmp_path):
  root = make(tmp_path / 'data', n=4)
  write(root, FOLDS)
  _, without = prepare_and_select('folder', str(root), str(tmp_path / 'store'))
  assert any('has 2 folds, which are not used: data.fold=1/2' in note for note in without.notes)
  _, first = prepare_and_select('folder', str(root), str(tmp_path / 'store'), fold='1/2')
  assert first.splits == {'train': ['c0', 'c1'], 'val': ['c2'], 'test': []}
  assert first.excluded == {'c3': 'not in fold 1/2 of splits_final.json'}
  write(root, [FOLDS[1], FOLDS[0]])
  _, changed = prepare_and_select('folder', str(root), str(tmp_path / 'store'), fold='1/2')
  assert changed.splits == {'train': ['c1', 'c2'], 'val': ['c0'], 'test': []}
  _, drawn = prepare_and_select('folder', str(root), str(tmp_path / 'store'), fold='1/2', cases=['c0', 'c2'])
  assert drawn.splits == {'train': ['c2'], 'val': ['c0'], 'test': []}
