"""Voxels of the reference that count nowhere: scores are those of both maps without them."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from afw_jax.errors import InputError
from afw_jax.metrics import dice_per_class, score_case

OPTIONS = dict(spacing_mm=(3.0, 1.0, 1.5), labels={'a': 1, 'b': 2, 'c': 3})


def organs(seed):
  """Ids 0 to 3 in smooth areas."""
  noise = np.random.default_rng(seed).normal(size=(3, 9, 14, 12))
  return np.argmax([np.full((9, 14, 12), 0.1), *gaussian_filter(noise, (0, 1.3, 1.3, 1.3))], axis=0).astype(np.uint8)


@pytest.mark.parametrize('convention', ['strict', 'transunet', 'unetrpp', 'monai'])
def test_ignored_voxels_count_nowhere(convention):
  true, pred = organs(3), organs(4)
  unlabelled = organs(5) == 2
  marked = np.where(unlabelled, 255, true)
  options = OPTIONS | {'convention': convention}
  expected = score_case(np.where(unlabelled, 0, pred), np.where(unlabelled, 0, true), **options)
  assert score_case(pred, marked, **options, ignored=255) == expected
  assert score_case(pred, marked, **options) != expected
  np.testing.assert_array_equal(
    dice_per_class(pred, marked, 4, ignored=255)[1:], [expected[organ]['dsc'] for organ in 'abc']
  )


def test_a_reference_in_which_nothing_counts():
  nothing = np.full_like(organs(3), 255)
  assert np.isnan(dice_per_class(organs(3), nothing, 4, ignored=255)).all()
  assert all(score['absent'] for score in score_case(organs(3), nothing, **OPTIONS, ignored=255).values())


def test_the_id_of_an_organ_cannot_be_ignored():
  with pytest.raises(InputError, match='id of an organ'):
    score_case(organs(3), organs(4), **OPTIONS, ignored=3)
