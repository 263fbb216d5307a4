"""Asymmetric Focal Weighted Dice loss (AFW-Dice), and its sum with cross-entropy: Eqs. 2 and 4 to 7 of Guo et al.

References:
  Guo Y., Lin J., Pan J., Jiang T. 2024 (the paper). Segmentation of Abdominal CT images with Asymmetric Focal Weighted
    Dice loss. Intelligent Computer and Applications 14(7):20-28, doi 10.20169/j.issn.2095-2163.240703.
  Kendall A., Gal Y., Cipolla R. 2018. Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics. arXiv:1705.07115 (weights 1 / sigma^2, Eq. 1).
  Liebel L., Koerner M. 2018. Auxiliary Tasks in Multi-task Learning. arXiv:1805.06334 (positive correction, Eq. 2).
"""

from collections.abc import Collection

import jax
import jax.numpy as jnp

from afw_jax.losses.checks import check_choice, check_number, focused_classes
from afw_jax.losses.pixels import SMOOTH, Pixels, class_sizes, pixels, power, power_slope
from afw_jax.losses.recipes import recipe_of
from afw_jax.losses.terms import cross_entropy_of, dice_terms_of
from afw_jax.losses.types import (
  Array,
  AxisName,
  Background,
  Correction,
  RecipeName,
  Reduction,
  Scalar,
  Weights,
)
from afw_jax.losses.weights import weigh

# Defaults of every function that takes these options: the paper's choices, and the temperature of entropic weights.
GAMMA = 0.25
CORRECTION: Correction = 'eq6'
REDUCTION: Reduction = 'sum'
WEIGHTS: Weights = 'learned'
BACKGROUND: Background = 'weighted'
TAU = 0.25


def init_log_sigma_sq(num_classes: int) -> jax.Array:
  """Initial log-variances of AFW-Dice, s_c = ln sigma_c^2 = 0: every class starts with the weight 1.

  Train them with the network, as one more leaf of the parameters.

  Args:
    num_classes: C, background included.

  Returns:
    (C,) float32 zeros.
  """
  return jnp.zeros((num_classes,), jnp.float32)


