"""Cross-entropy, focal, Dice and generalised Dice losses over the whole (global) batch.

The `*_of` functions compute a loss from prepared `Pixels`, so that sums of losses share one softmax; they take every
option explicitly. Defaults are those in the signatures of the public functions.
"""

import jax
import jax.numpy as jnp

from afw_jax.losses.checks import check_choice, check_flag, check_number
from afw_jax.losses.pixels import SMOOTH, Pixels, class_sizes, mean, overlap, pixels, power, ratio
from afw_jax.losses.types import Array, AxisName, Reduction, Scalar

REDUCTIONS = ('mean', 'sum', 'none')


def reduce_classes(per_class: jax.Array, reduction: Reduction) -> jax.Array:
  """Mean or sum over the class axis; 'none' returns the array unchanged.

  Raises:
    InputError: an unknown reduction.
  """
  check_choice('reduction', reduction, REDUCTIONS)
  return {'mean': jnp.mean, 'sum': jnp.sum, 'none': jnp.asarray}[reduction](per_class)


def cross_entropy_of(px: Pixels) -> jax.Array:
  """`cross_entropy` of prepared pixels."""
  return mean(px, -px.log_p_true)


def cross_entropy(
  logits: Array, labels: Array, *, mask: Array | None = None, axis_name: AxisName | None = None
) -> jax.Array:
  """Cross-entropy, the mean over all pixels of the global batch that are not ignored (paper Eq. 3).

  Args:
    logits: (B, *S, C) floating.
    labels: (B, *S) integer class ids; pixels with ids outside [0, C) are left out of the sum and of N.
    mask: None, or (B, *S) bool or weights of the pixels, in the sum and in N.
    axis_name: mapped axis whose shards make up the batch; sum and N are psum-ed over it.

  Returns:
    Scalar, 0 if every pixel is ignored.

  Raises:
    InputError: shapes or dtypes that do not match.
  """
  return cross_entropy_of(pixels(logits, labels, mask, axis_name))


def focal_of(px: Pixels, *, gamma: Scalar) -> jax.Array:
  """`focal_loss` of prepared pixels."""
  check_number('gamma', gamma)
  return mean(px, -power(-jnp.expm1(px.log_p_true), gamma) * px.log_p_true)


def focal_loss(
  logits: Array, labels: Array, *, gamma: Scalar = 2, mask: Array | None = None, axis_name: AxisName | None = None
) -> jax.Array:
  """Softmax focal loss without class weights: the mean over pixels of -(1 - p_t)^gamma ln p_t.

  Args:
    logits: (B, *S, C) floating.
    labels: (B, *S) integer class ids.
    gamma: focusing exponent, 0 or more; 0 is cross-entropy.
    mask: None, or (B, *S) bool or weights of the pixels.
    axis_name: mapped axis whose shards make up the batch.

  Returns:
    Scalar.

  Raises:
    InputError: shapes or dtypes that do not match, or a negative gamma.

  References:
    Lin T.-Y., Goyal P., Girshick R., He K., Dollar P. 2017. Focal Loss for Dense Object Detection. arXiv:1708.02002.
  """
  return focal_of(pixels(logits, labels, mask, axis_name), gamma=gamma)


def dice_terms_of(px: Pixels, *, squared: bool, smooth: Scalar) -> jax.Array:
  """`dice_terms` of prepared pixels."""
  check_flag('squared', squared)
  check_number('smooth', smooth)
  error, hit = overlap(px, squared=squared)
  return ratio(error, 2 * hit + smooth)


