"""Asymmetric Focal Weighted Dice (AFW-Dice), paper Eqs. 2 and 4 to 7."""

import jax
import jax.numpy as jnp

from afw_jax.losses.checks import check_choice, check_log_sigma_sq, check_number, focused_classes
from afw_jax.losses.pixels import Pixels, pixels, power
from afw_jax.losses.terms import cross_entropy_of, dice_terms_of

# recipe -> weight of CE, weight of (AFW-)Dice, squared denominators
RECIPES = {'paper': (1.0, 1.0, False), 'released': (0.5, 0.5, True)}
STEEPEST = 30.0  # exp(-s) continues as its tangent below s = -STEEPEST


def recipe_of(recipe, ce_weight, dice_weight, squared):
  """The recipe's three choices, each replaced where it is given: (ce_weight, dice_weight, squared).

  Raises:
    InputError: an unknown recipe, a weight out of range.
  """
  check_choice('recipe', recipe, RECIPES)
  given = (ce_weight, dice_weight, squared)
  ce_weight, dice_weight, squared = (r if x is None else x for x, r in zip(given, RECIPES[recipe], strict=True))
  check_number('ce_weight', ce_weight)
  check_number('dice_weight', dice_weight)
  return ce_weight, dice_weight, squared


def class_weights(log_sigma_sq) -> jax.Array:
  """1 / sigma_c^2 = exp(-s_c) of paper Eq. 6, finite in value and gradient for every s.

  Below s = -30, a weight of 1e13, the exponential goes on as its tangent, up to 1e6 times its value there: s is still
  pushed back up, and nothing overflows. Training does not come near: at balance exp(-s_c) is below 1 / focused loss, so
  that s_c stays above -7 while that loss is above 1e-3.
  """
  x = -log_sigma_sq
  return jnp.exp(jnp.minimum(x, STEEPEST)) * (1 + jnp.clip(x - STEEPEST, 0, 1e6))


def afw_terms_of(
  px: Pixels, log_sigma_sq, *, gamma=0.25, rare=None, squared=False, smooth=1e-5, symmetric=False
) -> dict[str, jax.Array]:
  """`afw_dice_terms` of prepared pixels."""
  check_number('gamma', gamma)
  num_classes = px.p.shape[-1]
  focus = focused_classes(num_classes, rare, symmetric)
  dice = dice_terms_of(px, squared=squared, smooth=smooth)
  focused = jnp.where(focus, power(dice, gamma), dice)
  if log_sigma_sq is None:
    weight = jnp.ones_like(dice)
  else:
    check_log_sigma_sq(jnp.asarray(log_sigma_sq), num_classes)
    weight = class_weights(jnp.asarray(log_sigma_sq, dice.dtype))
  return {'dice': dice, 'focused': focused, 'weight': weight, 'contribution': weight * focused}


def afw_dice_terms(
  logits,
  labels,
  log_sigma_sq,
  *,
  gamma=0.25,
  rare=None,
  squared=False,
  smooth=1e-5,
  symmetric=False,
  mask=None,
  axis_name=None,
) -> dict[str, jax.Array]:
  """The parts of AFW-Dice, class by class, for logs and plots.

  Args:
    logits, labels, log_sigma_sq, gamma, rare, squared, smooth, symmetric, mask, axis_name: as for `afw_dice`.

  Returns:
    Four (C,) arrays: 'dice', the plain Dice loss L_c; 'focused', L_c^gamma for focused classes and L_c for the others;
    'weight', exp(-s_c); 'contribution', weight * focused, whose sum plus the correction is `afw_dice`.

  Raises:
    InputError: as for `afw_dice`.
  """
  px = pixels(logits, labels, mask, axis_name)
  return afw_terms_of(px, log_sigma_sq, gamma=gamma, rare=rare, squared=squared, smooth=smooth, symmetric=symmetric)


def afw_of(terms: dict, log_sigma_sq, *, correction='eq6', reduction='sum') -> jax.Array:
  """AFW-Dice from its terms (of `afw_terms_of`)."""
  check_choice('correction', correction, ('eq6', 'eq2', None))
  check_choice('reduction', reduction, ('sum', 'mean'))
  loss = terms['contribution'].sum()
  if log_sigma_sq is not None and correction is not None:
    s = jnp.asarray(log_sigma_sq, loss.dtype)
    loss += jax.nn.softplus(s.sum()) if correction == 'eq6' else jax.nn.softplus(s).sum()
  return loss if reduction == 'sum' else loss / terms['contribution'].size


