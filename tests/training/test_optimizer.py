"""The schedule and SGD against the formulas of the paper and of torch."""

import jax
import numpy as np
import pytest

from afw_jax.errors import InputError
from afw_jax.training import optimizer


def test_epoch_schedule_is_constant_within_an_epoch():
  lr = optimizer.polynomial_schedule(0.01, epochs=150, steps_per_epoch=93, unit='epoch')
  assert float(lr(0)) == float(lr(92)) == pytest.approx(0.01)
  for epoch in (1, 75, 149):
    assert float(lr(93 * epoch)) == pytest.approx(0.01 * (1 - epoch / 150) ** 0.9, rel=1e-5)


def test_step_schedule_lags_one_step_as_released():
  total = 150 * 93
  lr = optimizer.polynomial_schedule(0.01, epochs=150, steps_per_epoch=93, unit='step')
  assert float(lr(0)) == float(lr(1)) == pytest.approx(0.01)
  assert float(lr(2)) == pytest.approx(0.01 * (1 - 1 / total) ** 0.9, rel=1e-6)
  assert float(lr(total - 1)) == pytest.approx(0.01 * (1 - (total - 2) / total) ** 0.9, rel=1e-3)


def test_learning_rate_never_leaves_its_range():
  lr = optimizer.polynomial_schedule(0.01, epochs=2, steps_per_epoch=3)
  values = [float(lr(t)) for t in range(12)]
  assert min(values) == 0.0 and max(values) == pytest.approx(0.01) and values == sorted(values, reverse=True)


@pytest.mark.parametrize('unit', optimizer.UNITS)
def test_the_rate_of_a_number_is_that_of_the_program_and_needs_no_device(unit):
  lr = optimizer.polynomial_schedule(0.01, epochs=3, steps_per_epoch=4, unit=unit)
  for step in range(14):
    assert not isinstance(lr(step), jax.Array)
    assert float(jax.jit(lr)(step)) == pytest.approx(lr(step), rel=1e-6)


@pytest.mark.parametrize('weight_decay', [0.0, 1e-2])
def test_sgd_is_torchs(weight_decay):
  rng = np.random.default_rng(0)
  w, buffer = rng.normal(size=5).astype(np.float32), np.zeros(5, np.float32)
  lr = optimizer.polynomial_schedule(0.1, epochs=4, steps_per_epoch=2)
  tx = optimizer.sgd(lr, momentum=0.9, weight_decay=weight_decay)
  params, state = {'w': w}, tx.init({'w': w})
  for t in range(6):
    g = rng.normal(size=5).astype(np.float32)
    buffer = 0.9 * buffer + g + weight_decay * w
    w = w - 0.1 * (1 - (t // 2) / 4) ** 0.9 * buffer
    updates, state = tx.update({'w': g}, state, params)
    params = jax.tree.map(lambda p, u: p + u, params, updates)
  np.testing.assert_allclose(params['w'], w, rtol=2e-6)


def test_clip_norm():
  tx = optimizer.sgd(lambda _: 1.0, momentum=0.0, clip_norm=1.0)
  g = {'w': np.array([3.0, 4.0], np.float32)}
  updates, _ = tx.update(g, tx.init(g), g)
  np.testing.assert_allclose(updates['w'], [-0.6, -0.8], rtol=1e-6)


def test_unknown_unit():
  with pytest.raises(InputError, match='epoch'):
    optimizer.polynomial_schedule(0.1, epochs=1, steps_per_epoch=1, unit='hour')
