"""Train, validation and test splits: published parts are kept, the other cases are assigned by a seed."""

import hashlib
import math
from collections.abc import Sequence

from afw_jax.data.sets.spec import PARTS
from afw_jax.errors import InputError


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
  order = sorted(free, key=lambda s: hashlib.sha256(f'{seed}/{s}'.encode(errors='surrogateescape')).hexdigest())
  for part, count in zip(PARTS, _counts(len(order), fractions)):
    for subject in order[:count]:
      out[part] += free[subject]
    order = order[count:]
  return {part: sorted(ids) for part, ids in out.items()}


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
