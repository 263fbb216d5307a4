"""GELU by the error function, as in PyTorch, which keeps only its input for the backward pass.

References:
  Hendrycks D., Gimpel K. 2016. Gaussian Error Linear Units (GELUs). arXiv:1606.08415.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax


def _normal_cdf(x):
  return 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))


@jax.custom_vjp
def gelu(x):
  """x times the normal distribution function of x, computed in at least float32 and returned in x's dtype.

  `jax.nn.gelu(approximate=False)` keeps several intermediate arrays of the size of x for its gradient, which are
  recomputed from x here; and its complementary error function evaluates both branches of a selection.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return (wide * _normal_cdf(wide)).astype(x.dtype)


def _backward(x, grad):
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  density = jnp.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
  return ((grad * (_normal_cdf(wide) + wide * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _backward)
