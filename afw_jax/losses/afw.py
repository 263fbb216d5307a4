"""Asymmetric Focal Weighted Dice loss (AFW-Dice), and its sum with cross-entropy: Eqs. 2 and 4 to 7 of Guo et al.

References:
  Guo Y., Lin J., Pan J., Jiang T. 2024 (the paper). Segmentation of Abdominal CT images with Asymmetric Focal Weighted
    Dice loss. Intelligent Computer and Applications 14(7):20-28, doi 10.20169/j.issn.2095-2163.240703.
  Kendall A., Gal Y., Cipolla R. 2018. Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics. arXiv:1705.07115 (weights 1 / sigma^2, Eq. 1).
  Liebel L., Koerner M. 2018. Auxiliary Tasks in Multi-task Learning. arXiv:1805.06334 (positive correction, Eq. 2).
"""

from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp

from afw_jax.losses.checks import check_choice, check_log_sigma_sq, check_number, focused_classes
from afw_jax.losses.pixels import SMOOTH, Pixels, pixels, power
from afw_jax.losses.terms import cross_entropy_of, dice_terms_of
from afw_jax.losses.types import Array, AxisName, Correction, RecipeName, Reduction, Scalar

# Defaults of every function that takes these options: the paper's choices.
GAMMA = 0.25
CORRECTION: Correction = 'eq6'
REDUCTION: Reduction = 'sum'

STEEPEST = 30.0  # exp(-s) continues as its tangent below s = -STEEPEST


class Recipe(NamedTuple):
  """How cross-entropy and (AFW-)Dice are added up, and whether the denominators of Dice are squared."""

  ce_weight: Scalar
  dice_weight: Scalar
  squared: bool


RECIPES: dict[str, Recipe] = {'paper': Recipe(1.0, 1.0, False), 'released': Recipe(0.5, 0.5, True)}


def recipe_of(recipe: RecipeName, ce_weight: Scalar | None, dice_weight: Scalar | None, squared: bool | None) -> Recipe:
  """The named recipe with the values that are given (not None) in place of its own.

  Raises:
    InputError: an unknown recipe, or a weight out of range.
  """
  check_choice('recipe', recipe, RECIPES)
  named = RECIPES[recipe]
  mixture = Recipe(
    named.ce_weight if ce_weight is None else ce_weight,
    named.dice_weight if dice_weight is None else dice_weight,
    named.squared if squared is None else squared,
  )
  check_number('ce_weight', mixture.ce_weight)
  check_number('dice_weight', mixture.dice_weight)
  return mixture


def init_log_sigma_sq(num_classes: int) -> jax.Array:
  """Initial log-variances of AFW-Dice, s_c = ln sigma_c^2 = 0: every class starts with the weight 1.

  Train them with the network, as one more leaf of the parameters.

  Args:
    num_classes: C, background included.

  Returns:
    (C,) float32 zeros.
  """
  return jnp.zeros((num_classes,), jnp.float32)


def class_weights(log_sigma_sq: jax.Array) -> jax.Array:
  """Class weights 1 / sigma_c^2 = exp(-s_c) of paper Eq. 6, finite in value and gradient for every s.

  Below s = -30, a weight of 1e13, the exponential continues as its tangent, up to 1e6 times its value there: the
  gradient still pushes s back up, and nothing overflows. Training stays far away: in equilibrium exp(-s_c) is below
  1 / focused loss, so that s_c stays above -7 while that loss is above 1e-3.
  """
  x = -log_sigma_sq
  return jnp.exp(jnp.minimum(x, STEEPEST)) * (1 + jnp.clip(x - STEEPEST, 0, 1e6))


