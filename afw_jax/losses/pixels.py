"""Building blocks of the losses: softmax and one-hot labels per pixel, sums over the global batch, and a safe power."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from afw_jax.losses.checks import check_arrays
from afw_jax.losses.types import Array, AxisName, Scalar

SMOOTH = 1e-5  # default e of every overlap loss, in numerator and denominator
FLOOR = 1e-12  # below it x ** exponent continues as a straight line to (0, 0)
TINY = 1e-12  # least denominator, reached only with smooth=0


class Pixels(NamedTuple):
  """What every loss is computed from; all floats are float32, or float64 where the logits are.

  Attributes:
    p: (B, *S, C) softmax.
    g: (B, *S, C) bool one-hot labels; all False where the label is outside [0, C).
    log_p_true: (B, *S) log-probability of the pixel's own class, 0 where the label is outside [0, C).
    weight: (B, *S) weight of the pixel: the mask's value, 0 where the label is outside [0, C).
    axis_name: mapped axis (or axes) over which sums are psum-ed; None without one.
  """

  p: jax.Array
  g: jax.Array
  log_p_true: jax.Array
  weight: jax.Array
  axis_name: AxisName | None


def pixels(logits: Array, labels: Array, mask: Array | None = None, axis_name: AxisName | None = None) -> Pixels:
  """Checks the arrays and computes softmax, one-hot labels and pixel weights.

  Args:
    logits: (B, *S, C) raw network output, any floating dtype, any number of spatial axes.
    labels: (B, *S) integer class ids; a pixel whose id is outside [0, C) is ignored, as if masked out.
    mask: None, or (B, *S) bool (False: the pixel is ignored whatever its logits are, NaN included) or non-negative
      weights; axes of length 1 broadcast.
    axis_name: name (or names) of the mapped axis inside shard_map, pmap or vmap whose shards make up the batch.

  Returns:
    The Pixels.

  Raises:
    InputError: shapes or dtypes that do not match.
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


def totals(px: Pixels, *values: jax.Array) -> tuple[jax.Array, ...]:
  """Sums over the batch and all spatial axes, and over the mapped axis: each (B, *S, ...) -> (...)."""
  sums = tuple(v.sum(tuple(range(px.weight.ndim))) for v in values)
  return sums if px.axis_name is None else jax.lax.psum(sums, px.axis_name)


def class_sizes(px: Pixels) -> jax.Array:
  """(C,) number of pixels of each class in the labels of the global batch, weighted by the mask."""
  (size,) = totals(px, px.g * px.weight[..., None])
  return size


def mean(px: Pixels, value: jax.Array) -> jax.Array:
  """Weighted mean of value (B, *S) over the pixels of the global batch; 0 if every pixel is ignored."""
  total, count = totals(px, value * px.weight, px.weight)
  return total / jnp.where(count > 0, count, 1)


def overlap(
  px: Pixels, *, fp_weight: Scalar = 1.0, fn_weight: Scalar = 1.0, squared: bool = False
) -> tuple[jax.Array, jax.Array]:
  """The two sums from which every overlap loss is computed.

  Args:
    px: the Pixels.
    fp_weight: cost of probability on pixels of other classes.
    fn_weight: cost of probability missing on the class's own pixels.
    squared: whether each error is squared.

  Returns:
    error: (C,) fp_weight sum (1 - g) p + fn_weight sum g (1 - p), or the same of squares. With unit weights it is
      sum |p - g| or sum (p - g)^2, so that error + 2 hit = sum p + sum g, or sum p^2 + sum g, without any subtraction.
    hit: (C,) sum p g.
  """
  exponent = 2 if squared else 1
  error = jnp.where(px.g, fn_weight * (1 - px.p) ** exponent, fp_weight * px.p**exponent)
  hit = jnp.where(px.g, px.p, 0)
  error, hit = totals(px, error * px.weight[..., None], hit * px.weight[..., None])
  return error, hit


def ratio(error: jax.Array, rest: jax.Array) -> jax.Array:
  """error / (error + rest), always in [0, 1] and finite at 0 / 0."""
  return error / jnp.maximum(error + rest, TINY)


def power_slope(x: jax.Array, exponent: Scalar) -> jax.Array:
  """The derivative of `power`, that of the chord below FLOOR."""
  _, slope = jax.jvp(lambda x: power(x, exponent), (x,), (jnp.ones_like(x),))
  return slope


def power(x: jax.Array, exponent: Scalar) -> jax.Array:
  """x ** exponent for x >= 0 with a finite gradient everywhere.

  x ** 0.25 has an infinite slope at 0, which a class reaches when it is absent and not predicted, or predicted
  perfectly. Above FLOOR = 1e-12 this is exactly x ** exponent; below it the chord from (0, 0) takes over: continuous,
  monotone, exactly 0 at 0 (1 everywhere for exponent 0). An offset, (x + d) ** e - d ** e, would change the values
  above the floor too. `where` stands inside and outside the power since the branch not taken is differentiated as well.

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
