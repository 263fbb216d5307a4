"""Properties of every loss on any input: finite, invariant, masked; checked on thousands of random cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from afw_jax import losses

MADE = {name: losses.make_loss(name) for name in losses.LOSSES} | {
  'released': losses.make_loss('ce_afw', recipe='released', correction='eq2', symmetric=True),
  'squared, gamma 0': losses.make_loss('afw', squared=True, gamma=0.0, rare=(1,)),
  'focal below one': losses.make_loss('focal', gamma=0.5),
  'no smoothing': losses.make_loss('ce_dice', smooth=0.0),
  'sum of Dice': losses.make_loss('ce_dice', reduction='sum'),
  'anchored': losses.make_loss('ce_afw', background='anchored', correction='eq2'),
  'solved': losses.make_loss('ce_afw', weights='solved'),
  'solved, eq2, anchored': losses.make_loss('afw', weights='solved', correction='eq2', background='anchored'),
  'entropic': losses.make_loss('ce_afw', weights='entropic', tau=0.02),
  'entropic_present': losses.make_loss('ce_afw', weights='entropic_present', gamma=2.0, background='anchored'),
  'equal, gamma 1.5': losses.make_loss('afw', weights='equal', gamma=1.5, symmetric=True),
}


def values(x, y, s, mask=None):
  return {name: fn(x, y, s, mask=mask)[0] for name, fn in MADE.items()}


def stacked(x, y, s, mask=None):
  out = jnp.stack(list(values(x, y, s, mask).values()))
  return out, out


JACOBIAN = jax.jit(jax.jacrev(stacked, argnums=(0, 2), has_aux=True))


def assert_finite(x, y, s, mask=None):
  (d_logits, d_s), got = JACOBIAN(x, y, s, mask)
  for name, value, gx, gs in zip(MADE, *(np.asarray(a, np.float32) for a in (got, d_logits, d_s)), strict=True):
    assert np.isfinite(value) and value >= -1e-6, (name, value)
    assert np.isfinite(gx).all() and np.isfinite(gs).all(), name


SHAPES = [((2, 4, 3), 2), ((1, 3, 2, 4), 5)]
MASKS = ['all', 'none', 'some']


def drawn(seed, shape, labels, scale, s_scale):
  (*grid,), classes = SHAPES[shape]
  rng = np.random.default_rng(seed)
  y = rng.integers(0, classes, grid)
  if labels == 'background':
    y[:] = 0
  elif labels == 'one pixel':
    y[:] = 0
    y.flat[rng.integers(y.size)] = classes - 1
  elif labels == 'outside':
    y = rng.integers(-3, classes + 300, grid)
  x = scale * rng.standard_normal((*grid, classes))
  if labels in ('perfect', 'wrong'):
    x = np.where(np.eye(classes, dtype=bool)[y] == (labels == 'perfect'), abs(x), -abs(x))
  mask = rng.integers(0, 2, grid)
  return x.astype(np.float32), y.astype(np.int32), (s_scale * rng.standard_normal(classes)).astype(np.float32), mask


@settings(max_examples=2500, deadline=None, derandomize=True, database=None)
@given(
  seed=st.integers(0, 2**32 - 1),
  shape=st.integers(0, len(SHAPES) - 1),
  log_scale=st.floats(-8, 5),
  labels=st.sampled_from(['random', 'background', 'one pixel', 'outside', 'perfect', 'wrong']),
  s_scale=st.sampled_from([0.0, 1.0, 10.0, 100.0]),
  mask=st.sampled_from(MASKS),
)
@example(seed=0, shape=1, log_scale=-8, labels='background', s_scale=0.0, mask='none')
def test_finite_in_value_and_gradient_whatever_is_drawn(seed, shape, log_scale, labels, s_scale, mask):
  x, y, s, some = drawn(seed, shape, labels, 10.0**log_scale, s_scale)
  assert_finite(x, y, s, {'all': some | 1, 'none': some & 0, 'some': some}[mask])


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(
  seed=st.integers(0, 2**32 - 1),
  log_scale=st.floats(-3, 5),
  labels=st.sampled_from(['random', 'one pixel', 'perfect', 'wrong']),
)
def test_dice_terms_are_in_the_unit_interval(seed, log_scale, labels):
  x, y, _, _ = drawn(seed, 1, labels, 10.0**log_scale, 0.0)
  for terms in TERMS(x, y):
    terms = np.asarray(terms)
    assert (terms >= 0).all() and (terms <= 1).all()


TERMS = jax.jit(lambda x, y: [losses.dice_terms(x, y, squared=q, smooth=e) for q in (False, True) for e in (0.0, 1e-5)])


@pytest.mark.parametrize('dtype, classes', [('float32', 2), ('float16', 9), ('bfloat16', 117)])
def test_extreme_logits_of_any_dtype(dtype, classes):
  rng = np.random.default_rng(0)
  y = rng.integers(0, classes, (2, 4, 4))
  y[y == 1] = 0  # one class absent
  right = np.eye(classes)[y]
  s = rng.normal(0, 1, classes).astype(np.float32)
  for x in (right * 0, right * 30, right * 1e4, (1 - 2 * right) * 1e4, 1e4 * rng.choice([-1, 1], right.shape)):
    for labels in (y, y * 0):
      assert_finite(jnp.asarray(x, dtype), labels, s)


def test_half_precision_is_taken_to_float32_before_anything():
  """60,000 equal pixels: a float16 sum overflows, a bfloat16 sum stops counting at 256."""
  rng = np.random.default_rng(1)
  x, y = rng.standard_normal((2, 150, 200, 3)), rng.integers(0, 3, (2, 150, 200))
  loss = jax.jit(jax.value_and_grad(losses.afw_loss))
  for dtype in (jnp.bfloat16, jnp.float16):
    half = jnp.asarray(x, dtype)
    value, grad = loss(half, y, np.zeros(3))
    expected, _ = loss(half.astype(jnp.float32), y, np.zeros(3))
    assert value.dtype == np.float32 and grad.dtype == dtype and value == expected


def test_numpy_integer_dtypes_of_labels_agree():
  rng = np.random.default_rng(2)
  x, y = rng.standard_normal((1, 3, 4, 5)).astype(np.float32), rng.integers(0, 5, (1, 3, 4))
  dice_terms = jax.jit(losses.dice_terms)
  expected = dice_terms(x, y.astype(np.int32))
  for dtype in (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int64):
    np.testing.assert_array_equal(dice_terms(x, y.astype(dtype)), expected)
  with jax.enable_x64(True):  # 2 ** 32 must not wrap to class 0
    far, near = y.astype(np.int64), y.astype(np.int64)
    far[0, 0, 0], near[0, 0, 0] = 2**32, -1
    np.testing.assert_array_equal(dice_terms(x, far), dice_terms(x, near))
    assert (dice_terms(x, far) != expected).any()


RNG = np.random.default_rng(3)
X, Y = (2 * RNG.standard_normal((3, 4, 5, 6))).astype(np.float32), RNG.integers(0, 6, (3, 4, 5))
S = RNG.normal(0, 0.5, 6).astype(np.float32)
JITTED = jax.jit(values)


def assert_same(got, expected, rtol=2e-6):
  assert set(got) == set(MADE)
  for name in MADE:
    np.testing.assert_allclose(got[name], expected[name], rtol=rtol, err_msg=name)


def test_jit_equals_eager():
  assert_same(JITTED(X, Y, S), values(X, Y, S))


def test_order_of_pixels_and_batch_changes_nothing():
  expected = JITTED(X, Y, S)
  order = RNG.permutation(3)
  assert_same(JITTED(X[order], Y[order], S), expected)
  order = RNG.permutation(60)
  assert_same(JITTED(X.reshape(60, 6)[order].reshape(X.shape), Y.reshape(60)[order].reshape(Y.shape), S), expected)


def test_order_of_organs_changes_nothing():
  order = np.r_[0, 1 + RNG.permutation(5)]
  got, expected = JITTED(X[..., order], np.argsort(order)[Y], S[order]), JITTED(X, Y, S)
  assert_same({**got, 'squared, gamma 0': expected['squared, gamma 0']}, expected)  # this one names a class
  options = {'squared': True, 'gamma': 0.0, 'rare': np.argsort(order)[[1]]}
  renamed = losses.afw_dice(X[..., order], np.argsort(order)[Y], S[order], **options)
  np.testing.assert_allclose(renamed, expected['squared, gamma 0'], rtol=2e-6)


MASK = RNG.random((3, 4, 5)) < 0.6


@pytest.mark.parametrize('kind', ['bool', 'int', 'float'])
def test_mask_equals_dropping_the_pixels(kind):
  mask = MASK
  x = np.where(mask[..., None], X, np.nan)  # what is masked out is not even looked at
  got = JITTED(x, Y, S, mask.astype(kind))
  assert_same(got, JITTED(X[mask], Y[mask], S))


def test_masked_gradient_is_that_of_the_kept_pixels_and_zero_elsewhere():
  mask = RNG.random((3, 4, 5)) < 0.6
  x = np.where(mask[..., None], X, np.inf)
  total = lambda x, y, m: sum(values(x, y, S, m).values())
  grad = np.asarray(jax.jit(jax.grad(total))(x, Y, mask))
  np.testing.assert_array_equal(grad[~mask], 0)
  kept = jax.jit(jax.grad(lambda x: total(x, Y[mask], None)))(X[mask])
  np.testing.assert_allclose(grad[mask], kept, rtol=1e-4, atol=1e-7)


def test_weights_repeat_pixels_and_axes_of_length_one_broadcast():
  weight = RNG.integers(0, 4, (3, 4, 5))
  repeated = [np.repeat(a.reshape(60, -1), weight.ravel(), axis=0) for a in (X, Y)]
  assert_same(JITTED(X, Y, S, weight.astype(np.float32)), JITTED(repeated[0], repeated[1][:, 0], S))
  per_image = np.array([1, 0, 1]).reshape(3, 1, 1)
  assert_same(JITTED(X, Y, S, per_image), JITTED(X, Y, S, np.broadcast_to(per_image, Y.shape)))


def test_labels_outside_count_nowhere():
  outside = RNG.random((3, 4, 5)) < 0.3
  for wrong in (-1, 6, 255):
    assert_same(JITTED(X, np.where(outside, wrong, Y), S), JITTED(X, Y, S, ~outside))


def test_a_constant_added_to_the_logits_changes_nothing():
  assert_same(JITTED(X + 3, Y, S), JITTED(X, Y, S), rtol=1e-5)


def test_not_a_number_in_a_counted_pixel_is_not_hidden():
  x = X.copy()
  x[0, 0, 0, 0] = np.nan
  assert all(np.isnan(v) for v in JITTED(x, Y, S).values())
