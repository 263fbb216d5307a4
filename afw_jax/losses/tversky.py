"""Tversky, focal Tversky and the multi-class asymmetric Unified Focal loss over the whole (global) batch."""

from collections.abc import Collection

import jax
import jax.numpy as jnp

from afw_jax.losses.checks import check_number, focused_classes
from afw_jax.losses.pixels import SMOOTH, Pixels, mean, overlap, pixels, power, ratio
from afw_jax.losses.terms import reduce_classes
from afw_jax.losses.types import Array, AxisName, Reduction, Scalar

# Defaults of both Tversky losses: misses cost more than false alarms.
FP_WEIGHT, FN_WEIGHT = 0.3, 0.7


def tversky_terms_of(px: Pixels, *, fp_weight: Scalar, fn_weight: Scalar, smooth: Scalar) -> jax.Array:
  """(C,) 1 - (tp + e) / (tp + fp_weight fp + fn_weight fn + e), computed without the subtraction."""
  check_number('fp_weight', fp_weight)
  check_number('fn_weight', fn_weight)
  check_number('smooth', smooth)
  error, hit = overlap(px, fp_weight=fp_weight, fn_weight=fn_weight)
  return ratio(error, hit + smooth)


def tversky_of(px: Pixels, *, fp_weight: Scalar, fn_weight: Scalar, smooth: Scalar, reduction: Reduction) -> jax.Array:
  """`tversky_loss` of prepared pixels."""
  return reduce_classes(tversky_terms_of(px, fp_weight=fp_weight, fn_weight=fn_weight, smooth=smooth), reduction)


def tversky_loss(
  logits: Array,
  labels: Array,
  *,
  fp_weight: Scalar = FP_WEIGHT,
  fn_weight: Scalar = FN_WEIGHT,
  smooth: Scalar = SMOOTH,
  reduction: Reduction = 'mean',
  mask: Array | None = None,
  axis_name: AxisName | None = None,
) -> jax.Array:
  """Tversky loss: 1 - (tp + e) / (tp + fp_weight fp + fn_weight fn + e) per class.

  The weights are called by what they weight, since publications and codes differ in which one is alpha. With 0.5 and
  0.5 this is the linear Dice loss with smooth 2 e.

  Args:
    logits: (B, *S, C) floating.
    labels: (B, *S) integer class ids.
    fp_weight: cost of probability on pixels of other classes (false positives), 0 or more.
    fn_weight: cost of probability missing on the class's own pixels (false negatives), 0 or more.
    smooth: e, 0 or more.
    reduction: over classes, 'mean', 'sum' or 'none'.
    mask: None, or (B, *S) bool or weights of the pixels.
    axis_name: mapped axis whose shards make up the batch.

  Returns:
    Scalar; (C,) with reduction='none'.

  Raises:
    InputError: shapes or dtypes that do not match, or an option out of range.

  References:
    Salehi S.S.M., Erdogmus D., Gholipour A. 2017. Tversky loss function for image segmentation using 3D fully
    convolutional deep networks. arXiv:1706.05721.
  """
  px = pixels(logits, labels, mask, axis_name)
  return tversky_of(px, fp_weight=fp_weight, fn_weight=fn_weight, smooth=smooth, reduction=reduction)


def focal_tversky_of(
  px: Pixels, *, fp_weight: Scalar, fn_weight: Scalar, gamma: Scalar, smooth: Scalar, reduction: Reduction
) -> jax.Array:
  """`focal_tversky_loss` of prepared pixels."""
  check_number('gamma', gamma, above=True)
  terms = tversky_terms_of(px, fp_weight=fp_weight, fn_weight=fn_weight, smooth=smooth)
  return reduce_classes(power(terms, 1 / gamma), reduction)