def afw_dice(
  logits,
  labels,
  log_sigma_sq,
  *,
  gamma=0.25,
  rare=None,
  correction='eq6',
  squared=False,
  smooth=1e-5,
  symmetric=False,
  reduction='sum',
  mask=None,
  axis_name=None,
) -> jax.Array:
  """AFW-Dice (paper Eqs. 5 and 6) over the whole batch.

    sum_{c not rare} exp(-s_c) L_c + sum_{c rare} exp(-s_c) L_c^gamma + correction,   s_c = ln sigma_c^2

  L_c is `dice_terms`, not the printed Eq. 4, which is negative for a perfect class and -1 for an absent one, so that
  its power 0.25 would be NaN. The power is exact above L = 1e-12 and a chord to (0, 0) below: its gradient is finite.

  Args:
    logits: (B, *S, C) floating; bfloat16 and float16 are taken to float32 first.
    labels: (B, *S) integer class ids, 0 the background; pixels with ids outside [0, C) count nowhere.
    log_sigma_sq: (C,) log-variances s, trained with the network, 0 at the start; None: equal weights and no correction
      (paper Table 3). exp(-s) is finite for any s: below s = -30 it goes on as its tangent.
    gamma: exponent of the focused classes, 0 or more. 1 is the plain weighted Dice; with 0 they have no gradient.
    rare: class ids that are focused; None means every foreground class (the paper's choice).
    correction: 'eq6', ln(prod sigma^2 + 1) = softplus(sum s); 'eq2', sum ln(sigma^2 + 1) = sum softplus(s); or None.
    squared: False, Eq. 4's denominators; True, the released code's.
    smooth: e of the Dice terms.
    symmetric: the same exponent for every class, background included (paper Table 4); leaves no room for `rare`.
    reduction: 'sum' over classes, or 'mean': all of it, correction included, over C (so the weights balance as before).
    mask: None, or (B, *S) bool or weights: what each pixel counts.
    axis_name: mapped axis inside shard_map or pmap; the sums are psum-ed before the power, so it is the global loss.

  Returns:
    Scalar.

  Raises:
    InputError: shapes or dtypes that do not fit, an option out of range, rare ids outside [0, C).
  """
  terms = afw_dice_terms(
    logits,
    labels,
    log_sigma_sq,
    gamma=gamma,
    rare=rare,
    squared=squared,
    smooth=smooth,
    symmetric=symmetric,
    mask=mask,
    axis_name=axis_name,
  )
  return afw_of(terms, log_sigma_sq, correction=correction, reduction=reduction)


def afw_loss(
  logits,
  labels,
  log_sigma_sq,
  *,
  recipe='paper',
  ce_weight=None,
  dice_weight=None,
  squared=None,
  gamma=0.25,
  rare=None,
  correction='eq6',
  smooth=1e-5,
  symmetric=False,
  reduction='sum',
  mask=None,
  axis_name=None,
) -> jax.Array:
  """ce_weight * cross-entropy + dice_weight * AFW-Dice: paper Eq. 7 or the released code.

  Args:
    recipe: 'paper', weights 1 and 1, linear denominators; 'released', 0.5 and 0.5, squared ones.
    ce_weight, dice_weight, squared: None takes the recipe's.
    logits, labels, log_sigma_sq, gamma, rare, correction, smooth, symmetric, reduction, mask, axis_name: as for
      `afw_dice`.

  Returns:
    Scalar.

  Raises:
    InputError: as for `afw_dice`, or an unknown recipe.
  """
  ce_weight, dice_weight, squared = recipe_of(recipe, ce_weight, dice_weight, squared)
  px = pixels(logits, labels, mask, axis_name)
  terms = afw_terms_of(px, log_sigma_sq, gamma=gamma, rare=rare, squared=squared, smooth=smooth, symmetric=symmetric)
  afw = afw_of(terms, log_sigma_sq, correction=correction, reduction=reduction)
  return ce_weight * cross_entropy_of(px) + dice_weight * afw
