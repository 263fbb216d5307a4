"""Tversky, focal Tversky and the multi-class asymmetric Unified Focal loss over the whole (global) batch."""

import jax
import jax.numpy as jnp

from afw_jax.losses.checks import check_number, focused_classes
from afw_jax.losses.pixels import Pixels, mean, overlap, pixels, power, ratio
from afw_jax.losses.terms import reduce_classes


def tversky_terms_of(px: Pixels, *, fp_weight, fn_weight, smooth) -> jax.Array:
  """(C,) 1 - (tp + e) / (tp + fp_weight fp + fn_weight fn + e), without the subtraction."""
  check_number('fp_weight', fp_weight)
  check_number('fn_weight', fn_weight)
  check_number('smooth', smooth)
  error, hit = overlap(px, fp_weight=fp_weight, fn_weight=fn_weight)
  return ratio(error, hit + smooth)


def tversky_of(px: Pixels, *, fp_weight=0.3, fn_weight=0.7, smooth=1e-5, reduction='mean') -> jax.Array:
  """`tversky_loss` of prepared pixels."""
  return reduce_classes(tversky_terms_of(px, fp_weight=fp_weight, fn_weight=fn_weight, smooth=smooth), reduction)


def tversky_loss(
  logits, labels, *, fp_weight=0.3, fn_weight=0.7, smooth=1e-5, reduction='mean', mask=None, axis_name=None
) -> jax.Array:
  """Tversky loss (Salehi et al. 2017): 1 - (tp + e) / (tp + fp_weight fp + fn_weight fn + e) per class.

  The two weights are named since papers and codes differ in which is alpha. 0.5 and 0.5 is linear Dice with smooth 2 e.

  Args:
    logits: (B, *S, C) floating.
    labels: (B, *S) integer class ids.
    fp_weight: cost of probability on other classes' pixels, 0 or more.
    fn_weight: cost of probability missing on the class's own pixels, 0 or more.
    smooth: e, 0 or more.
    reduction: over classes, 'mean', 'sum' or 'none'.
    mask: None, or (B, *S) bool or weights.
    axis_name: mapped axis whose shards make up the batch.

  Returns:
    Scalar ((C,) with reduction='none').

  Raises:
    InputError: shapes or dtypes that do not fit, an option out of range.
  """
  px = pixels(logits, labels, mask, axis_name)
  return tversky_of(px, fp_weight=fp_weight, fn_weight=fn_weight, smooth=smooth, reduction=reduction)


def focal_tversky_of(
  px: Pixels, *, fp_weight=0.3, fn_weight=0.7, gamma=4 / 3, smooth=1e-5, reduction='mean'
) -> jax.Array:
  """`focal_tversky_loss` of prepared pixels."""
  check_number('gamma', gamma, above=True)
  terms = tversky_terms_of(px, fp_weight=fp_weight, fn_weight=fn_weight, smooth=smooth)
  return reduce_classes(power(terms, 1 / gamma), reduction)


def focal_tversky_loss(
  logits, labels, *, fp_weight=0.3, fn_weight=0.7, gamma=4 / 3, smooth=1e-5, reduction='mean', mask=None, axis_name=None
) -> jax.Array:
  """Focal Tversky loss (Abraham and Khan 2019): (1 - Tversky index)^(1 / gamma) per class; see `tversky_loss`.

  Args:
    logits: (B, *S, C) floating.
    labels: (B, *S) integer class ids.
    fp_weight, fn_weight: costs, 0 or more.
    gamma: above 0; the exponent is 1 / gamma (4/3 is the exponent 0.75 that other codes call gamma).
    smooth: e, 0 or more.
    reduction: over classes, 'mean', 'sum' or 'none'.
    mask: None, or (B, *S) bool or weights.
    axis_name: mapped axis whose shards make up the batch.

  Returns:
    Scalar ((C,) with reduction='none').

  Raises:
    InputError: shapes or dtypes that do not fit, an option out of range.
  """
  px = pixels(logits, labels, mask, axis_name)
  return focal_tversky_of(px, fp_weight=fp_weight, fn_weight=fn_weight, gamma=gamma, smooth=smooth, reduction=reduction)


def unified_focal_of(
  px: Pixels, *, lam=0.5, delta=0.6, gamma=0.5, rare=None, smooth=1e-5, reduction='mean'
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
  logits, labels, *, lam=0.5, delta=0.6, gamma=0.5, rare=None, smooth=1e-5, reduction='mean', mask=None, axis_name=None
) -> jax.Array:
  """Asymmetric Unified Focal loss (Yeung et al. 2022) for any number of classes.

  lam aFL + (1 - lam) aFTL, in the paper's order (lam weights the cross-entropy part; some codes weight the other), with
    aFL  = mean over pixels of delta CE on pixels of rare classes, (1 - delta) (1 - p_t)^gamma CE on the others;
    aFTL = over classes, (1 - mTI_c)^(1 - gamma) for rare ones and 1 - mTI_c for the others, where
    mTI  = tp / (tp + delta fn + (1 - delta) fp).
  With two classes and rare = (1,) it is the published binary form. aFTL with delta = 0.5 is AFW-Dice (paper Eq. 5)
  without weights, gamma here being 1 - its gamma.

  Args:
    logits: (B, *S, C) floating.
    labels: (B, *S) integer class ids.
    lam: share of the cross-entropy part, 0 to 1.
    delta: weight of misses against false alarms and of rare against common classes, 0 to 1.
    gamma: suppression of easy common pixels and enhancement of rare classes, 0 to 1.
    rare: class ids of the rare set; None means every foreground class.
    smooth: e in numerator and denominator of mTI.
    reduction: of aFTL over classes: 'mean' as in the authors' code, or 'sum' as printed.
    mask: None, or (B, *S) bool or weights.
    axis_name: mapped axis whose shards make up the batch.

  Returns:
    Scalar.

  Raises:
    InputError: shapes or dtypes that do not fit, an option out of range.
  """
  px = pixels(logits, labels, mask, axis_name)
  return unified_focal_of(px, lam=lam, delta=delta, gamma=gamma, rare=rare, smooth=smooth, reduction=reduction)