def focal_tversky_loss(
  logits: Array,
  labels: Array,
  *,
  fp_weight: Scalar = FP_WEIGHT,
  fn_weight: Scalar = FN_WEIGHT,
  gamma: Scalar = 4 / 3,
  smooth: Scalar = SMOOTH,
  reduction: Reduction = 'mean',
  mask: Array | None = None,
  axis_name: AxisName | None = None,
) -> jax.Array:
  """Focal Tversky loss: (1 - Tversky index)^(1 / gamma) per class.

  Args:
    logits, labels, fp_weight, fn_weight, smooth, reduction, mask, axis_name: as for `tversky_loss`.
    gamma: above 0; the exponent is 1 / gamma (4/3 is the exponent 0.75, which other codes call gamma).

  Returns:
    Scalar; (C,) with reduction='none'.

  Raises:
    InputError: shapes or dtypes that do not match, or an option out of range.

  References:
    Abraham N., Khan N.M. 2019. A Novel Focal Tversky Loss Function with Improved Attention U-Net for Lesion
    Segmentation. arXiv:1810.07842.
  """
  px = pixels(logits, labels, mask, axis_name)
  return focal_tversky_of(px, fp_weight=fp_weight, fn_weight=fn_weight, gamma=gamma, smooth=smooth, reduction=reduction)


def unified_focal_of(
  px: Pixels,
  *,
  lam: Scalar,
  delta: Scalar,
  gamma: Scalar,
  rare: Collection[int] | None,
  smooth: Scalar,
  reduction: Reduction,
) -> jax.Array:
  """`unified_focal_loss` of prepared pixels."""
  check_number('lam', lam, high=1)
  check_number('delta', delta, high=1)
  check_number('gamma', gamma, high=1)
  is_rare = focused_classes(px.p.shape[-1], rare)
  rare_pixel = (px.g & is_rare).any(-1)
  factor = jnp.where(rare_pixel, delta, (1 - delta) * power(-jnp.expm1(px.log_p_true), gamma))
  focal = mean(px, -factor * px.log_p_true)
  terms = tversky_terms_of(px, fp_weight=1 - delta, fn_weight=delta, smooth=smooth)
  focal_tversky = reduce_classes(jnp.where(is_rare, power(terms, 1 - gamma), terms), reduction)
  return lam * focal + (1 - lam) * focal_tversky


def unified_focal_loss(
  logits: Array,
  labels: Array,
  *,
  lam: Scalar = 0.5,
  delta: Scalar = 0.6,
  gamma: Scalar = 0.5,
  rare: Collection[int] | None = None,
  smooth: Scalar = SMOOTH,
  reduction: Reduction = 'mean',
  mask: Array | None = None,
  axis_name: AxisName | None = None,
) -> jax.Array:
  """Asymmetric Unified Focal loss for any number of classes.

  lam aFL + (1 - lam) aFTL, in the order of its paper (lam weights the cross-entropy part; some codes weight the other):
    aFL  = mean over pixels of delta CE on pixels of rare classes, (1 - delta) (1 - p_t)^gamma CE on the others;
    aFTL = over classes, (1 - mTI_c)^(1 - gamma) for rare ones and 1 - mTI_c for the others, where
    mTI  = tp / (tp + delta fn + (1 - delta) fp).
  With two classes and rare=(1,) it is the published binary form. aFTL with delta = 0.5 is AFW-Dice (Guo et al. 2024,
  Eq. 5) without class weights, gamma here being 1 minus the gamma there.

  Args:
    logits: (B, *S, C) floating.
    labels: (B, *S) integer class ids.
    lam: share of the cross-entropy part, 0 to 1.
    delta: weight of misses against false alarms and of rare against common classes, 0 to 1.
    gamma: suppression of easy common pixels and enhancement of rare classes, 0 to 1.
    rare: class ids of the rare set; None means every foreground class.
    smooth: e in numerator and denominator of mTI.
    reduction: of aFTL over classes: 'mean' as in the authors' code, or 'sum' as printed.
    mask: None, or (B, *S) bool or weights of the pixels.
    axis_name: mapped axis whose shards make up the batch.

  Returns:
    Scalar.

  Raises:
    InputError: shapes or dtypes that do not match, or an option out of range.

  References:
    Yeung M., Sala E., Schoenlieb C.-B., Rundo L. 2022. Unified Focal loss: Generalising Dice and cross entropy-based
    losses to handle class imbalanced medical image segmentation. arXiv:2102.04525.
  """
  px = pixels(logits, labels, mask, axis_name)
  return unified_focal_of(px, lam=lam, delta=delta, gamma=gamma, rare=rare, smooth=smooth, reduction=reduction)
