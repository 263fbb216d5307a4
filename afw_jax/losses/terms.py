"""Cross-entropy, focal, Dice and generalised Dice losses over the whole (global) batch."""

import jax
import jax.numpy as jnp

from afw_jax.losses.checks import check_choice, check_flag, check_number
from afw_jax.losses.pixels import Pixels, mean, overlap, pixels, power, ratio, totals

REDUCTIONS = ('mean', 'sum', 'none')


def reduce_classes(per_class, reduction: str) -> jax.Array:
  """'mean' or 'sum' over the class axis, 'none' leaves it.

  Raises:
    InputError: another reduction.
  """
  check_choice('reduction', reduction, REDUCTIONS)
  return {'mean': jnp.mean, 'sum': jnp.sum, 'none': jnp.asarray}[reduction](per_class)


def cross_entropy_of(px: Pixels) -> jax.Array:
  """`cross_entropy` of prepared pixels."""
  return mean(px, -px.log_p_true)


def cross_entropy(logits, labels, *, mask=None, axis_name=None) -> jax.Array:
  """Cross-entropy, the mean over the counted pixels of the global batch (paper Eq. 3).

  Args:
    logits: (B, *S, C) floating.
    labels: (B, *S) integer class ids; pixels with ids outside [0, C) count neither in the sum nor in N.
    mask: None, or (B, *S) bool or weights: what each pixel counts, in the sum and in N.
    axis_name: mapped axis whose shards make up the batch; sum and N are psum-ed over it.

  Returns:
    Scalar, 0 if no pixel counts.

  Raises:
    InputError: shapes or dtypes that do not fit.
  """
  return cross_entropy_of(pixels(logits, labels, mask, axis_name))


def focal_of(px: Pixels, *, gamma=2) -> jax.Array:
  """`focal_loss` of prepared pixels."""
  check_number('gamma', gamma)
  return mean(px, -power(-jnp.expm1(px.log_p_true), gamma) * px.log_p_true)


def focal_loss(logits, labels, *, gamma=2, mask=None, axis_name=None) -> jax.Array:
  """Softmax focal loss: mean over pixels of -(1 - p_t)^gamma ln p_t (Lin et al. 2017), without class weights.

  Args:
    logits: (B, *S, C) floating.
    labels: (B, *S) integer class ids.
    gamma: focusing exponent, 0 or more; 0 is cross-entropy.
    mask: None, or (B, *S) bool or weights.
    axis_name: mapped axis whose shards make up the batch.

  Returns:
    Scalar.

  Raises:
    InputError: shapes or dtypes that do not fit, gamma negative.
  """
  return focal_of(pixels(logits, labels, mask, axis_name), gamma=gamma)


def dice_terms_of(px: Pixels, *, squared=False, smooth=1e-5) -> jax.Array:
  """`dice_terms` of prepared pixels."""
  check_flag('squared', squared)
  check_number('smooth', smooth)
  error, hit = overlap(px, squared=squared)
  return ratio(error, 2 * hit + smooth)


def dice_terms(logits, labels, *, squared=False, smooth=1e-5, mask=None, axis_name=None) -> jax.Array:
  """Dice loss of each class over the whole batch, L_Dice_c of paper Eq. 5.

  Printed, Eq. 4 is 1 - 2 (sum p g + e) / (sum (p + g) + e). That cannot be meant: it sums over the classes where Eq. 5
  needs one term per class; it falls to -1 for a class that is absent and not predicted and below 0 for a perfect one,
  and a negative number to the power 0.25 is NaN. Used instead, as in the released code, is one e in each term,
  1 - (2 sum p g + e) / (sum (p + g) + e), computed by the identity

    linear:   sum |p - g|   / (sum p   + sum g + e)
    squared:  sum (p - g)^2 / (sum p^2 + sum g + e)      (the released code's denominator)

  which is the same number without the cancellation that made even 1 - Dice negative by rounding (-1e-7).

  Args:
    logits: (B, *S, C) floating.
    labels: (B, *S) integer class ids; pixels with ids outside [0, C) are left out of every sum.
    squared: False, the paper's denominators; True, the released code's.
    smooth: e, 0 or more.
    mask: None, or (B, *S) bool or weights.
    axis_name: mapped axis whose shards make up the batch.

  Returns:
    (C,) in [0, 1]. A class absent from labels gives sum p / (sum p + e): it still pushes its probability to 0.

  Raises:
    InputError: shapes or dtypes that do not fit, smooth negative.
  """
  return dice_terms_of(pixels(logits, labels, mask, axis_name), squared=squared, smooth=smooth)


def dice_of(px: Pixels, *, squared=False, smooth=1e-5, include_background=True, reduction='mean') -> jax.Array:
  """`dice_loss` of prepared pixels."""
  check_flag('include_background', include_background)
  terms = dice_terms_of(px, squared=squared, smooth=smooth)
  return reduce_classes(terms if include_background else terms[1:], reduction)


def dice_loss(
  logits, labels, *, squared=False, smooth=1e-5, include_background=True, reduction='mean', mask=None, axis_name=None
) -> jax.Array:
  """Dice loss over the whole batch, reduced over the classes; see `dice_terms`.

  squared=True, reduction='mean' with background is TransUNet's Dice, the paper's baseline.

  Args:
    logits: (B, *S, C) floating.
    labels: (B, *S) integer class ids.
    squared: squared or linear denominators.
    smooth: e, 0 or more.
    include_background: count class 0.
    reduction: over classes, 'mean', 'sum' or 'none'.
    mask: None, or (B, *S) bool or weights.
    axis_name: mapped axis whose shards make up the batch.

  Returns:
    Scalar; with reduction='none' (C,), or (C - 1,) without background.

  Raises:
    InputError: shapes or dtypes that do not fit, an unknown reduction.
  """
  px = pixels(logits, labels, mask, axis_name)
  return dice_of(px, squared=squared, smooth=smooth, include_background=include_background, reduction=reduction)


def generalised_dice_of(px: Pixels, *, smooth=1e-5) -> jax.Array:
  """`generalised_dice_loss` of prepared pixels."""
  check_number('smooth', smooth)
  error, hit = overlap(px)
  (size,) = totals(px, px.g * px.weight[..., None])
  present = size > 0
  weight = jnp.where(present, 1 / jnp.where(present, size, 1) ** 2, 0)
  weight = jnp.where(present, weight, weight.max())
  return ratio((weight * error).sum(), 2 * (weight * hit).sum() + smooth)


def generalised_dice_loss(logits, labels, *, smooth=1e-5, mask=None, axis_name=None) -> jax.Array:
  """Generalised Dice (Sudre et al. 2017): 1 - (2 sum_c w_c sum p g + e) / (sum_c w_c sum (p + g) + e).

  w_c = 1 / (sum g)^2 over the whole batch. A class absent from labels, whose weight would be infinite, takes the
  largest weight of the present classes (MONAI's rule with batch=True). Computed as in `dice_terms`, never negative.

  Args:
    logits: (B, *S, C) floating.
    labels: (B, *S) integer class ids.
    smooth: e, 0 or more.
    mask: None, or (B, *S) bool or weights.
    axis_name: mapped axis whose shards make up the batch.

  Returns:
    Scalar in [0, 1].

  Raises:
    InputError: shapes or dtypes that do not fit, smooth negative.
  """
  return generalised_dice_of(pixels(logits, labels, mask, axis_name), smooth=smooth)
