"""Splits: partitions near the fractions, reproducible by the seed, by subject; published parts are kept."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afw_jax.data.sets.split import split_cases
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
