"""From a name and options to the one shape of loss that training knows."""

import functools
import inspect
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
import numpy as np

from afw_jax.errors import InputError
from afw_jax.losses.afw import afw_of, afw_terms_of, recipe_of
from afw_jax.losses.checks import check_choice, check_flag, check_number
from afw_jax.losses.pixels import pixels
from afw_jax.losses.terms import cross_entropy_of, dice_of, dice_terms_of, focal_of, generalised_dice_of
from afw_jax.losses.tversky import focal_tversky_of, tversky_of, unified_focal_of

LossFn = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def _single(loss_of):
  """A loss of pixels alone -> (loss, terms), the linear Dice terms beside it."""

  @functools.wraps(loss_of)
  def term(px, log_sigma_sq, **options):
    return loss_of(px, **options), {'dice': dice_terms_of(px)}

  return term


def _dice(px, log_sigma_sq, *, squared=False, smooth=1e-5, include_background=True, reduction='mean'):
  loss = dice_of(px, squared=squared, smooth=smooth, include_background=include_background, reduction=reduction)
  return loss, {'dice': dice_terms_of(px, squared=squared, smooth=smooth)}


def _ce_dice(
  px,
  log_sigma_sq,
  *,
  recipe='paper',
  ce_weight=None,
  dice_weight=None,
  squared=None,
  smooth=1e-5,
  include_background=True,
  reduction='mean',
):
  ce_weight, dice_weight, squared = recipe_of(recipe, ce_weight, dice_weight, squared)
  dice, terms = _dice(
    px, None, squared=squared, smooth=smooth, include_background=include_background, reduction=reduction
  )
  return ce_weight * cross_entropy_of(px) + dice_weight * dice, terms


def _ce_gd(px, log_sigma_sq, *, ce_weight=1.0, gd_weight=1.0, smooth=1e-5):
  check_number('ce_weight', ce_weight)
  check_number('gd_weight', gd_weight)
  loss = ce_weight * cross_entropy_of(px) + gd_weight * generalised_dice_of(px, smooth=smooth)
  return loss, {'dice': dice_terms_of(px)}


def _focal_dice(
  px,
  log_sigma_sq,
  *,
  focal_weight=1.0,
  dice_weight=1.0,
  gamma=2,
  squared=False,
  smooth=1e-5,
  include_background=True,
  reduction='mean',
):
  check_number('focal_weight', focal_weight)
  check_number('dice_weight', dice_weight)
  dice, terms = _dice(
    px, None, squared=squared, smooth=smooth, include_background=include_background, reduction=reduction
  )
  return focal_weight * focal_of(px, gamma=gamma) + dice_weight * dice, terms


def _afw(
  px,
  log_sigma_sq,
  *,
  learned_weights=True,
  gamma=0.25,
  rare=None,
  correction='eq6',
  squared=False,
  smooth=1e-5,
  symmetric=False,
  reduction='sum',
):
  check_flag('learned_weights', learned_weights)
  s = log_sigma_sq if learned_weights else None
  terms = afw_terms_of(px, s, gamma=gamma, rare=rare, squared=squared, smooth=smooth, symmetric=symmetric)
  return afw_of(terms, s, correction=correction, reduction=reduction), terms


def _ce_afw(
  px,
  log_sigma_sq,
  *,
  recipe='paper',
  ce_weight=None,
  dice_weight=None,
  squared=None,
  learned_weights=True,
  gamma=0.25,
  rare=None,
  correction='eq6',
  smooth=1e-5,
  symmetric=False,
  reduction='sum',
):
  ce_weight, dice_weight, squared = recipe_of(recipe, ce_weight, dice_weight, squared)
  afw, terms = _afw(
    px,
    log_sigma_sq,
    learned_weights=learned_weights,
    gamma=gamma,
    rare=rare,
    correction=correction,
    squared=squared,
    smooth=smooth,
    symmetric=symmetric,
    reduction=reduction,
  )
  return ce_weight * cross_entropy_of(px) + dice_weight * afw, terms


_TERMS = {
  'ce_afw': _ce_afw,
  'ce_dice': _ce_dice,
  'ce_gd': _ce_gd,
  'focal_dice': _focal_dice,
  'afw': _afw,
  'dice': _dice,
  'ce': _single(cross_entropy_of),
  'gd': _single(generalised_dice_of),
  'focal': _single(focal_of),
  'tversky': _single(tversky_of),
  'focal_tversky': _single(focal_tversky_of),
  'unified_focal': _single(unified_focal_of),
}
LOSSES = tuple(_TERMS)


def loss_options(name: str) -> tuple[str, ...]:
  """The options that `make_loss` takes for a name.

  Raises:
    InputError: an unknown name.
  """
  check_choice('loss', name, LOSSES)
  parameters = inspect.signature(_TERMS[name]).parameters
  return tuple(p for p in parameters if p not in ('px', 'log_sigma_sq')) + ('axis_name',)


def make_loss(name: str, *, axis_name=None, **options) -> LossFn:
  """Names and options -> the uniform loss function of training.

  Args:
    name: one of `LOSSES`. The four that the paper compares are 'focal_dice', 'ce_gd', 'ce_dice' and 'ce_afw'.
    axis_name: mapped axis whose shards make up the batch; None under plain jit, which needs none.
    **options: of the loss, by the names of its function (`loss_options(name)` lists them). 'ce_dice' and 'ce_afw' take
      recipe='paper' (weights 1 and 1, linear denominators) or 'released' (0.5 and 0.5, squared), overridden by
      ce_weight, dice_weight, squared; VA-TransUNet's mixture is ce_weight=0.4, dice_weight=0.6, squared=True. 'afw' and
      'ce_afw' take learned_weights=False for the paper's Table 3, which leaves log_sigma_sq unread.

  Returns:
    fn(logits, labels, log_sigma_sq, *, mask=None) -> (loss, terms). loss is a scalar; terms are (C,) arrays: always
    'dice', the Dice loss of each class (the very term of the loss where it has one, else linear), and for AFW also
    'focused', 'weight' and 'contribution'. All losses but 'afw' and 'ce_afw' leave log_sigma_sq unread.

  Raises:
    InputError: an unknown name or option, or a value that cannot be right, here and not in the first step of training.
  """
  allowed = loss_options(name)
  for option in options:
    check_choice(f'option of the loss {name!r}', option, allowed)
  if options.get('reduction') == 'none':
    raise InputError('reduction', "'none' leaves no scalar to train on", "Choose 'mean' or 'sum'.")
  term = functools.partial(_TERMS[name], **options)

  def loss_fn(logits, labels, log_sigma_sq, *, mask=None):
    return term(pixels(logits, labels, mask, axis_name), log_sigma_sq)

  _try(term, options.get('rare'))
  return loss_fn


def _try(term, rare) -> None:
  """Traces the loss once on abstract arrays with classes enough for the rare set, so that bad options fail now."""
  ids = [i for i in rare if isinstance(i, int | np.integer)] if isinstance(rare, Collection) else []
  num_classes = max([1, *ids]) + 1
  logits, labels = jax.ShapeDtypeStruct((1, num_classes), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
  s = jax.ShapeDtypeStruct((num_classes,), jnp.float32)
  jax.eval_shape(lambda logits, labels, s: term(pixels(logits, labels), s), logits, labels, s)
