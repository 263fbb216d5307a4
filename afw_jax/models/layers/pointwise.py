"""Product along the channels, in a form that every compiler takes."""

import jax.numpy as jnp
from jax import lax


def pointwise(x, kernel):
  """x times a matrix along its last axis: a convolution with a kernel of one pixel.

  On GPUs the samples stay apart, as a batch of products. Written as one product, XLA (jaxlib 0.10.2) fuses it with the
  normalisation before it, and where no kernels are timed (`--mode=plan`, deterministic kernels) fails to divide the
  fused kernel into tiles that do not cross samples, unless the size of a sample is a multiple of the tiles:
  "Couldn't find output tile sizes".

  Args:
    x: (B, *S, Cin).
    kernel: (Cin, Cout) of x's dtype.

  Returns:
    (B, *S, Cout) of x's dtype.
  """
  return lax.platform_dependent(x, kernel, cuda=_by_samples, default=jnp.dot)


def _by_samples(x, kernel):
  kernels = jnp.broadcast_to(kernel, (x.shape[0], *kernel.shape))
  y = lax.dot_general(x.reshape(x.shape[0], -1, x.shape[-1]), kernels, (((2,), (1,)), ((0,), (0,))))
  return y.reshape(*x.shape[:-1], kernel.shape[-1])
