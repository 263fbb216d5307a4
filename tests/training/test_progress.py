"""What a training step leaves in metrics.jsonl and behind the progress bar: every class, its weight and its pull."""

import jax
import numpy as np
import pytest

from afw_jax import losses
from afw_jax.training.progress import postfix, scalars

CLASSES = ('background', 'liver', 'gallbladder')
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((2, 6, 6, 3)), RNG.integers(0, 3, (2, 6, 6))


def step(name, **options):
  """What a step returns to the host, with the terms of a loss."""
  loss, terms = losses.make_loss(name, **options)(X, Y, np.array([-2.0, 0.0, 0.5]))
  return jax.device_get({'loss': loss, 'grad_norm': loss, 'terms': terms})


@pytest.mark.parametrize('options', [{}, {'weights': 'entropic', 'gamma': 2.0}, {'recipe': 'released'}], ids=str)
def test_every_class_has_its_weight_and_its_pull(options):
  aux = step('ce_afw', **options)
  values = scalars(aux, CLASSES)
  for i, name in enumerate(CLASSES):
    assert values[f'weight/{name}'] == aux['terms']['weight'][i] and values[f'pull/{name}'] == aux['terms']['pull'][i]
    assert values[f'train/dice/{name}'] == aux['terms']['dice'][i]
  assert values['pull/liver'] != values['weight/liver']


@pytest.mark.parametrize('reduction, pull', [('mean', 1 / 3), ('sum', 1)])
def test_without_class_weights_the_pull_alone_is_recorded(reduction, pull):
  values = scalars(step('ce_dice', reduction=reduction), CLASSES)
  assert [values[f'pull/{name}'] for name in CLASSES] == pytest.approx([pull] * 3)
  assert not [key for key in values if key.startswith('weight/')]
  assert not [key for key in scalars(step('ce'), CLASSES) if key.startswith('pull/')]


def test_the_progress_bar_names_the_classes_with_the_extreme_weights_and_pulls():
  aux = step('ce_afw')
  aux['terms'] |= {'weight': np.array([54.0, 1.0, 0.44]), 'pull': np.array([54.0, 3.0, 0.2])}
  values = {**scalars(aux, CLASSES), 'images_per_s': 7.0}
  text = postfix(values, aux['terms'], CLASSES, 0.5)
  assert ', weight 0.44 (gallbladder) to 54 (background), pull 0.2 (gallbladder) to 54 (background), 7.0 img/s' in text
  dice = step('ce_dice')
  assert 'pull' not in postfix({**scalars(dice, CLASSES), 'images_per_s': 7.0}, dice['terms'], CLASSES, None)
