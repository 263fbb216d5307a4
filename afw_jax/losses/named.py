"""Losses by name: `make_loss` turns a name and options into the loss function that training calls."""

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from afw_jax.errors import InputError
from afw_jax.losses.afw import afw_dice, afw_loss, afw_of, ce_afw_of
from afw_jax.losses.checks import check_choice, check_flag, check_number
from afw_jax.losses.pixels import SMOOTH, pixels
from afw_jax.losses.recipes import recipe_of
from afw_jax.losses.terms import (
  cross_entropy_of,
  dice_loss,
  dice_of,
  dice_terms_of,
  focal_loss,
  focal_of,
  generalised_dice_loss,
  generalised_dice_of,
)
from afw_jax.losses.tversky import (
  focal_tversky_loss,
  focal_tversky_of,
  tversky_loss,
  tversky_of,
  unified_focal_loss,
  unified_focal_of,
)
from afw_jax.losses.types import AxisName, LossFn, Scalar


def _linear_dice(px) -> dict[str, jax.Array]:
  return {'dice': dice_terms_of(px, squared=False, smooth=SMOOTH)}


def _single(loss_of):
  """(loss, linear Dice terms) of a loss that does not return terms itself."""

  def loss_and_terms(px, log_sigma_sq, **options):
    return loss_of(px, **options), _linear_dice(px)

  return loss_and_terms


def _weighted(loss_of):
  """A loss with class weights, with the option learned_weights=False for weights='equal'."""

  def loss_and_terms(px, log_sigma_sq, *, learned_weights, weights, **options):
    check_flag('learned_weights', learned_weights)
    if not learned_weights and weights not in ('learned', 'equal'):
      raise InputError('learned_weights', f'is False, and weights is {weights!r}', 'Give one of the two.')
    return loss_of(px, log_sigma_sq, weights=weights if learned_weights else 'equal', **options)

  return loss_and_terms


def _dice(px, log_sigma_sq, *, squared, smooth, include_background, reduction, weight: Scalar = 1.0):
  """Dice with its terms; the pull is that on `weight` times this loss."""
  loss = dice_of(px, squared=squared, smooth=smooth, include_background=include_background, reduction=reduction)
  dice = dice_terms_of(px, squared=squared, smooth=smooth)
  included = jnp.ones_like(dice).at[0].set(include_background)
  pull = included / included.sum() if reduction == 'mean' else included
  return loss, {'dice': dice, 'pull': weight * pull}


def _ce_dice(px, log_sigma_sq, *, recipe, ce_weight, dice_weight, squared, **options):
  mixture = recipe_of(recipe, ce_weight, dice_weight, squared)
  dice, terms = _dice(px, None, squared=mixture.squared, weight=mixture.dice_weight, **options)
  return mixture.ce_weight * cross_entropy_of(px) + mixture.dice_weight * dice, terms


def _ce_gd(px, log_sigma_sq, *, ce_weight, gd_weight, smooth):
  check_number('ce_weight', ce_weight)
  check_number('gd_weight', gd_weight)
  loss = ce_weight * cross_entropy_of(px) + gd_weight * generalised_dice_of(px, smooth=smooth)
  return loss, _linear_dice(px)


def _focal_dice(px, log_sigma_sq, *, focal_weight, dice_weight, gamma, **options):
  check_number('focal_weight', focal_weight)
  check_number('dice_weight', dice_weight)
  dice, terms = _dice(px, None, weight=dice_weight, **options)
  return focal_weight * focal_of(px, gamma=gamma) + dice_weight * dice, terms


def _defaults(function: Callable, *names: str) -> dict[str, Any]:
  """Options of a public loss with their defaults: all of them, or those named; arguments of a call are left out."""
  keywords = (p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY)
  return {p.name: p.default for p in keywords if p.name in names or not (names or p.name in ('mask', 'axis_name'))}


class _Loss(NamedTuple):
  """compute(px, log_sigma_sq, **options) -> (loss, terms), and all its options with their defaults."""

  compute: Callable
  options: dict[str, Any]


