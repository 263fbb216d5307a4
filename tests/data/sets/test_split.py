"""Splits: partitions near the fractions, reproducible by the seed, by subject; published parts are kept."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afw_jax.data.sets.split import Fold, parse_fold, split_cases, split_fold
from afw_jax.errors import InputError


def named(n, part=None):
  return [(f'c{i:03d}', f'c{i:03d}', part) for i in range(n)]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.tuples(st.floats(0.1, 9), st.floats(0, 9), st.floats(0, 9)), st.integers(0, 9))
def test_split_is_a_partition_near_the_shares(n, fractions, seed):
  out = split_cases(named(n), fractions, seed)
  assert sorted(sum(out.values(), [])) == [c for c, _, _ in named(n)]
  assert out == split_cases(named(n)[::-1], fractions, seed)
  for part, f in zip(('train', 'val', 'test'), fractions):
    assert f > 0 or not out[part]
    assert abs(len(out[part]) - n * f / sum(fractions)) < 2 + 1e-9
    assert not (f and n >= 3) or out[part]
  assert not n or out['train']


def test_split_sizes_of_the_paper():
  sizes = lambda n, f: [len(v) for v in split_cases(named(n), f, 0).values()]
  assert sizes(40, (3, 1, 0)) == [30, 10, 0] and sizes(16, (3, 1, 0)) == [12, 4, 0]
  assert sizes(100, (6, 1, 3)) == [60, 10, 30] and sizes(200, (7.5, 1, 1.5)) == [150, 20, 30]
  assert sizes(1, (3, 1, 0)) == [1, 0, 0]


def test_split_depends_on_the_seed_and_keeps_subjects_together():
  assert split_cases(named(20), (1, 1, 0), 0) != split_cases(named(20), (1, 1, 0), 1)
  cases = [(f's{i}_{k}', f's{i}', None) for i in range(10) for k in 'ab']
  out = split_cases(cases, (6, 2, 2), 3)
  where = {c: part for part, ids in out.items() for c in ids}
  assert all(where[f's{i}_a'] == where[f's{i}_b'] for i in range(10)) and [len(v) for v in out.values()] == [12, 4, 4]


def test_given_parts_win():
  cases = named(10, 'train') + [('t', 't', 'test')]
  assert [len(v) for v in split_cases(cases, (1, 0, 0), 0).values()] == [10, 0, 1]
  assert [len(v) for v in split_cases(cases, (4, 1, 0), 0).values()] == [10, 0, 1]
  assert [len(v) for v in split_cases(cases, (4, 1, 0), 0, resplit_train=True).values()] == [8, 2, 1]
  with pytest.raises(InputError, match='own test part'):
    split_cases(cases, (6, 1, 3), 0)
  for bad in ((0, 1, 1), (1, -1, 1), (1, 1), (float('inf'), 1, 0)):
    with pytest.raises(InputError, match='fractions of'):
      split_cases(named(4), bad, 0)


FRACTIONS = (3, 1, 0)


def held_out(cases, count, seed=0, fractions=FRACTIONS):
  """The held-out case ids of each of the folds."""
  return [split_fold(cases, fractions, seed, Fold(k, count))['val'] for k in range(1, count + 1)]


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 40), st.integers(2, 10), st.integers(0, 9), st.integers(1, 3))
def test_every_case_is_held_out_in_one_fold_of_even_size(n, count, seed, scans):
  cases = [(f's{i:02d}_{k}', f's{i:02d}', None) for i in range(n) for k in range(scans)]
  if count > n:
    with pytest.raises(InputError, match=rf'{n} subject\(s\) cannot be dealt into {count} folds'):
      held_out(cases, count, seed)
    return
  folds = held_out(cases, count, seed)
  assert sorted(sum(folds, [])) == [case_id for case_id, _, _ in cases]
  subjects = [{case_id.split('_')[0] for case_id in fold} for fold in folds]
  assert sum(map(len, subjects)) == n  # no subject is in two folds
  assert max(map(len, subjects)) - min(map(len, subjects)) <= 1
  assert folds == held_out(cases[::-1], count, seed)
  for k, fold in enumerate(folds, 1):
    out = split_fold(cases, FRACTIONS, seed, Fold(k, count))
    assert sorted(out['train'] + fold) == sorted(sum(folds, [])) and not out['test']


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 60), st.integers(2, 10), st.integers(0, 99), st.text(min_size=1))
def test_a_case_more_moves_at_most_one_over_each_cut(n, count, seed, name):
  if count > n or name in {case_id for case_id, _, _ in named(n)}:
    return
  fold_of = lambda cases: {case_id: k for k, fold in enumerate(held_out(cases, count, seed)) for case_id in fold}
  before, after = fold_of(named(n)), fold_of([*named(n), (name, name, None)])
  moved = [(before[i], after[i]) for i in before if before[i] != after[i]]
  assert all(abs(a - b) == 1 for a, b in moved)
  assert len({(min(pair), max(pair)) for pair in moved}) == len(moved) <= count - 1


def test_folds_stay_as_they_are_and_depend_on_the_seed():
  numbers = lambda seed: [[int(case_id[1:]) for case_id in fold] for fold in held_out(named(8), 4, seed)]
  assert numbers(0) == [[1, 7], [3, 4], [0, 6], [2, 5]]
  assert numbers(1) != numbers(0)


def test_test_cases_are_never_dealt():
  given = [('a', 'a', 'train'), ('b', 'b', 'train'), ('c', 'c', 'val'), ('d', 'd', None), ('t', 't', 'test')]
  assert sorted(sum(held_out(given, 4), [])) == ['a', 'b', 'c', 'd']
  assert all(split_fold(given, FRACTIONS, 0, Fold(k, 4))['test'] == ['t'] for k in (1, 2, 3, 4))
  with pytest.raises(InputError, match='4 subject.* cannot be dealt into 5 folds'):
    held_out(given, 5)
  with pytest.raises(InputError, match='own test part'):
    held_out(given, 2, fractions=(6, 1, 3))
  test = split_cases(named(10), (6, 1, 3), 7)['test']
  folds = [split_fold(named(10), (6, 1, 3), 7, Fold(k, 3)) for k in (1, 2, 3)]
  assert [fold['test'] for fold in folds] == [test] * 3 and [len(fold['val']) for fold in folds] == [2, 2, 3]


@pytest.mark.parametrize(
  'text', ['0/5', '6/5', '1/1', '1/0', '2', '2/', '/5', '2/5/5', '-1/5', ' 2/5', '02/5', '2.0/5', 'a/b', '٢/٥']
)
def test_what_is_no_fold(text):
  with pytest.raises(InputError, match=r'data\.fold: .* is not a fold. Give K/N'):
    parse_fold(text)


def test_folds_by_name():
  assert parse_fold('') is None and parse_fold('5/5') == (5, 5) and parse_fold('10/12') == Fold(10, 12)
