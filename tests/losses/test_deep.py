"""Deep supervision against sums worked out by hand, and nearest-neighbour labels against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afw_jax import losses
from afw_jax.errors import InputError
from afw_jax.losses.deep import nearest

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, (2, 8, 12))
HEADS = [(2 * RNG.standard_normal((2, *sides, 3))).astype(np.float32) for sides in ((8, 12), (4, 6), (2, 3))]
LABEL_SIZES = [LABELS, LABELS[:, 1::2, 1::2], LABELS[:, 2::4, 2::4]]
S = np.array([0.3, -0.2, 0.5], np.float32)
CE, CE_AFW = losses.make_loss('ce'), jax.jit(losses.make_loss('ce_afw'))


def by_hand(loss_fn, weights, heads=HEADS, **options):
  return sum(w * loss_fn(h, y, S, **options)[0] for w, h, y in zip(weights, heads, LABEL_SIZES))


def test_two_heads_of_one_pixel_worked_out_on_paper():
  labels = jnp.array([[0, 1], [1, 1]])[None]  # reduced to one pixel: position (1, 1), class 1
  heads = [jnp.zeros((1, 2, 2, 2)), jnp.log(jnp.array([0.2, 0.8])).reshape(1, 1, 1, 2)]
  loss, terms = losses.deep_supervised(CE)(heads, labels, None)
  assert float(loss) == pytest.approx((2 * np.log(2) - np.log(0.8)) / 3, rel=1e-6)
  assert terms['dice'].tolist() == pytest.approx([2 / 3, 2 / 5], rel=1e-5)  # p = 1/2: 2 / (2 + 1), 2 / (2 + 3)


@pytest.mark.parametrize(
  'weights, shares',
  [
    (None, (4 / 7, 2 / 7, 1 / 7)),
    ((1, 1, 1), (1 / 3, 1 / 3, 1 / 3)),
    ((0.2, 0, 0.6), (0.25, 0, 0.75)),
    (np.array([5, 3, 2]), (0.5, 0.3, 0.2)),
  ],
)
def test_loss_is_the_weighted_sum_and_the_terms_are_the_main_heads(weights, shares):
  loss, terms = jax.jit(losses.deep_supervised(CE_AFW, weights))(HEADS, LABELS, S)
  np.testing.assert_allclose(loss, by_hand(CE_AFW, shares), rtol=1e-6)
  assert loss.shape == () and loss.dtype == np.float32
  main = CE_AFW(HEADS[0], LABELS, S)[1]
  assert sorted(terms) == sorted(main)
  for name in main:
    np.testing.assert_allclose(terms[name], main[name], rtol=1e-6)


@pytest.mark.parametrize('main', [1, -1])
def test_the_main_head_may_stand_anywhere_and_weigh_nothing(main):
  heads = [HEADS[1], HEADS[0]]
  loss, terms = losses.deep_supervised(CE_AFW, (1, 0), main=main)(heads, LABELS, S)
  np.testing.assert_allclose(loss, CE_AFW(HEADS[1], LABEL_SIZES[1], S)[0], rtol=1e-6)
  np.testing.assert_allclose(terms['dice'], CE_AFW(HEADS[0], LABELS, S)[1]['dice'], rtol=1e-6)


def test_full_size_heads_of_equal_weight_are_the_mean():
  heads = [HEADS[0], -HEADS[0], 0.5 * HEADS[0]]
  loss, _ = losses.deep_supervised(CE_AFW, (1.0,) * 3, main=-1)(heads, LABELS, S)
  np.testing.assert_allclose(loss, np.mean([CE_AFW(h, LABELS, S)[0] for h in heads]), rtol=1e-6)


def test_one_array_passes_through():
  loss, terms = losses.deep_supervised(CE_AFW, (1, 0.5))(HEADS[0], LABELS, S)
  expected, expected_terms = CE_AFW(HEADS[0], LABELS, S)
  assert loss == expected and all((terms[k] == expected_terms[k]).all() for k in expected_terms)


@pytest.mark.parametrize('name', losses.LOSSES)
def test_gradient_of_every_named_loss_reaches_every_head_and_the_class_weights(name):
  loss_fn = losses.make_loss(name)
  deep = losses.deep_supervised(loss_fn)
  grad = lambda loss_fn, labels: jax.grad(lambda logits, s: loss_fn(logits, labels, s)[0], (0, 1))
  both = jax.jit(lambda h, s: (grad(deep, LABELS)(h, s), [grad(loss_fn, y)(one, s) for one, y in zip(h, LABEL_SIZES)]))
  (heads, s), alone = both(HEADS, S)
  shares = (4 / 7, 2 / 7, 1 / 7)
  for head, (expected, _), share in zip(heads, alone, shares):
    assert np.isfinite(head).all() and np.abs(head).max() > 0
    np.testing.assert_allclose(head, share * expected, rtol=1e-4, atol=1e-8)
  np.testing.assert_allclose(s, sum(share * g for share, (_, g) in zip(shares, alone)), rtol=1e-5, atol=1e-7)
  assert ('afw' in name) == (np.abs(s) > 0).all()


def test_a_mask_is_reduced_like_the_labels():
  mask = RNG.random((2, 8, 12)) < 0.6
  loss, _ = losses.deep_supervised(CE_AFW)(HEADS, LABELS, S, mask=mask)
  masks = [mask, mask[:, 1::2, 1::2], mask[:, 2::4, 2::4]]
  expected = sum(w / 7 * CE_AFW(h, y, S, mask=m)[0] for w, h, y, m in zip((4, 2, 1), HEADS, LABEL_SIZES, masks))
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  per_case = np.array([1.0, 0.25]).reshape(2, 1, 1)
  loss, _ = losses.deep_supervised(CE_AFW)(HEADS, LABELS, S, mask=per_case)
  np.testing.assert_allclose(loss, by_hand(CE_AFW, (4 / 7, 2 / 7, 1 / 7), mask=per_case), rtol=1e-6)


def test_a_loss_without_a_mask_of_ones_own_making():
  loss, terms = losses.deep_supervised(lambda logits, labels, s: (logits.mean() + labels.size, {}))(
    HEADS[:2], LABELS, S
  )
  assert terms == {}
  np.testing.assert_allclose(loss, (2 * (HEADS[0].mean() + 192) + HEADS[1].mean() + 48) / 3, rtol=1e-6)


@pytest.mark.parametrize(
  'sides, wanted',
  [
    ((8, 16, 12), (8, 8, 12)),
    ((8, 16, 12), (4, 4, 3)),
    ((7, 9, 10), (3, 3, 4)),
    ((5, 12, 6), (4, 5, 6)),
    ((4, 6), (8, 9)),
    ((9, 224), (1, 56)),
    ((100, 7), (33, 7)),
  ],
)
def test_nearest_is_the_input_whose_centre_is_nearest(sides, wanted):
  """Against the distances between centres themselves, ties to the later input."""
  labels = RNG.integers(0, 9, (2, *sides)).astype(np.uint8)
  expected = labels
  for axis, (n, m) in enumerate(zip(sides, wanted), 1):
    centres = (np.arange(m) + 0.5) * n / m
    distance = np.abs((np.arange(n) + 0.5) - centres[:, None])
    expected = expected.take(n - 1 - np.argmin(np.round(distance[:, ::-1], 9), 1), axis)
  found = jax.jit(lambda y: nearest(y, wanted))(labels)
  assert found.dtype == labels.dtype and (np.asarray(found) == expected).all()
  assert (np.asarray(nearest(labels, sides)) == labels).all()


def test_three_dimensions_with_other_ratios_per_axis():
  labels = RNG.integers(0, 3, (1, 8, 16, 16))
  heads = [RNG.standard_normal((1, *sides, 3)).astype(np.float32) for sides in ((8, 16, 16), (4, 4, 4), (3, 2, 5))]
  loss, _ = jax.jit(losses.deep_supervised(CE))(heads, labels, S)
  at = [(2 * np.arange(m) + 1) * n // (2 * m) for n, m in zip((8, 16, 16), (3, 2, 5))]
  sizes = [labels, labels[:, 1::2, 2::4, 2::4], labels[:, at[0]][:, :, at[1]][:, :, :, at[2]]]
  np.testing.assert_allclose(loss, sum(w / 7 * CE(h, y, S)[0] for w, h, y in zip((4, 2, 1), heads, sizes)), rtol=1e-6)


@pytest.mark.parametrize(
  'weights, main, heads, word',
  [
    ((1, 0.5), 0, HEADS, '2 for 3 heads'),
    ((1, 1, 1, 1), 0, HEADS, '4 for 3 heads'),
    (None, 3, HEADS, '3 is not a valid index of 3'),
    (None, -4, HEADS, 'not a valid index'),
    (None, 0, [], 'not a valid index of 0'),
    (None, -1, HEADS, 'Name the full-size head'),
    (None, 0, [HEADS[0], HEADS[1][0]], 'channels last'),
  ],
)
def test_heads_that_do_not_fit_are_refused(weights, main, heads, word):
  with pytest.raises(InputError, match=word):
    losses.deep_supervised(CE_AFW, weights, main=main)(heads, LABELS, S)


@pytest.mark.parametrize('weights', [(), (0, 0), (1, -0.5), (1, np.nan), (1, np.inf), ('1', 2), (True, 1)])
def test_invalid_weights_are_refused_at_once(weights):
  with pytest.raises(InputError, match='weights of the heads'):
    losses.deep_supervised(CE_AFW, weights)
