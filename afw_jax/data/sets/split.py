"""Train, validation and test splits, and folds: published parts are kept, the other cases are assigned by a seed."""

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from afw_jax.data.sets.spec import PARTS
from afw_jax.errors import InputError


class Fold(NamedTuple):
  """One fold of a cross-validation.

  Attributes:
    number: of the fold that is held out, from 1.
    count: of folds.
  """

  number: int
  count: int


def parse_fold(text: str) -> Fold | None:
  """The fold that 'K/N' names: the K-th of N, both counted from 1; None for ''.

  Raises:
    InputError: the text is not of this form, N is below 2, or K is not from 1 to N.
  """
  if not text:
    return None
  found = re.fullmatch('([1-9][0-9]{0,5})/([1-9][0-9]{0,5})', text)
  fold = Fold(*map(int, found.groups())) if found else None
  if fold is None or fold.count < 2 or fold.number > fold.count:
    raise InputError(
      'data.fold', f'{text!r} is not a fold', 'Give K/N with N from 2 and K from 1 to N: 2/5 is the second of five'
    )
  return fold


def split_cases(
  cases: Sequence[tuple[str, str, str | None]], fractions: Sequence[float], seed: int, *, resplit_train: bool = False
) -> dict[str, list[str]]:
  """Assigns every case to train, val or test.

  Cases with a published or given part keep it. The others are assigned by subject, in an order that depends on the seed
  and the subject's name alone, so that adding a case does not shuffle the others.

  Args:
    cases: (case id, subject, part or None) of each.
    fractions: of (train, val, test) for the cases without a part; they need not sum to 1.
    seed: of the order.
    resplit_train: also divide the given train cases between train and val, if no val part is given.

  Returns:
    {'train': [...], 'val': [...], 'test': [...]}, each sorted. Parts may be empty; train only if every part is given.

  Raises:
    InputError: invalid fractions, or a test fraction although a test part is given.
  """
  fractions = tuple(float(f) for f in fractions)
  if len(fractions) != 3 or not all(math.isfinite(f) and f >= 0 for f in fractions) or fractions[0] <= 0:
    raise InputError(
      f'split fractions {fractions}',
      'are not fractions of (train, val, test)',
      'Give three numbers, none negative and train above 0, such as (6, 1, 3)',
    )
  given = {part for _, _, part in cases if part}
  if 'test' in given and fractions[2]:
    raise InputError(
      f'split fractions {fractions}',
      'ask for test cases, but the data set has its own test part',
      'Set the third number to 0',
    )
  out: dict[str, list[str]] = {part: [] for part in PARTS}
  free: dict[str, list[str]] = {}
  for case_id, subject, part in cases:
    if part is None or (resplit_train and part == 'train' and 'val' not in given):
      free.setdefault(subject, []).append(case_id)
    else:
      out[part].append(case_id)
  order = _ordered(free, seed)
  for part, count in zip(PARTS, _counts(len(order), fractions)):
    for subject in order[:count]:
      out[part] += free[subject]
    order = order[count:]
  return {part: sorted(ids) for part, ids in out.items()}


def split_fold(
  cases: Sequence[tuple[str, str, str | None]], fractions: Sequence[float], seed: int, fold: Fold
) -> dict[str, list[str]]:
  """Holds out one fold of a cross-validation as the val part.

  The test part is the one that `split_cases` makes: a published or given one, or that of the third fraction. Whatever
  else there is, given train and val parts included, is dealt: the subjects are put in an order that depends on the
  seed and their names alone, and cut into N pieces whose sizes differ by at most one subject. So each case is held out
  in exactly one of the N folds. One subject more shifts each of the N - 1 cuts by at most one subject: no more than
  N - 1 of the others change their fold (about N / 3 on average), each to a neighbouring one.

  Args:
    cases, fractions, seed: as of `split_cases`; of the fractions only the third counts.
    fold: the one to hold out.

  Returns:
    {'train': [...], 'val': [...], 'test': [...]}, each sorted; only test can be empty.

  Raises:
    InputError: as `split_cases`, or fewer subjects than folds.
  """
  test = split_cases(cases, fractions, seed)['test']
  kept, dealt = set(test), {}
  for case_id, subject, _ in cases:
    if case_id not in kept:
      dealt.setdefault(subject, []).append(case_id)
  if len(dealt) < fold.count:
    raise InputError(
      'data.fold',
      f'{len(dealt)} subject(s) cannot be dealt into {fold.count} folds (cases of the test part are not dealt)',
      'Ask for fewer folds or use more cases',
    )
  order = _ordered(dealt, seed)
  first, last = ((fold.number - i) * len(order) // fold.count for i in (1, 0))
  cases_of = lambda subjects: sorted(case_id for subject in subjects for case_id in dealt[subject])
  return {'train': cases_of(order[:first] + order[last:]), 'val': cases_of(order[first:last]), 'test': test}


def _ordered(subjects: Iterable[str], seed: int) -> list[str]:
  """Subjects in an order that depends on the seed and, for any two of them, on their names alone."""
  return sorted(subjects, key=lambda s: hashlib.sha256(f'{seed}/{s}'.encode(errors='surrogateescape')).hexdigest())


def _counts(n: int, fractions: Sequence[float]) -> tuple[int, int, int]:
  """Whole numbers of sum n, by largest remainder; every part with a fraction gets 1 if n allows, train first."""
  exact = [n * f / sum(fractions) for f in fractions]
  counts = [math.floor(e) for e in exact]
  for i in sorted(range(3), key=lambda i: (counts[i] - exact[i], i))[: n - sum(counts)]:
    counts[i] += 1
  for i in range(3):  # no part with a fraction stays empty while another has two
    if fractions[i] and not counts[i] and max(counts) > 1:
      counts[counts.index(max(counts))] -= 1
      counts[i] += 1
  if n and not counts[0]:
    counts[counts.index(max(counts))] -= 1
    counts[0] += 1
  return tuple(counts)