def dice_terms(
  logits: Array,
  labels: Array,
  *,
  squared: bool = False,
  smooth: Scalar = SMOOTH,
  mask: Array | None = None,
  axis_name: AxisName | None = None,
) -> jax.Array:
  """Dice loss of each class over the whole batch, L_Dice_c of paper Eq. 5.

  Paper Eq. 4 as printed is 1 - 2 (sum p g + e) / (sum (p + g) + e). It cannot be used literally: it sums over the
  classes where Eq. 5 needs one term per class; it falls to -1 for a class that is absent and not predicted and below 0
  for a perfect one, and a negative number to the power 0.25 is NaN. The released code puts one e in each term,
  1 - (2 sum p g + e) / (sum (p + g) + e), and so does this function. It is computed by the identity

    linear:   sum |p - g|   / (sum p   + sum g + e)
    squared:  sum (p - g)^2 / (sum p^2 + sum g + e)      (the released code's denominator)

  which is the same number without the cancellation that makes 1 - Dice slightly negative by rounding (-1e-7).

  Args:
    logits: (B, *S, C) floating.
    labels: (B, *S) integer class ids; pixels with ids outside [0, C) are left out of every sum.
    squared: False for the paper's linear denominators, True for the released code's squared ones.
    smooth: e, 0 or more.
    mask: None, or (B, *S) bool or weights of the pixels.
    axis_name: mapped axis whose shards make up the batch.

  Returns:
    (C,) in [0, 1]. A class absent from the labels gives sum p / (sum p + e), which still pushes its probability to 0.

  Raises:
    InputError: shapes or dtypes that do not match, or a negative smooth.

  References:
    Milletari F., Navab N., Ahmadi S.-A. 2016. V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
    Segmentation. arXiv:1606.04797 (squared denominators).
  """
  return dice_terms_of(pixels(logits, labels, mask, axis_name), squared=squared, smooth=smooth)


def dice_of(px: Pixels, *, squared: bool, smooth: Scalar, include_background: bool, reduction: Reduction) -> jax.Array:
  """`dice_loss` of prepared pixels."""
  check_flag('include_background', include_background)
  terms = dice_terms_of(px, squared=squared, smooth=smooth)
  return reduce_classes(terms if include_background else terms[1:], reduction)


def dice_loss(
  logits: Array,
  labels: Array,
  *,
  squared: bool = False,
  smooth: Scalar = SMOOTH,
  include_background: bool = True,
  reduction: Reduction = 'mean',
  mask: Array | None = None,
  axis_name: AxisName | None = None,
) -> jax.Array:
  """Dice loss over the whole batch, reduced over the classes; see `dice_terms`.

  With squared=True and reduction='mean' this is TransUNet's Dice loss, the paper's baseline.

  Args:
    logits: (B, *S, C) floating.
    labels: (B, *S) integer class ids.
    squared: False for linear denominators, True for squared ones.
    smooth: e, 0 or more.
    include_background: whether class 0 is included.
    reduction: over classes, 'mean', 'sum' or 'none'.
    mask: None, or (B, *S) bool or weights of the pixels.
    axis_name: mapped axis whose shards make up the batch.

  Returns:
    Scalar; with reduction='none' (C,), or (C - 1,) without background.

  Raises:
    InputError: shapes or dtypes that do not match, or an unknown reduction.
  """
  px = pixels(logits, labels, mask, axis_name)
  return dice_of(px, squared=squared, smooth=smooth, include_background=include_background, reduction=reduction)


def generalised_dice_of(px: Pixels, *, smooth: Scalar) -> jax.Array:
  """`generalised_dice_loss` of prepared pixels."""
  check_number('smooth', smooth)
  error, hit = overlap(px)
  size = class_sizes(px)
  present = size > 0
  weight = jnp.where(present, 1 / jnp.where(present, size, 1) ** 2, 0)
  weight = jnp.where(present, weight, weight.max())
  return ratio((weight * error).sum(), 2 * (weight * hit).sum() + smooth)


def generalised_dice_loss(
  logits: Array,
  labels: Array,
  *,
  smooth: Scalar = SMOOTH,
  mask: Array | None = None,
  axis_name: AxisName | None = None,
) -> jax.Array:
  """Generalised Dice loss: 1 - (2 sum_c w_c sum p g + e) / (sum_c w_c sum (p + g) + e).

  w_c = 1 / (sum g)^2 over the whole batch. A class absent from the labels, whose weight would be infinite, takes the
  largest weight of the present classes (MONAI's rule with batch=True). Computed as in `dice_terms`, never negative.

  Args:
    logits: (B, *S, C) floating.
    labels: (B, *S) integer class ids.
    smooth: e, 0 or more.
    mask: None, or (B, *S) bool or weights of the pixels.
    axis_name: mapped axis whose shards make up the batch.

  Returns:
    Scalar in [0, 1].

  Raises:
    InputError: shapes or dtypes that do not match, or a negative smooth.

  References:
    Sudre C.H., Li W., Vercauteren T., Ourselin S., Cardoso M.J. 2017. Generalised Dice overlap as a deep learning loss
    function for highly unbalanced segmentations. arXiv:1707.03237.
  """
  return generalised_dice_of(pixels(logits, labels, mask, axis_name), smooth=smooth)
