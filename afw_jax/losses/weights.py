"""Class weights of AFW-Dice: learned, equal, solved for, or entropic, each with the weighted loss that it belongs to.

The function of each kind maps the class losses l_c (C,) to (loss, weights (C,)), with d loss / d l_c = w_c exactly;
value and gradient are finite for l_c = 0. Write s_c = ln sigma_c^2, w_c = exp(-s_c), and K for the number of classes
that are weighted.

Learned weights under Eq. 6 minimise sum w_c l_c + softplus(sum s). At the minimum w_c l_c = lambda for every class;
lambda = sigmoid(sum s) is the root of (K + 1) ln lambda - ln(1 - lambda) = G, where G = sum ln l_c. The minimum is
A*(G) = K lambda - ln(1 - lambda), and dA*/dG = lambda. Under Eq. 2 the classes are independent:
w_c = (sqrt(1 + 4 / l_c) - 1) / 2.

References:
  Guo Y., Lin J., Pan J., Jiang T. 2024. doi 10.20169/j.issn.2095-2163.240703 (Eqs. 2 and 6).
  Kirchdorfer L. et al. 2024. Analytical Uncertainty-Based Loss Weighting in Multi-Task Learning. arXiv:2408.07985
    (weights solved for instead of learned).
  Li T., Beirami A., Sanjabi M., Smith V. 2021. Tilted Empirical Risk Minimization. arXiv:2007.01162 (entropic weights,
    with tilt 1 / tau).
"""

import jax
import jax.numpy as jnp

from afw_jax.errors import InputError
from afw_jax.losses.checks import check_choice, check_log_sigma_sq, check_number
from afw_jax.losses.pixels import FLOOR
from afw_jax.losses.types import Array, Background, Correction, Scalar, Weights

STEEPEST = 30.0  # exp(-s) continues as its tangent below s = -STEEPEST
NEWTON_STEPS = 9  # and one more: nine classes take 4 to float64's precision, a thousand take 9

WEIGHTS = ('learned', 'equal', 'solved', 'entropic', 'entropic_present')

Weighted = tuple[jax.Array, jax.Array]


def weigh(
  l: jax.Array,
  log_sigma_sq: Array | None,
  *,
  weights: Weights,
  background: Background,
  correction: Correction,
  tau: Scalar,
  present: jax.Array | bool,
) -> Weighted:
  """The weighted loss of the class losses, and the weights.

  Args:
    l: (C,) class losses l_c, 0 or more, background first.
    log_sigma_sq: (C,) s for weights='learned', None for equal weights; not used by the others.
    weights, background, correction, tau: as for `afw_dice`.
    present: (C,) bool, or True for all: the classes that share entropic weights.

  Returns:
    loss (), weights (C,).

  Raises:
    InputError: an option out of range, or log_sigma_sq of another shape; weights='solved' without a correction.
  """
  check_choice('weights', weights, WEIGHTS)
  check_choice('background', background, ('weighted', 'anchored'))
  check_choice('correction', correction, ('eq6', 'eq2', None))
  check_number('tau', tau, low=1e-6, high=1e6)
  anchored = background == 'anchored'
  if weights == 'equal' or (weights == 'learned' and log_sigma_sq is None):
    return equal(l)
  if weights == 'learned':
    check_log_sigma_sq(jnp.asarray(log_sigma_sq), l.size)
    return learned(l, jnp.asarray(log_sigma_sq, l.dtype), correction, anchored=anchored)
  if weights == 'solved':
    if correction is None:
      cure = "Choose correction='eq6' or 'eq2'."
      raise InputError('correction', "None leaves weights='solved' without a minimum, at weights of 0", cure)
    return solved(l, correction, anchored=anchored)
  return entropic(l, tau, (jnp.arange(l.size) >= int(anchored)) & present)


def class_weights(log_sigma_sq: jax.Array) -> jax.Array:
  """Class weights 1 / sigma_c^2 = exp(-s_c) of paper Eq. 6, finite in value and gradient for every s.

  Below s = -30, a weight of 1e13, the exponential continues as its tangent, up to 1e6 times its value there: the
  gradient still pushes s back up, and nothing overflows. Training stays far away: in equilibrium exp(-s_c) is below
  1 / focused loss, so that s_c stays above -7 while that loss is above 1e-3.
  """
  x = -log_sigma_sq
  return jnp.exp(jnp.minimum(x, STEEPEST)) * (1 + jnp.clip(x - STEEPEST, 0, 1e6))


