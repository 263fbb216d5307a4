"""Each comparison loss against golden numbers, the definitions of other libraries and its own formula in numpy."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from afw_jax import losses
from afw_jax.errors import InputError

GOLDEN = np.load(os.path.join(os.path.dirname(__file__), '..', 'golden', 'losses.npz'))
NAMES = {
  'cross_entropy': losses.cross_entropy,
  'dice_squared_batch_mean': lambda x, y: losses.dice_loss(x, y, squared=True),
  'dice_linear_batch_mean': losses.dice_loss,
  'generalised_dice_square_batch': losses.generalised_dice_loss,
  'focal_softmax_gamma2_mean_over_pixels_sum_over_classes': losses.focal_loss,
  'tversky_fp0.3_fn0.7_batch_mean': lambda x, y: losses.tversky_loss(x, y, fp_weight=0.3, fn_weight=0.7),
}


def case(seed=0, shape=(2, 5, 4), classes=4, scale=2.0):
  rng = np.random.default_rng(seed)
  return scale * rng.standard_normal((*shape, classes)), rng.integers(0, classes, shape)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize('k', range(5))
@pytest.mark.parametrize('x64', [False, True])
def test_golden(k, x64):
  labels = GOLDEN[f'{k}/labels']
  with jax.enable_x64(x64):
    logits = jnp.asarray(GOLDEN[f'{k}/logits'])
    results = jax.jit(lambda x: {n: jax.value_and_grad(f)(x, labels) for n, f in NAMES.items()})(logits)
  for name, (value, grad) in results.items():
    assert value.dtype == grad.dtype == (np.float64 if x64 else np.float32), name
    np.testing.assert_allclose(value, GOLDEN[f'{k}/{name}'], rtol=1e-5, atol=1e-7, err_msg=name)
    expected = GOLDEN[f'{k}/{name}/d_logits']
    np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize('squared', [False, True])
def test_dice_terms_formula(squared):
  logits, labels = case()
  p, g = softmax(logits), np.eye(4)[labels]
  axes = (0, 1, 2)
  below = ((p**2 if squared else p) + g).sum(axes) + 1e-5
  expected = 1 - (2 * (p * g).sum(axes) + 1e-5) / below
  terms = losses.dice_terms(logits, labels, squared=squared)
  np.testing.assert_allclose(terms, expected, rtol=1e-5)
  for reduction, of in (('mean', np.mean), ('sum', np.sum)):
    got = losses.dice_loss(logits, labels, squared=squared, include_background=False, reduction=reduction)
    np.testing.assert_allclose(got, of(expected[1:]), rtol=1e-5)
  np.testing.assert_array_equal(losses.dice_loss(logits, labels, squared=squared, reduction='none'), terms)
  assert losses.dice_loss(logits, labels, include_background=False, reduction='none').shape == (3,)


@pytest.mark.parametrize('squared', [False, True])
def test_dice_terms_stay_in_the_unit_interval_where_one_minus_dice_does_not(squared):
  dice_terms = jax.jit(functools.partial(losses.dice_terms, squared=squared))
  for gap in (0, 5, 10, 13, 14, 16, 17, 20, 40, 100, 1e4):
    for labels in (np.arange(400) % 3, np.zeros(400, int)):
      logits = np.float32(gap) * np.eye(4, dtype=np.float32)[labels]  # right, and class 3 absent
      for sign in (1, -1):
        terms = np.asarray(dice_terms(sign * logits, labels))
        assert (terms >= 0).all() and (terms <= 1).all()


@pytest.mark.parametrize('spatial', [(), (7,), (5, 4), (3, 4, 2), (2, 2, 3, 2)])
def test_any_number_of_spatial_axes_is_one_sum_over_all_pixels(spatial):
  logits, labels = case(3, (2, *spatial))
  loss = jax.jit(losses.make_loss('ce_afw'))
  total, terms = loss(logits, labels, np.zeros(4))
  flat_total, flat_terms = loss(logits.reshape(-1, 4), labels.reshape(-1), np.zeros(4))
  np.testing.assert_allclose(total, flat_total, rtol=1e-6)
  np.testing.assert_allclose(terms['dice'], flat_terms['dice'], rtol=1e-6)


def test_optax_agrees():
  logits, labels = case(1, (1, 5, 4))
  onehot = jax.nn.one_hot(labels, 4)
  ours = losses.cross_entropy(logits, labels)
  theirs = optax.losses.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits, jnp.float32), labels).mean()
  np.testing.assert_allclose(ours, theirs, rtol=1e-6)
  theirs = optax.losses.dice_loss(jnp.asarray(logits, jnp.float32), onehot, smooth=1e-5, alpha=0.3, beta=0.7)
  ours = losses.tversky_loss(logits, labels, fp_weight=0.3, fn_weight=0.7)
  np.testing.assert_allclose(ours, np.squeeze(theirs), rtol=1e-5)


def test_special_cases_of_one_another():
  logits, labels = case(2)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)
  close(losses.focal_loss(logits, labels, gamma=0), losses.cross_entropy(logits, labels))
  half = losses.tversky_loss(logits, labels, fp_weight=0.5, fn_weight=0.5, smooth=1e-5)
  close(half, losses.dice_loss(logits, labels, smooth=2e-5))
  close(losses.focal_tversky_loss(logits, labels, gamma=1.0), losses.tversky_loss(logits, labels))
  terms = losses.tversky_loss(logits, labels, reduction='none')
  close(losses.focal_tversky_loss(logits, labels, reduction='sum'), (terms**0.75).sum())
  # Unified focal without its cross-entropy part, delta 1/2: AFW-Dice with equal weights, gamma 1 - gamma
  ufl = losses.unified_focal_loss(logits, labels, lam=0.0, delta=0.5, gamma=0.75, reduction='sum', smooth=1e-5)
  close(ufl, losses.afw_dice(logits, labels, None, gamma=0.25, smooth=2e-5))


def test_generalised_dice_gives_an_absent_class_the_largest_finite_weight():
  logits, labels = case(4)
  labels[labels == 2] = 0
  p, g = softmax(logits), np.eye(4)[labels]
  size = g.sum((0, 1, 2))
  w = np.where(size > 0, 1 / np.maximum(size, 1) ** 2, 0)
  w[2] = w.max()
  expected = 1 - (2 * (w * (p * g).sum((0, 1, 2))).sum() + 1e-5) / ((w * (p + g).sum((0, 1, 2))).sum() + 1e-5)
  np.testing.assert_allclose(losses.generalised_dice_loss(logits, labels), expected, rtol=1e-5)


@pytest.mark.parametrize('lam, delta, gamma', [(0.5, 0.6, 0.5), (0.3, 0.7, 0.75), (1.0, 0.6, 0.2), (0.0, 0.6, 0.5)])
def test_unified_focal_of_two_classes_is_the_published_binary_form(lam, delta, gamma):
  logits, labels = case(5, classes=2)
  p, y, e = softmax(logits), labels == 1, 1e-6
  focal = np.where(y, -delta * np.log(p[..., 1]), -(1 - delta) * (1 - p[..., 0]) ** gamma * np.log(p[..., 0])).mean()

  def index(q, t):
    tp, fn, fp = (q * t).sum(), ((1 - q) * t).sum(), (q * ~t).sum()
    return (tp + e) / (tp + delta * fn + (1 - delta) * fp + e)

  back, fore = 1 - index(p[..., 0], ~y), (1 - index(p[..., 1], y)) ** (1 - gamma)
  got = losses.unified_focal_loss(logits, labels, lam=lam, delta=delta, gamma=gamma, smooth=e)
  np.testing.assert_allclose(got, lam * focal + (1 - lam) * (back + fore) / 2, rtol=1e-5)
  got = losses.unified_focal_loss(logits, labels, lam=lam, delta=delta, gamma=gamma, smooth=e, reduction='sum')
  np.testing.assert_allclose(got, lam * focal + (1 - lam) * (back + fore), rtol=1e-5)


def test_unified_focal_of_many_classes_with_a_rare_set():
  logits, labels = case(6)
  p, g = softmax(logits), np.eye(4)[labels]
  rare = np.array([0, 1, 0, 1], bool)
  pt = (p * g).sum(-1)
  focal = np.where(rare[labels], -0.6 * np.log(pt), -0.4 * (1 - pt) ** 0.5 * np.log(pt)).mean()
  tp, fn, fp = ((a * b).sum((0, 1, 2)) for a, b in ((p, g), (1 - p, g), (p, 1 - g)))
  loss = 1 - (tp + 1e-5) / (tp + 0.6 * fn + 0.4 * fp + 1e-5)
  expected = 0.5 * focal + 0.5 * np.where(rare, loss**0.5, loss).mean()
  np.testing.assert_allclose(losses.unified_focal_loss(logits, labels, rare=[1, 3]), expected, rtol=1e-5)


F32, INT = np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 4, 4), np.int32)


@pytest.mark.parametrize(
  'call, said',
  [
    (lambda: losses.dice_terms(F32, INT[:1]), ['(2, 4, 4, 3)', '(1, 4, 4)']),
    (lambda: losses.cross_entropy(F32, INT[..., None]), ['(2, 4, 4, 3)', '(2, 4, 4, 1)']),
    (lambda: losses.focal_loss(np.moveaxis(F32, -1, 1), INT), ['(2, 3, 4, 4)', 'channels last']),
    (lambda: losses.dice_loss(F32, INT.astype(float)), ['integer', 'float']),
    (lambda: losses.dice_loss(INT[..., None] * np.ones(3, int), INT), ['floating']),
    (lambda: losses.dice_loss(F32[..., :1], INT), ['two classes']),
    (lambda: losses.generalised_dice_loss(F32, INT, mask=np.ones((2, 4), bool)), ['(2, 4)', '(2, 4, 4)']),
    (lambda: losses.afw_dice(F32, INT, np.zeros(4)), ['(4,)', '3 classes']),
    (lambda: losses.afw_dice(F32, INT, np.zeros((3, 1))), ['(3, 1)']),
    (lambda: losses.afw_dice(F32, INT, None, rare=[1, 3]), ['[3]', 'from 0 to 2']),
    (lambda: losses.afw_dice(F32, INT, None, rare=[-1]), ['[-1]']),
    (lambda: losses.afw_dice(F32, INT, None, rare=2), ['sequence']),
    (lambda: losses.afw_dice(F32, INT, None, rare=(i for i in (1,))), ['sequence']),
    (lambda: losses.afw_dice(F32, INT, None, rare=[True]), ['[True]']),
    (lambda: losses.afw_dice(F32, INT, None, rare=[1], symmetric=True), ['symmetric']),
    (lambda: losses.afw_dice(F32, INT, None, correction='eq7'), ['eq7', 'eq6']),
    (lambda: losses.afw_dice(F32, INT, None, gamma=-0.1), ['gamma', '-0.1']),
    (lambda: losses.afw_dice(F32, INT, None, gamma=float('nan')), ['gamma', 'nan']),
    (lambda: losses.afw_dice(F32, INT, None, gamma='0.25'), ['gamma', 'number']),
    (lambda: losses.afw_dice(F32, INT, None, reduction='none'), ['reduction']),
    (lambda: losses.afw_loss(F32, INT, None, recipe='relased'), ['Did you mean', 'released']),
    (lambda: losses.afw_loss(F32, INT, None, ce_weight=-1), ['ce_weight']),
    (lambda: losses.dice_loss(F32, INT, squared='False'), ['squared', 'True nor False']),
    (lambda: losses.dice_loss(F32, INT, reduction='avg'), ['avg', 'mean']),
    (lambda: losses.dice_loss(F32, INT, smooth=-1), ['smooth']),
    (lambda: losses.focal_tversky_loss(F32, INT, gamma=0), ['gamma', 'above 0']),
    (lambda: losses.unified_focal_loss(F32, INT, delta=1.5), ['delta', 'at most 1']),
  ],
)
def test_invalid_arguments_are_refused_in_one_line(call, said):
  with pytest.raises(InputError) as error:
    call()
  assert '\n' not in str(error.value)
  for words in said:
    assert words in str(error.value)