def afw_terms_of(
  px: Pixels,
  log_sigma_sq: Array | None,
  *,
  gamma: Scalar,
  rare: Collection[int] | None,
  squared: bool,
  smooth: Scalar,
  symmetric: bool,
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


def afw_of(
  px: Pixels, log_sigma_sq: Array | None, *, correction: Correction, reduction: Reduction, **terms_options
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """`afw_dice` of prepared pixels, and its terms, which take the other options."""
  terms = afw_terms_of(px, log_sigma_sq, **terms_options)
  check_choice('correction', correction, ('eq6', 'eq2', None))
  check_choice('reduction', reduction, ('sum', 'mean'))
  loss = terms['contribution'].sum()
  if log_sigma_sq is not None and correction is not None:
    s = jnp.asarray(log_sigma_sq, loss.dtype)
    loss += jax.nn.softplus(s.sum()) if correction == 'eq6' else jax.nn.softplus(s).sum()
  return loss if reduction == 'sum' else loss / terms['contribution'].size, terms


def ce_afw_of(
  px: Pixels,
  log_sigma_sq: Array | None,
  *,
  recipe: RecipeName,
  ce_weight: Scalar | None,
  dice_weight: Scalar | None,
  squared: bool | None,
  **afw_options,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """`afw_loss` of prepared pixels, and the terms of AFW-Dice, which takes the other options."""
  mixture = recipe_of(recipe, ce_weight, dice_weight, squared)
  afw, terms = afw_of(px, log_sigma_sq, squared=mixture.squared, **afw_options)
  return mixture.ce_weight * cross_entropy_of(px) + mixture.dice_weight * afw, terms


def afw_dice_terms(
  logits: Array,
  labels: Array,
  log_sigma_sq: Array | None,
  *,
  gamma: Scalar = GAMMA,
  rare: Collection[int] | None = None,
  squared: bool = False,
  smooth: Scalar = SMOOTH,
  symmetric: bool = False,
  mask: Array | None = None,
  axis_name: AxisName | None = None,
) -> dict[str, jax.Array]:
  """The parts of AFW-Dice class by class, for logs and plots.

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


def afw_dice(
  logits: Array,
  labels: Array,
  log_sigma_sq: Array | None,
  *,
  gamma: Scalar = GAMMA,
  rare: Collection[int] | None = None,
  correction: Correction = CORRECTION,
  squared: bool = False,
  smooth: Scalar = SMOOTH,
  symmetric: bool = False,
  reduction: Reduction = REDUCTION,
  mask: Array | None = None,
  axis_name: AxisName | None = None,
) -> jax.Array:
  """AFW-Dice (paper Eqs. 5 and 6) over the whole batch.

    sum_{c not rare} exp(-s_c) L_c + sum_{c rare} exp(-s_c) L_c^gamma + correction,   s_c = ln sigma_c^2

  L_c is `dice_terms` and not Eq. 4 as printed, which is negative for a perfect class and -1 for an absent one, so that
  its power 0.25 would be NaN. The power is exact above L = 1e-12 and a straight line to (0, 0) below, so that its
  gradient is finite.

  Args:
    logits: (B, *S, C) floating; bfloat16 and float16 are converted to float32 first.
    labels: (B, *S) integer class ids, 0 the background; pixels with ids outside [0, C) are ignored.
    log_sigma_sq: (C,) log-variances s, trained with the network, initialised by `init_log_sigma_sq`; None for equal
      weights and no correction (paper Table 3). exp(-s) is finite for any s: see `class_weights`.
    gamma: exponent of the focused classes, 0 or more. 1 is the plain weighted Dice; with 0 they have no gradient.
    rare: ids of the focused classes; None means every foreground class (the paper's choice).
    correction: 'eq6', ln(prod sigma^2 + 1) = softplus(sum s); 'eq2', sum ln(sigma^2 + 1) = sum softplus(s); or None.
    squared: False for the linear denominators of Eq. 4, True for the squared ones of the released code.
    smooth: e of the Dice terms.
    symmetric: whether every class has the exponent, background included (paper Table 4); `rare` must be None then.
    reduction: 'sum' over classes, or 'mean': everything, correction included, divided by C (the equilibrium of the
      weights stays the same).
    mask: None, or (B, *S) bool or weights of the pixels.
    axis_name: mapped axis inside shard_map or pmap; the sums are psum-ed before the power, so it is the global loss.

  Returns:
    Scalar.

  Raises:
    InputError: shapes or dtypes that do not match, an option out of range, or rare ids outside [0, C).
  """
  loss, _ = afw_of(
    pixels(logits, labels, mask, axis_name),
    log_sigma_sq,
    gamma=gamma,
    rare=rare,
    correction=correction,
    squared=squared,
    smooth=smooth,
    symmetric=symmetric,
    reduction=reduction,
  )
  return loss


def afw_loss(
  logits: Array,
  labels: Array,
  log_sigma_sq: Array | None,
  *,
  recipe: RecipeName = 'paper',
  ce_weight: Scalar | None = None,
  dice_weight: Scalar | None = None,
  squared: bool | None = None,
  gamma: Scalar = GAMMA,
  rare: Collection[int] | None = None,
  correction: Correction = CORRECTION,
  smooth: Scalar = SMOOTH,
  symmetric: bool = False,
  reduction: Reduction = REDUCTION,
  mask: Array | None = None,
  axis_name: AxisName | None = None,
) -> jax.Array:
  """ce_weight * cross-entropy + dice_weight * AFW-Dice: paper Eq. 7, or the mixture of the released code.

  Args:
    recipe: 'paper' for weights 1 and 1 and linear denominators, 'released' for 0.5 and 0.5 and squared ones.
    ce_weight, dice_weight, squared: None takes the recipe's value.
    logits, labels, log_sigma_sq, gamma, rare, correction, smooth, symmetric, reduction, mask, axis_name: as for
      `afw_dice`.

  Returns:
    Scalar.

  Raises:
    InputError: as for `afw_dice`, or an unknown recipe.
  """
  loss, _ = ce_afw_of(
    pixels(logits, labels, mask, axis_name),
    log_sigma_sq,
    recipe=recipe,
    ce_weight=ce_weight,
    dice_weight=dice_weight,
    squared=squared,
    gamma=gamma,
    rare=rare,
    correction=correction,
    smooth=smooth,
    symmetric=symmetric,
    reduction=reduction,
  )
  return loss
