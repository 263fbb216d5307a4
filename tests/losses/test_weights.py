"""Class weights: each closed form in double precision, against the minimum found by descent and against numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from afw_jax import losses
from afw_jax.losses import weights
from afw_jax.losses.pixels import FLOOR, power_slope

CORRECTIONS = ('eq6', 'eq2')
RNG = np.random.default_rng(0)
X, Y = 2 * RNG.standard_normal((2, 5, 4, 5)), RNG.integers(0, 4, (2, 5, 4))  # class 4 is absent
EVERY = {
  'learned': lambda l: weights.learned(l, jnp.linspace(-1, 1, l.size), 'eq6', anchored=False),
  'anchored': lambda l: weights.learned(l, jnp.linspace(-1, 1, l.size), 'eq2', anchored=True),
  'equal': weights.equal,
  **{
    f'solved {c} {a}': functools.partial(weights.solved, correction=c, anchored=a)
    for c in CORRECTIONS
    for a in (False, True)
  },
  **{f'entropic {t}': lambda l, t=t: weights.entropic(l, t, jnp.ones(l.size, bool)) for t in (1e-6, 0.25, 1e6)},
  'present': lambda l: weights.entropic(l, 0.1, jnp.arange(l.size) % 3 > 0),
  'none present': lambda l: weights.entropic(l, 0.1, jnp.zeros(l.size, bool)),
}


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def class_losses(count, seed=0):
  """Losses from hardly anything wrong to everything."""
  return np.random.default_rng(seed).permutation(np.logspace(-4, 0, count))


def minimum(l, correction, anchored):
  """(value, weights) at the s that an optimizer finds for the learned weights."""
  value_and_grad = jax.jit(
    jax.value_and_grad(lambda s: weights.learned(jnp.asarray(l), s, correction, anchored=anchored)[0])
  )
  found = optimize.minimize(value_and_grad, np.zeros(l.size), jac=True, method='BFGS', options={'gtol': 1e-11})
  return found.fun, np.asarray(weights.learned(jnp.asarray(l), jnp.asarray(found.x), correction, anchored=anchored)[1])


@pytest.mark.parametrize('anchored', [False, True])
@pytest.mark.parametrize('correction', CORRECTIONS)
@pytest.mark.parametrize('count', [2, 9])
def test_solved_is_the_minimum_over_the_log_variances(x64, count, correction, anchored):
  l = class_losses(count)
  value, weight = weights.solved(jnp.asarray(l), correction, anchored=anchored)
  lowest, found = minimum(l, correction, anchored)
  np.testing.assert_allclose(value, lowest, rtol=1e-12)
  np.testing.assert_allclose(weight, found, rtol=1e-6)


@pytest.mark.parametrize('count, scale', [(2, 1), (9, 1), (9, 1e-6), (9, 0.999), (118, 1), (1000, 1)])
def test_equation_6_is_solved(x64, count, scale):
  """w_c l_c = lambda for every class, lambda is the root, and the value is A*(G)."""
  l = scale * class_losses(count) if scale != 0.999 else np.full(count, scale)
  value, weight = weights.solved(jnp.asarray(l), 'eq6', anchored=False)
  lam, total = np.asarray(weight * l), np.log(l).sum()
  np.testing.assert_allclose(lam, lam[0], rtol=1e-13)
  np.testing.assert_allclose((count + 1) * np.log(lam[0]) - np.log1p(-lam[0]), total, rtol=1e-11)
  np.testing.assert_allclose(value, count * lam[0] - np.log1p(-lam[0]), rtol=1e-13)
  if total < -100 * count:  # C + 1 times a geometric mean
    np.testing.assert_allclose(value, (count + 1) * np.exp(total / (count + 1)), rtol=1e-3)


def test_the_slope_of_the_minimum_over_the_logarithms_is_lambda(x64):
  minimum_of = lambda g: weights.solved(jnp.exp(jnp.array([g / 3] * 3)), 'eq6', anchored=False)
  for total in (-30.0, -5.0, -1.0, 0.0):
    value, weight = minimum_of(total)
    (up, _), (down, _) = minimum_of(total + 1e-5), minimum_of(total - 1e-5)
    np.testing.assert_allclose((up - down) / 2e-5, weight[0] * np.exp(total / 3), rtol=1e-8)
    different = jnp.exp(jnp.array([0.8, 0.2, 0]) * total)  # the value depends on the product alone
    np.testing.assert_allclose(weights.solved(different, 'eq6', anchored=False)[0], value, rtol=1e-12)


def test_equation_2_is_solved(x64):
  l = class_losses(9)
  _, weight = weights.solved(jnp.asarray(l), 'eq2', anchored=False)
  np.testing.assert_allclose(weight, (np.sqrt(1 + 4 / l) - 1) / 2, rtol=1e-14)
  np.testing.assert_allclose(weight * l * (1 + weight), 1, rtol=1e-13)
  _, weight = weights.solved(jnp.array([0.01, 1.0]), 'eq2', anchored=False)
  np.testing.assert_allclose(weight, [9.512, 0.618], atol=1e-3)


@pytest.mark.parametrize('options', [
  {}, {'correction': 'eq2'}, {'background': 'anchored'}, {'correction': 'eq2', 'background': 'anchored'},
  {'recipe': 'released', 'gamma': 2.0}, {'reduction': 'mean', 'symmetric': True},
], ids=str)  # fmt: skip
def test_solved_is_the_learned_loss_at_its_equilibrium(x64, options):
  x, anchored = jnp.asarray(X), options.get('background') == 'anchored'
  solved = functools.partial(losses.afw_loss, x, Y, weights='solved', **options)
  shared = {k: v for k, v in options.items() if k not in ('recipe', 'reduction')}
  focused = losses.afw_dice_terms(x, Y, None, squared='recipe' in options, **shared)['focused']
  _, weight = minimum(np.asarray(focused), options.get('correction', 'eq6'), anchored)
  s = -jnp.log(jnp.asarray(weight))
  learned = jax.value_and_grad(lambda x, s: losses.afw_loss(x, Y, s, **options), argnums=(0, 1))
  value, (to_logits, to_s) = learned(x, s)
  np.testing.assert_allclose(to_s, 0, atol=1e-8)
  np.testing.assert_allclose(solved(None), value, rtol=1e-12)
  got = jax.grad(lambda x: losses.afw_loss(x, Y, None, weights='solved', **options))(x)
  np.testing.assert_allclose(got, to_logits, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize('tau', [1e-6, 1e-3, 0.25, 3.0, 1e6])
def test_entropic_weights_are_a_softmax(x64, tau):
  l = class_losses(9)
  value, weight = weights.entropic(jnp.asarray(l), tau, jnp.ones(9, bool))
  share = np.exp((l - l.max()) / tau)
  np.testing.assert_allclose(weight, 9 * share / share.sum(), rtol=1e-9)
  np.testing.assert_allclose(value, 9 * (l.max() + tau * np.log(share.mean())), rtol=1e-9 if tau < 10 else 1e-7)
  assert l.sum() <= value <= 9 * l.max() + 1e-12
  for _ in range(20):  # no class weights q give more: M (q l - tau KL(q || uniform))
    q = np.random.default_rng(_).dirichlet(np.ones(9))
    assert 9 * (q @ l - tau * (q * np.log(9 * q)).sum()) <= value + 1e-9
  q = np.asarray(weight) / 9
  kl = (q[q > 0] * np.log(9 * q[q > 0])).sum()
  np.testing.assert_allclose(9 * (q @ l - tau * kl), value, rtol=1e-7)


def test_the_limits_of_the_temperature_are_the_sum_and_the_worst_class():
  l = jnp.asarray(class_losses(9), jnp.float32)
  for tau, value, weight in ((1e6, l.sum(), jnp.ones(9)), (1e-6, 9 * l.max(), 9 * (l == l.max()))):
    got = weights.entropic(l, tau, jnp.ones(9, bool))
    np.testing.assert_allclose(got[0], value, rtol=5e-6)
    np.testing.assert_allclose(got[1], weight, atol=1e-5)


@pytest.mark.parametrize('background', ['weighted', 'anchored'])
def test_present_classes_share_the_weights_and_the_others_keep_one(x64, background):
  options = {'weights': 'entropic_present', 'background': background, 'tau': 0.1}
  mask = Y != 2  # where nothing of a class is left, it is absent
  terms = losses.afw_dice_terms(X, Y, None, mask=mask, **options)
  shares = np.array([background == 'weighted', True, False, True, False])
  l = np.asarray(terms['focused'])
  e = np.exp(l / 0.1) * shares
  np.testing.assert_allclose(terms['weight'], np.where(shares, shares.sum() * e / e.sum(), 1), rtol=1e-12)
  value = shares.sum() * 0.1 * np.log(e.sum() / shares.sum()) + l[~shares].sum()
  np.testing.assert_allclose(losses.afw_dice(X, Y, None, mask=mask, **options), value, rtol=1e-12)
  whole = losses.afw_dice_terms(X, Y, None, **options | {'weights': 'entropic'})['weight']
  assert whole[0] == 1 or background == 'weighted'
  np.testing.assert_allclose(whole.sum(), 5, rtol=1e-12)


@pytest.mark.parametrize('name', EVERY)
def test_the_weight_is_the_derivative_with_respect_to_the_class_loss(x64, name):
  for l in (class_losses(6), np.array([0, 1e-13, 0.3, 1, 0.5, 1e-20]), np.zeros(6), np.ones(6)):
    gradient = jax.grad(lambda l: EVERY[name](l)[0])(jnp.asarray(l))
    np.testing.assert_allclose(gradient, EVERY[name](jnp.asarray(l))[1], rtol=1e-12, err_msg=str(l))


@pytest.mark.parametrize('name', EVERY)
def test_one_function_down_to_a_loss_of_zero(x64, name):
  """Value and weights are finite, and the value rises by the integral of the slope, across the floor as well."""
  at = np.concatenate([[0], np.logspace(-14, -10, 4001)])
  path = lambda first: jnp.asarray(np.array([0.3, 0.0, 0.7, 1.0, 0.02, 0.5])).at[1].set(first)
  values, slopes = jax.vmap(lambda first: (EVERY[name](path(first))[0], EVERY[name](path(first))[1][1]))(
    jnp.asarray(at)
  )
  assert np.isfinite(values).all() and np.isfinite(slopes).all()
  integral = ((slopes[1:] + slopes[:-1]) / 2 * np.diff(at)).sum()
  np.testing.assert_allclose(values[-1] - values[0], integral, rtol=1e-4, atol=1e-13)
  assert weights.FLOOR == FLOOR and (np.abs(np.diff(values)) <= slopes.max() * np.diff(at) + 1e-12).all()


@pytest.mark.parametrize('name', EVERY)
def test_finite_in_single_precision_for_perfect_classes(name):
  compute = jax.jit(jax.value_and_grad(lambda l: EVERY[name](l)[0]))
  for l in (np.zeros(9), np.ones(9), np.r_[0, np.ones(8)], np.r_[np.zeros(8), 1], np.full(9, 1e-38), np.zeros(118)):
    value, gradient = compute(jnp.asarray(l, jnp.float32))
    assert np.isfinite(value) and np.isfinite(gradient).all() and value >= 0 and (gradient >= 0).all(), l


def test_anchored_background_weighs_one_and_is_in_no_correction():
  x, s = jnp.asarray(X, jnp.float32), jnp.array([3.0, -0.5, 0.2, 0.4, 0.1])
  for correction, of_the_organs in (('eq6', np.logaddexp(0, s[1:].sum())), ('eq2', np.logaddexp(0, s[1:]).sum())):
    options = {'correction': correction, 'background': 'anchored'}
    terms = losses.afw_dice_terms(x, Y, s, **options)
    np.testing.assert_allclose(terms['weight'], [1, *np.exp(-s[1:])], rtol=1e-6)
    value, gradient = jax.value_and_grad(functools.partial(losses.afw_dice, **options), argnums=2)(x, Y, s)
    np.testing.assert_allclose(value, terms['contribution'].sum() + of_the_organs, rtol=1e-6)
    assert gradient[0] == 0 and (gradient[1:] != 0).all()


@pytest.mark.parametrize('kind', ['equal', 'solved', 'entropic', 'entropic_present'])
def test_log_variances_that_are_not_used_have_no_gradient(kind):
  x, s = jnp.asarray(X, jnp.float32), jnp.array([jnp.nan, jnp.inf, -jnp.inf, 0, 1e30])
  value, gradient = jax.value_and_grad(lambda s: losses.make_loss('ce_afw', weights=kind)(x, Y, s)[0])(s)
  assert value == losses.afw_loss(x, Y, None, weights=kind) and np.isfinite(value)
  np.testing.assert_array_equal(gradient, np.zeros(5))


def test_equal_weights_by_any_name():
  x, s = jnp.asarray(X, jnp.float32), jnp.ones(5)
  expected = losses.afw_dice(x, Y, None)
  for background in ('weighted', 'anchored'):
    assert losses.afw_dice(x, Y, s, weights='equal', background=background) == expected
    for options in ({'weights': 'equal'}, {'learned_weights': False}, {'learned_weights': False, 'weights': 'equal'}):
      assert losses.make_loss('afw', background=background, **options)(x, Y, s)[0] == expected


def test_the_pull_of_an_exponent(x64):
  at = jnp.asarray(np.logspace(-11, 0, 50))
  for gamma in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0):
    np.testing.assert_allclose(power_slope(at, gamma), gamma * at ** (gamma - 1), rtol=1e-12)
  assert power_slope(jnp.array(1.0), 0.25) == 0.25  # a class not found yet
  crossing = 0.25 ** (1 / (1 - 0.25))
  assert abs(crossing - 0.157) < 5e-4 and abs(power_slope(jnp.array(crossing), 0.25) - 1) < 1e-12
  assert power_slope(jnp.array(0.157 * 1.01), 0.25) < 1 < power_slope(jnp.array(0.157 * 0.99), 0.25)
  np.testing.assert_allclose(power_slope(jnp.array([0, 1e-13]), 0.25), 1e9)  # of the chord
  np.testing.assert_array_equal(power_slope(jnp.array([0, 1e-13, 0.5, 1]), 0.0), 0)
  np.testing.assert_array_equal(power_slope(jnp.array([0, 0.5, 1]), 2.0), [0, 1, 2])


PULLED = [
  ('afw', {}), ('afw', {'gamma': 2.0, 'rare': (2,), 'reduction': 'mean'}), ('afw', {'background': 'anchored'}),
  ('ce_afw', {}), ('ce_afw', {'recipe': 'released', 'symmetric': True}), ('ce_afw', {'dice_weight': 0.3, 'gamma': 0}),
  *(('ce_afw', {'weights': kind, 'gamma': 0.5}) for kind in weights.WEIGHTS),
  ('ce_dice', {}), ('ce_dice', {'reduction': 'sum'}), ('ce_dice', {'recipe': 'released', 'include_background': False}),
  ('dice', {'squared': True}), ('focal_dice', {'dice_weight': 0.7}),
]  # fmt: skip


@pytest.mark.parametrize('name, options', PULLED, ids=[f'{n}-{o}' for n, o in PULLED])
def test_the_pull_is_the_derivative_with_respect_to_the_dice_loss(x64, name, options):
  """The gradient in the logits is that of the cross-entropy and, over the classes, the pull times that of Dice."""
  x, s = jnp.asarray(X), jnp.linspace(-1, 1, 5)
  gradient, terms = jax.grad(losses.make_loss(name, **options), has_aux=True)(x, Y, s)
  squared = options.get('squared', options.get('recipe') == 'released')
  dice = jax.jacrev(lambda x: losses.dice_terms(x, Y, squared=squared))(x)
  pixelwise = {'ce': losses.cross_entropy, 'focal': losses.focal_loss}.get(
    name.split('_')[0], lambda x, y: 0.0 * x.sum()
  )
  share = 0.5 if options.get('recipe') == 'released' else 1
  expected = share * jax.grad(pixelwise)(x, Y) + jnp.tensordot(terms['pull'], dice, 1)
  np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-13)


def test_defaults_are_the_papers_loss_to_the_last_bit():
  x, s = jnp.asarray(X, jnp.float32), jnp.asarray([0.1, -0.7, 0.4, 1.1, 0.2])
  dice = losses.dice_terms(x, Y)
  focused = jnp.where(jnp.arange(5) > 0, dice**0.25, dice)
  expected = (jnp.exp(-s) * focused).sum() + jax.nn.softplus(s.sum())
  assert losses.afw_dice(x, Y, s) == expected
  assert losses.afw_loss(x, Y, s) == losses.cross_entropy(x, Y) + expected
