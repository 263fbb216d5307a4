"""AFW-Dice: golden values, closed forms, identities, derivatives in double precision."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from afw_jax import losses
from afw_jax.losses.pixels import power

GOLDEN = np.load(os.path.join(os.path.dirname(__file__), '..', 'golden', 'losses.npz'))


def case(seed=0, shape=(2, 5, 4), classes=4, scale=2.0):
  rng = np.random.default_rng(seed)
  return scale * rng.standard_normal((*shape, classes)), rng.integers(0, classes, shape), rng.normal(0, 0.7, classes)


def softplus(x):
  return np.logaddexp(0, x)


@pytest.mark.parametrize('k', range(5))
@pytest.mark.parametrize('x64', [False, True])
def test_golden_released(k, x64):
  labels, key = GOLDEN[f'{k}/labels'], f'{k}/afw_dice_released'
  with jax.enable_x64(x64):
    logits, s = jnp.asarray(GOLDEN[f'{k}/logits']), jnp.asarray(GOLDEN[f'{k}/log_sigma_sq'])
    dice = lambda x, s: losses.afw_dice(x, labels, s, squared=True)
    released = lambda x, s: (dice(x, s), losses.afw_loss(x, labels, s, recipe='released'))
    (value, mixed), (d_logits, d_s) = jax.jit(jax.value_and_grad(released, argnums=(0, 1), has_aux=True))(logits, s)
  np.testing.assert_allclose(value, GOLDEN[key], rtol=1e-6)
  expected = GOLDEN[f'{key}/d_logits']
  np.testing.assert_allclose(d_logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
  np.testing.assert_allclose(d_s, GOLDEN[f'{key}/d_log_sigma_sq'], atol=1e-5)
  np.testing.assert_allclose(mixed, 0.5 * GOLDEN[f'{k}/cross_entropy'] + 0.5 * GOLDEN[key], rtol=1e-6)


def test_recipes_are_equation_7_and_the_released_mix():
  logits, labels, s = case()
  ce = losses.cross_entropy(logits, labels)
  afw, afw_sq = (losses.afw_dice(logits, labels, s, squared=q) for q in (False, True))
  close = lambda got, expected: np.testing.assert_allclose(got, expected, rtol=1e-6)
  close(losses.afw_loss(logits, labels, s), ce + afw)
  close(losses.afw_loss(logits, labels, s, recipe='released'), 0.5 * ce + 0.5 * afw_sq)
  own = {'squared': False, 'ce_weight': 0.4, 'dice_weight': 0.6}
  close(losses.afw_loss(logits, labels, s, recipe='released', **own), 0.4 * ce + 0.6 * afw)
  close(losses.afw_loss(logits, labels, s, ce_weight=0, dice_weight=2), 2 * afw)


@pytest.mark.parametrize('squared', [False, True])
def test_equation_5_in_numpy(squared):
  logits, labels, s = case(1)
  p = np.exp(logits - logits.max(-1, keepdims=True))
  p, g = p / p.sum(-1, keepdims=True), np.eye(4)[labels]
  dice = 1 - (2 * (p * g).sum((0, 1, 2)) + 1e-5) / (((p**2 if squared else p) + g).sum((0, 1, 2)) + 1e-5)
  for rare, gamma in ((None, 0.25), ((2,), 0.25), ((), 0.25), ((0, 3), 0.75), (None, 0.0), (None, 2.0)):
    chosen = np.isin(np.arange(4), [1, 2, 3] if rare is None else rare)
    expected = (np.exp(-s) * np.where(chosen, dice**gamma, dice)).sum() + softplus(s.sum())
    got = losses.afw_dice(logits, labels, s, rare=rare, gamma=gamma, squared=squared)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
  symmetric = losses.afw_dice(logits, labels, s, symmetric=True, correction=None, squared=squared)
  np.testing.assert_allclose(symmetric, (np.exp(-s) * dice**0.25).sum(), rtol=1e-5)


def test_corrections_are_equations_6_and_2():
  logits, labels, s = case(2)
  plain = losses.afw_dice(logits, labels, s, correction=None)
  eq6, eq2 = (losses.afw_dice(logits, labels, s, correction=c) for c in ('eq6', 'eq2'))
  np.testing.assert_allclose(eq6 - plain, np.log(np.prod(np.exp(s)) + 1), rtol=1e-5)
  np.testing.assert_allclose(eq2 - plain, np.log(np.prod(np.exp(s) + 1)), rtol=1e-5)
  many = np.full(117, 3.0)  # the product of 117 variances overflows, its softplus does not
  logits, labels, _ = case(2, classes=117)
  gap = losses.afw_dice(logits, labels, many) - losses.afw_dice(logits, labels, many, correction=None)
  np.testing.assert_allclose(gap, 351.0, rtol=1e-5)


def test_equal_weights_have_no_correction_and_mean_is_the_sum_over_c():
  logits, labels, s = case(3)
  terms = losses.afw_dice_terms(logits, labels, None)
  np.testing.assert_array_equal(terms['weight'], np.ones(4))
  for correction in ('eq6', 'eq2', None):
    loss = losses.afw_dice(logits, labels, None, correction=correction)
    np.testing.assert_allclose(loss, terms['focused'].sum(), rtol=1e-6)
  total, mean = (losses.afw_dice(logits, labels, s, reduction=r) for r in ('sum', 'mean'))
  np.testing.assert_allclose(mean, total / 4, rtol=1e-6)


def test_terms_are_what_the_loss_is_made_of():
  logits, labels, s = case(4)
  terms = losses.afw_dice_terms(logits, labels, s, rare=(1, 3), gamma=0.5)
  assert sorted(terms) == ['contribution', 'dice', 'focused', 'pull', 'weight']
  assert all(t.shape == (4,) for t in terms.values())
  dice = np.asarray(losses.dice_terms(logits, labels))
  np.testing.assert_array_equal(terms['dice'], dice)
  np.testing.assert_allclose(terms['focused'], np.where([0, 1, 0, 1], dice**0.5, dice), rtol=1e-6)
  np.testing.assert_allclose(terms['weight'], np.exp(-s), rtol=1e-6)
  loss = losses.afw_dice(logits, labels, s, rare=(1, 3), gamma=0.5)
  np.testing.assert_allclose(terms['contribution'].sum() + softplus(s.sum()), loss, rtol=1e-6)


@pytest.mark.parametrize('correction', ['eq6', 'eq2', None])
def test_gradient_of_the_weights_in_closed_form(correction):
  logits, labels, s = case(5)
  afw = functools.partial(losses.afw_dice, correction=correction)
  grad = jax.jit(jax.grad(afw, argnums=2))(logits, labels, jnp.asarray(s, jnp.float32))
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  pull = {'eq6': sigmoid(s.sum()), 'eq2': sigmoid(s), None: 0}[correction]
  expected = pull - np.exp(-s) * np.asarray(losses.afw_dice_terms(logits, labels, None)['focused'])
  np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-6)


def test_gamma_one_is_the_plain_weighted_dice():
  logits, labels, s = (jnp.asarray(a) for a in case(6))
  plain = lambda x: (jnp.exp(-s) * losses.dice_terms(x, labels)).sum()
  afw = lambda x: losses.afw_dice(x, labels, s, gamma=1.0, correction=None)
  (v1, g1), (v2, g2) = (jax.jit(jax.value_and_grad(f))(jnp.asarray(logits, jnp.float32)) for f in (plain, afw))
  np.testing.assert_allclose(v2, v1, rtol=1e-6)
  np.testing.assert_allclose(g2, g1, rtol=1e-5, atol=1e-8)


def test_gamma_zero_leaves_the_focused_classes_without_gradient():
  logits, labels, s = case(7)
  logits, s = jnp.asarray(logits, jnp.float32), jnp.asarray(s, jnp.float32)
  all_focused = jax.jit(jax.grad(lambda x: losses.afw_dice(x, labels, s, gamma=0.0, symmetric=True)))(logits)
  np.testing.assert_array_equal(all_focused, np.zeros_like(logits))
  got = jax.jit(jax.grad(lambda x: losses.afw_dice(x, labels, s, gamma=0.0)))(logits)
  background = jax.jit(jax.grad(lambda x: jnp.exp(-s[0]) * losses.dice_terms(x, labels)[0]))(logits)
  np.testing.assert_allclose(got, background, rtol=1e-5, atol=1e-9)
  perfect = 1e4 * jnp.eye(4)[labels]
  np.testing.assert_array_equal(losses.afw_dice_terms(perfect, labels, None, gamma=0.0)['focused'], [0, 1, 1, 1])


def test_traced_gamma_equals_static_gamma():
  logits, labels, s = case(8)
  gammas = jnp.array([0.0, 0.25, 1.0, 2.0])
  traced = jax.jit(jax.vmap(lambda g: losses.afw_dice(logits, labels, s, gamma=g)))(gammas)
  static = [losses.afw_dice(logits, labels, s, gamma=float(g)) for g in gammas]
  np.testing.assert_allclose(traced, static, rtol=1e-6)


def test_power_is_exact_above_the_floor_and_continuous_finite_and_monotone_below():
  x = np.concatenate([[0.0], np.logspace(-30, 0, 400)]).astype(np.float32)
  for e in (0.1, 0.25, 0.5, 0.99):
    y, dy = jax.jit(jax.vmap(jax.value_and_grad(functools.partial(power, exponent=e))))(jnp.asarray(x))
    above = x > 1e-12
    np.testing.assert_allclose(y[above], x[above].astype(float) ** e, rtol=1e-5)
    assert y[0] == 0 and np.isfinite(dy).all() and (np.diff(y) >= 0).all()
    np.testing.assert_allclose(y[~above][-1], x[~above][-1] * 1e-12 ** (e - 1), rtol=1e-5)


def test_the_printed_equation_4_cannot_be_meant_and_the_form_used_does_not_fail_there():
  labels = np.zeros((1, 6, 6), int)
  logits = 200.0 * np.eye(3)[labels]  # classes 1 and 2 absent and not predicted, class 0 perfect
  p, g = np.eye(3)[labels], np.eye(3)[labels]
  printed = 1 - 2 * ((p * g).sum((0, 1, 2)) + 1e-5) / ((p + g).sum((0, 1, 2)) + 1e-5)
  assert printed[1] == -1 and printed[0] < 0
  value, grad = jax.jit(jax.value_and_grad(losses.afw_dice))(jnp.asarray(logits, jnp.float32), labels, None)
  assert value == 0 and np.isfinite(grad).all()


@pytest.mark.parametrize('correction', ['eq6', 'eq2'])
def test_any_log_variance_is_finite_in_value_and_gradient_and_pushed_back(correction):
  _, labels, _ = case(9)
  afw = jax.jit(jax.value_and_grad(functools.partial(losses.afw_dice, correction=correction), argnums=(0, 2)))
  for s in (-np.inf, -1e30, -1e4, -200.0, -31.0, -29.0, 0.0, 29.0, 200.0, 1e4, 1e30):
    for gap in (0.0, 5.0, 1e4):  # uniform, good, perfect
      value, grads = afw(jnp.asarray(gap * np.eye(4)[labels], jnp.float32), labels, jnp.full(4, s, jnp.float32))
      assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads), (s, gap)
      if -1e4 <= s <= -29 and gap == 0:
        assert (grads[1] < -1e11).all()


OPTIONS = [
  {},
  {'squared': True},
  {'correction': 'eq2'},
  {'correction': None, 'symmetric': True},
  {'gamma': 0.75, 'rare': (2,)},
  {'reduction': 'mean', 'smooth': 1e-2},
  {'background': 'anchored', 'gamma': 1.5},
  {'weights': 'solved'},
  {'weights': 'solved', 'correction': 'eq2', 'background': 'anchored'},
  {'weights': 'entropic', 'gamma': 1.0},
  {'weights': 'entropic_present', 'background': 'anchored', 'gamma': 2.0, 'tau': 0.05},
]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_derivatives_in_double_precision(options):
  with jax.enable_x64(True):
    logits, labels, s = (jnp.asarray(a) for a in case(10, (1, 3, 3)))
    loss = jax.jit(lambda x, s: losses.afw_loss(x, labels, s, **options))
    check_grads(loss, (logits, s), order=1, modes=('rev',), atol=1e-5, rtol=1e-5)
    gx, gs = jax.jit(jax.grad(loss, argnums=(0, 1)))(logits, s)
    assert gx.dtype == gs.dtype == np.float64
    step, rng = 1e-6, np.random.default_rng(0)
    for _ in range(5):  # central differences along random directions
      dx, ds = rng.standard_normal(logits.shape), rng.standard_normal(4)
      slope = (loss(logits + step * dx, s + step * ds) - loss(logits - step * dx, s - step * ds)) / (2 * step)
      np.testing.assert_allclose(slope, (gx * dx).sum() + (gs * ds).sum(), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize('name', losses.LOSSES)
def test_every_named_loss_in_double_precision(name):
  with jax.enable_x64(True):
    logits, labels, s = (jnp.asarray(a) for a in case(11, (1, 3, 3)))
    loss_fn = losses.make_loss(name)
    loss = jax.jit(lambda x, s: loss_fn(x, labels, s)[0])
    check_grads(loss, (logits, s), order=1, modes=('rev',), atol=1e-6, rtol=1e-6)


def test_the_loss_falls_to_perfect_under_gradient_descent():
  """Overfitting one batch, the case where 1 - Dice with the power gives NaN: through saturation, one class absent."""
  _, labels, _ = case(12)
  labels[labels == 3] = 0
  step = jax.jit(jax.value_and_grad(losses.afw_loss, argnums=(0, 2)))
  x, s = jnp.zeros((*labels.shape, 4)), jnp.zeros(4)
  first = float(step(x, labels, s)[0])
  for _ in range(400):
    value, (gx, gs) = step(x, labels, s)
    x, s = x - 3.0 * gx, s - 0.01 * gs
    assert np.isfinite(value)
  assert (np.asarray(x).argmax(-1) == labels).all() and value < 0.2 * first
