"""From logits and labels to sums over the whole batch: the one softmax, the one-hot comparison, the psum, the power."""

from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from afw_jax.losses.checks import check_arrays

FLOOR = 1e-12  # below it x ** exponent continues as a straight line to (0, 0)
TINY = 1e-12  # least denominator, reached only with smooth=0


class Pixels(NamedTuple):
  """What every loss is made of; all floats are float32, or float64 where the logits are.

  Attributes:
    p: (B, *S, C) softmax.
    g: (B, *S, C) bool one-hot labels; all False where the label is outside [0, C).
    log_p_true: (B, *S) log_p of the pixel's own class, 0 where the label is outside [0, C).
    weight: (B, *S) what a pixel counts: the mask's value, 0 where the label is outside [0, C).
    axis_name: mapped axis (or axes) over which sums are psum-ed; None for none.
  """

  p: jax.Array
  g: jax.Array
  log_p_true: jax.Array
  weight: jax.Array
  axis_name: Hashable | None


def pixels(logits, labels, mask=None, axis_name=None) -> Pixels:
  """Checks the arguments and takes the softmax.

  Args:
    logits: (B, *S, C) raw network output, any floating dtype, any number of spatial axes.
    labels: (B, *S) integer class ids; a pixel whose id is outside [0, C) counts nowhere, as if masked out.
    mask: None or (B, *S) bool (False: the pixel counts nowhere, whatever its logits hold, NaN included) or non-negative
      weights; axes of length 1 broadcast.
    axis_name: name (or names) of the mapped axis inside shard_map, pmap or vmap whose shards make up the batch.

  Returns:
    The Pixels.

  Raises:
    InputError: shapes or dtypes that do not fit.
  """
  logits, labels = jnp.asarray(logits), jnp.asarray(labels)
  mask = None if mask is None else jnp.asarray(mask)
  check_arrays(logits, labels, mask)
  z = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  if labels.dtype.itemsize < 4:  # arange(C) must fit the dtype it is compared in
    labels = labels.astype(jnp.int32)
  g = labels[..., None] == jnp.arange(logits.shape[-1], dtype=labels.dtype)
  weight = ((labels >= 0) & (labels < logits.shape[-1])).astype(z.dtype)
  if mask is not None:
    z = jnp.where(mask[..., None] != 0, z, 0)
    weight = weight * mask.astype(z.dtype)
  log_p = jax.nn.log_softmax(z, axis=-1)
  return Pixels(jnp.exp(log_p), g, jnp.where(g, log_p, 0).sum(-1), weight, axis_name)


def totals(px: Pixels, *values):
  """Sums over the batch and all spatial axes, and over the mapped axis: each (B, *S, ...) -> (...)."""
  sums = tuple(v.sum(tuple(range(px.weight.ndim))) for v in values)
  return sums if px.axis_name is None else jax.lax.psum(sums, px.axis_name)


def mean(px: Pixels, value) -> jax.Array:
  """Weighted mean over the pixels of the global batch of value (B, *S); 0 if no pixel counts."""
  total, count = totals(px, value * px.weight, px.weight)
  return total / jnp.where(count > 0, count, 1)


def overlap(px: Pixels, *, fp_weight=1.0, fn_weight=1.0, squared: bool = False):
  """The two sums of which every overlap loss is made.

  Args:
    px: the Pixels.
    fp_weight, fn_weight: what probability on other classes' pixels, and what is missing on the class's own, costs.
    squared: square each error.

  Returns:
    error: (C,) fp_weight sum (1 - g) p + fn_weight sum g (1 - p), or the same of squares. With unit weights it is
      sum |p - g| or sum (p - g)^2, so error + 2 hit = sum p + sum g, or sum p^2 + sum g, without any subtraction.
    hit: (C,) sum p g.
  """
  exponent = 2 if squared else 1
  error = jnp.where(px.g, fn_weight * (1 - px.p) ** exponent, fp_weight * px.p**exponent)
  hit = jnp.where(px.g, px.p, 0)
  return totals(px, error * px.weight[..., None], hit * px.weight[..., None])


def ratio(error, rest) -> jax.Array:
  """error / (error + rest), never negative, never above 1, finite at 0 / 0."""
  return error / jnp.maximum(error + rest, TINY)


def power(x, exponent) -> jax.Array:
  """x ** exponent for x >= 0 with a finite gradient everywhere.

  x ** 0.25 has an infinite slope at 0, where a class that is absent and not predicted, or predicted perfectly, arrives.
  Above FLOOR = 1e-12 this is exactly x ** exponent; below it the chord from (0, 0) takes over: continuous, monotone,
  exactly 0 at 0 (1 everywhere for exponent 0). A floor and not an offset (x + d) ** e - d ** e, which would bend the
  values above it too. `where` stands on both sides of the power since the branch not taken is differentiated as well.

  Args:
    x: array, not negative.
    exponent: scalar, not negative.

  Returns:
    Array like x.
  """
  if isinstance(exponent, int | float) and exponent >= 1:
    return x**exponent
  above = x > FLOOR
  chord = jnp.where(exponent == 0, 1, x * FLOOR ** (exponent - 1))
  return jnp.where(above, jnp.where(above, x, FLOOR) ** exponent, chord)