def equal(l: jax.Array) -> Weighted:
  """The sum of the class losses (paper Table 3)."""
  return l.sum(), jnp.ones_like(l)


def learned(l: jax.Array, s: jax.Array, correction: Correction, *, anchored: bool) -> Weighted:
  """sum exp(-s_c) l_c + correction; anchored: s_0 counts as 0, and the correction runs over the organs."""
  weight = class_weights(s)
  if anchored:
    weight, s = weight.at[0].set(1), s[1:]
  loss = (weight * l).sum()
  if correction is not None:
    loss += jax.nn.softplus(s.sum()) if correction == 'eq6' else jax.nn.softplus(s).sum()
  return loss, weight


def solved(l: jax.Array, correction: Correction, *, anchored: bool) -> Weighted:
  """The minimum over s of `learned`, by its closed form; weights of l_c below 1e-12 are those of 1e-12."""
  solve = _solved_eq6 if correction == 'eq6' else _solved_eq2
  if not anchored:
    return solve(l)
  loss, weight = solve(l[1:])
  return l[0] + loss, jnp.concatenate([jnp.ones_like(l[:1]), weight])


def balance(total: jax.Array, count: int) -> jax.Array:
  """The sum of the s_c at the minimum of Eq. 6, logit(lambda); its derivative with respect to `total` is exact.

  With t = logit(lambda) the equation of lambda is F(t) = t - count softplus(-t) = total. F rises with a slope from 1 to
  count + 1 and is concave, so that Newton's steps from the left of the root converge and never pass it, whatever
  `total` is. total / (count + 1) lies at the left, since softplus(-t) is at least -t.

  Args:
    total: () G, the sum of the logarithms of the class losses.
    count: K, the number of classes.

  Returns:
    () t; lambda is sigmoid(t).
  """
  rest = lambda t: total - t + count * jax.nn.softplus(-t)
  slope = lambda t: 1 + count * jax.nn.sigmoid(-t)
  t = jax.lax.stop_gradient(total) / (count + 1)
  for _ in range(NEWTON_STEPS):
    t = jax.lax.stop_gradient(t + rest(t) / slope(t))
  return t + rest(t) / slope(t)  # this step is differentiated: dt / dG = 1 / F'(t)


def _solved_eq6(l: jax.Array) -> Weighted:
  above = jnp.maximum(l, FLOOR)
  logs = jnp.log(above) + jnp.minimum(l / FLOOR - 1, 0)  # below the floor ln goes on as its tangent
  t = balance(logs.sum(), l.size)
  share = jax.nn.sigmoid(t)
  return l.size * share + jax.nn.softplus(t), share / above


def _solved_eq2(l: jax.Array) -> Weighted:
  weight = jax.lax.stop_gradient((jnp.sqrt(1 + 4 / jnp.maximum(l, FLOOR)) - 1) / 2)
  return (weight * l + jnp.log1p(1 / weight)).sum(), weight  # d/dw is 0 at the minimum, so d/dl is w


def entropic(l: jax.Array, tau: Scalar, members: jax.Array) -> Weighted:
  """M tau ln((1 / M) sum exp(l_c / tau)) over the M member classes, and the plain sum over the others.

  The weights are M softmax(l / tau) of the members, whose sum is M, and 1 of the others. The term of the members lies
  between their sum, its limit for large tau, and M times the largest, its limit for small tau: it is M times the
  largest mean that class weights q can give, less tau KL(q || uniform).

  Args:
    l: (C,) class losses, 0 or more.
    tau: temperature, above 0.
    members: (C,) bool, which classes share the weights; there may be none.
  """
  count = members.sum(dtype=l.dtype)
  largest = jax.lax.stop_gradient(jnp.where(members, l, 0).max())
  x = jnp.where(members, (l - largest) / tau, 0)
  mean = jnp.expm1(x).sum() / jnp.maximum(count, 1)  # of exp(x) - 1: exact for any tau, and 0 for those outside
  loss = count * (largest + tau * jnp.log1p(mean)) + jnp.where(members, 0, l).sum()
  return loss, jnp.where(members, jnp.exp(x) / (1 + mean), 1)
