"""Scores of unions of ids: those of one id in place of all of theirs."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from afw_jax.errors import InputError
from afw_jax.metrics import score_case


def organs(seed):
  noise = np.random.default_rng(seed).normal(size=(4, 8, 13, 11))
  return np.argmax(gaussian_filter(noise, (0, 1.3, 1.3, 1.3)), axis=0).astype(np.uint8)  # ids 0 to 3


def test_a_union_is_scored_as_one_organ():
  true, pred = organs(1), organs(2)
  pred[pred == 3] = 0
  found = score_case(pred, true, spacing_mm=(3, 1, 2), labels={'all': (1, 2, 3), 'two': (3, 2), 'one': 1, 'alone': [3]})
  for name, ids in {'all': (1, 2, 3), 'two': (2, 3), 'one': (1,), 'alone': (3,)}.items():
    maps = (np.isin(array, ids).astype(np.uint8) for array in (pred, true))
    assert found[name] == score_case(*maps, spacing_mm=(3, 1, 2), labels={'it': 1})['it'], name
  assert found['alone']['missed'] and not found['two']['missed']


def test_the_background_may_be_part_of_a_union():
  true, pred = organs(1), organs(2)
  found = score_case(pred, true, spacing_mm=(1, 1, 1), labels={'rest': (0, 1)})['rest']
  a, b = pred < 2, true < 2
  assert found['dsc'] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize(
  'labels', [{'a': ()}, {'a': (1, 2.5)}, {'a': (1, 2), 'b': (2, 1)}, {'a': (1, -2)}, {'a': (1, 1)}]
)
def test_unions_that_make_no_sense(labels):
  with pytest.raises(InputError, match='does not map organs to distinct ids'):
    score_case(organs(1), organs(2), spacing_mm=(1, 1, 1), labels=labels)