def afw_of(
  px: Pixels,
  log_sigma_sq: Array | None,
  *,
  gamma: Scalar,
  rare: Collection[int] | None,
  squared: bool,
  smooth: Scalar,
  symmetric: bool,
  reduction: Reduction,
  weights: Weights,
  **weight_options,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """`afw_dice` of prepared pixels, and its terms; the other options are those of `weigh`."""
  check_number('gamma', gamma)
  check_choice('reduction', reduction, ('sum', 'mean'))
  num_classes = px.p.shape[-1]
  focus = focused_classes(num_classes, rare, symmetric)
  dice = dice_terms_of(px, squared=squared, smooth=smooth)
  focused = jnp.where(focus, power(dice, gamma), dice)
  present = class_sizes(px) > 0 if weights == 'entropic_present' else True
  loss, weight = weigh(focused, log_sigma_sq, weights=weights, present=present, **weight_options)
  pull = weight * jnp.where(focus, power_slope(dice, gamma), 1)
  terms = {'dice': dice, 'focused': focused, 'weight': weight, 'contribution': weight * focused, 'pull': pull}
  return (loss, terms) if reduction == 'sum' else (loss / num_classes, terms | {'pull': pull / num_classes})


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
  loss = mixture.ce_weight * cross_entropy_of(px) + mixture.dice_weight * afw
  return loss, terms | {'pull': mixture.dice_weight * terms['pull']}


def afw_dice_terms(
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
  weights: Weights = WEIGHTS,
  background: Background = BACKGROUND,
  tau: Scalar = TAU,
  mask: Array | None = None,
  axis_name: AxisName | None = None,
) -> dict[str, jax.Array]:
  """The parts of AFW-Dice class by class, for logs and plots.

  Args:
    logits, labels, log_sigma_sq, gamma, rare, correction, squared, smooth, symmetric, weights, background, tau, mask,
      axis_name: as for `afw_dice`.

  Returns:
    Five (C,) arrays: 'dice', the plain Dice loss L_c; 'focused', L_c^gamma for focused classes and L_c for the others;
    'weight', w_c; 'contribution', weight * focused, whose sum plus the correction is `afw_dice` (not with entropic
    weights); 'pull', the derivative of `afw_dice` with respect to L_c, w_c gamma_c L_c^(gamma_c - 1): how strongly the
    loss pulls on the class.

  Raises:
    InputError: as for `afw_dice`.
  """
  _, terms = afw_of(
    pixels(logits, labels, mask, axis_name),
    log_sigma_sq,
    gamma=gamma,
    rare=rare,
    correction=correction,
    squared=squared,
    smooth=smooth,
    symmetric=symmetric,
    reduction='sum',
    weights=weights,
    background=background,
    tau=tau,
  )
  return terms


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
  weights: Weights = WEIGHTS,
  background: Background = BACKGROUND,
  tau: Scalar = TAU,
  mask: Array | None = None,
  axis_name: AxisName | None = None,
) -> jax.Array:
  """AFW-Dice (paper Eqs. 5 and 6) over the whole batch.

    sum_{c not rare} exp(-s_c) L_c + sum_{c rare} exp(-s_c) L_c^gamma + correction,   s_c = ln sigma_c^2

  L_c is `dice_terms` and not Eq. 4 as printed, which is negative for a perfect class and -1 for an absent one, so that
  its power 0.25 would be NaN. The power is exact above L = 1e-12 and a straight line to (0, 0) below, so that its
  gradient is finite.

  The learned weights settle where all exp(-s_c) L_c^gamma_c are equal, so that the class with the smallest loss weighs
  most: docs/the-loss.md has the closed forms, and what each choice of `weights` does.

  Args:
    logits: (B, *S, C) floating; bfloat16 and float16 are converted to float32 first.
    labels: (B, *S) integer class ids, 0 the background; pixels with ids outside [0, C) are ignored.
    log_sigma_sq: (C,) log-variances s, trained with the network, initialised by `init_log_sigma_sq`; None for equal
      weights and no correction (paper Table 3). exp(-s) is finite for any s: see `class_weights`. Used by
      weights='learned' alone.
    gamma: exponent of the focused classes, 0 or more. Below 1 it pulls hardest on nearly perfect classes, above 1 on
      those with the largest loss; 1 is the plain weighted Dice; with 0 they have no gradient.
    rare: ids of the focused classes; None means every foreground class (the paper's choice).
    correction: 'eq6', ln(prod sigma^2 + 1) = softplus(sum s); 'eq2', sum ln(sigma^2 + 1) = sum softplus(s); or None.
    squared: False for the linear denominators of Eq. 4, True for the squared ones of the released code.
    smooth: e of the Dice terms.
    symmetric: whether every class has the exponent, background included (paper Table 4); `rare` must be None then.
    reduction: 'sum' over classes, or 'mean': everything, correction included, divided by C (the equilibrium of the
      weights stays the same).
    weights: 'learned', exp(-s_c); 'equal', 1, without correction; 'solved', those that minimise the loss over s, found
      anew for each batch; 'entropic', C softmax(l / tau) of the terms l_c after the power, where the loss is
      C tau ln((1 / C) sum exp(l_c / tau)), without correction; 'entropic_present', the same over the classes in the
      labels of the (global) batch, while the terms of the others are added with the weight 1.
    background: 'weighted', like every class; 'anchored', with the weight 1, so that weights and correction are those of
      the organs alone (s_0 is not used).
    tau: temperature of the entropic weights, 1e-6 to 1e6; large: equal weights, small: the worst class alone.
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
    weights=weights,
    background=background,
    tau=tau,
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
  weights: Weights = WEIGHTS,
  background: Background = BACKGROUND,
  tau: Scalar = TAU,
  mask: Array | None = None,
  axis_name: AxisName | None = None,
) -> jax.Array:
  """ce_weight * cross-entropy + dice_weight * AFW-Dice: paper Eq. 7, or the mixture of the released code.

  Args:
    recipe: 'paper' for weights 1 and 1 and linear denominators, 'released' for 0.5 and 0.5 and squared ones.
    ce_weight, dice_weight, squared: None takes the recipe's value.
    logits, labels, log_sigma_sq, gamma, rare, correction, smooth, symmetric, reduction, weights, background, tau, mask,
      axis_name: as for `afw_dice`.

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
    weights=weights,
    background=background,
    tau=tau,
  )
  return loss