_RECIPE = _defaults(afw_loss, 'recipe', 'ce_weight', 'dice_weight', 'squared')
_LOSSES = {
  'ce_afw': _Loss(_weighted(ce_afw_of), {'learned_weights': True} | _defaults(afw_loss)),
  'ce_dice': _Loss(_ce_dice, _defaults(dice_loss) | _RECIPE),
  'ce_gd': _Loss(_ce_gd, {'ce_weight': 1.0, 'gd_weight': 1.0} | _defaults(generalised_dice_loss)),
  'focal_dice': _Loss(
    _focal_dice, {'focal_weight': 1.0, 'dice_weight': 1.0} | _defaults(focal_loss) | _defaults(dice_loss)
  ),
  'afw': _Loss(_weighted(afw_of), {'learned_weights': True} | _defaults(afw_dice)),
  'dice': _Loss(_dice, _defaults(dice_loss)),
  'ce': _Loss(_single(cross_entropy_of), {}),
  'gd': _Loss(_single(generalised_dice_of), _defaults(generalised_dice_loss)),
  'focal': _Loss(_single(focal_of), _defaults(focal_loss)),
  'tversky': _Loss(_single(tversky_of), _defaults(tversky_loss)),
  'focal_tversky': _Loss(_single(focal_tversky_of), _defaults(focal_tversky_loss)),
  'unified_focal': _Loss(_single(unified_focal_of), _defaults(unified_focal_loss)),
}
LOSSES = tuple(_LOSSES)


def loss_options(name: str) -> tuple[str, ...]:
  """Names of the options that `make_loss` takes for a loss.

  Raises:
    InputError: an unknown name.
  """
  check_choice('loss', name, LOSSES)
  return (*_LOSSES[name].options, 'axis_name')


def make_loss(name: str, *, axis_name: AxisName | None = None, **options) -> LossFn:
  """Makes the loss function of a name and its options, with the one signature that training calls.

  Args:
    name: one of `LOSSES`. The four that the paper compares are 'focal_dice', 'ce_gd', 'ce_dice' and 'ce_afw'.
    axis_name: mapped axis whose shards make up the batch; None under plain jit, which does not need it.
    **options: keyword options of the loss, as in the public function of that loss (`loss_options(name)` lists them).
      'ce_dice' and 'ce_afw' take recipe='paper' (weights 1 and 1, linear denominators) or 'released' (0.5 and 0.5,
      squared), overridden by ce_weight, dice_weight, squared; VA-TransUNet's mixture is ce_weight=0.4,
      dice_weight=0.6, squared=True. Equal class weights (paper Table 3) are weights='equal', or learned_weights=False.

  Returns:
    fn(logits, labels, log_sigma_sq, *, mask=None) -> (loss, terms). loss is a scalar; terms are (C,) arrays: always
    'dice', the Dice loss of each class (the one inside the loss if it has one, otherwise the linear one). Losses made
    of these terms also give 'pull', the derivative of the loss with respect to each of them, and AFW gives 'focused',
    'weight' and 'contribution'. Only 'afw' and 'ce_afw' with weights='learned' use log_sigma_sq.

  Raises:
    InputError: an unknown name or option, or an invalid value; raised here and not in the first training step.
  """
  allowed = loss_options(name)
  for option in options:
    check_choice(f'option of the loss {name!r}', option, allowed)
  if options.get('reduction') == 'none':
    raise InputError('reduction', "'none' does not give a scalar to train on", "Choose 'mean' or 'sum'.")
  compute = functools.partial(_LOSSES[name].compute, **(_LOSSES[name].options | options))

  def loss_fn(logits, labels, log_sigma_sq, *, mask=None):
    return compute(pixels(logits, labels, mask, axis_name), log_sigma_sq)

  _check_options(compute, options.get('rare'))
  return loss_fn


def _check_options(compute: Callable, rare) -> None:
  """Traces the loss once on abstract arrays, with enough classes for the rare set, so that bad options fail now."""
  ids = [i for i in rare if isinstance(i, int | np.integer)] if isinstance(rare, Collection) else []
  num_classes = max([1, *ids]) + 1
  logits, labels = jax.ShapeDtypeStruct((1, num_classes), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
  s = jax.ShapeDtypeStruct((num_classes,), jnp.float32)
  jax.eval_shape(lambda logits, labels, s: compute(pixels(logits, labels), s), logits, labels, s)
