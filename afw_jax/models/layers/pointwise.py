"""Product along the channels (a convolution of one pixel), in the form that the compiler of each platform can fuse."""

import jax.numpy as jnp
from jax import lax


def pointwise(x, kernel):
  """x times a matrix along its last axis: a convolution with a kernel of one pixel.

  On NVIDIA GPUs the samples stay apart, as a batch of products. Written as one product, XLA (jaxlib 0.10.2) fuses it
  with the normalisation before it, and where no kernels are timed (`--mode=plan`, deterministic kernels) fails to
  divide the fused kernel into tiles that do not cross samples, unless the size of a sample is a multiple of the tiles:
  "Couldn't find output tile sizes". This program also switches such kernels off in both cases (`xla_flags`); the form
  is for users who do not.

  Args:
    x: (B, *S, Cin).
    kernel: (Cin, Cout) of x's dtype.

  Returns:
    (B, *S, Cout) of x's dtype.
  """
  return lax.platform_dependent(x, kernel, cuda=_by_samples, default=jnp.dot)


def _by_samples(x, kernel):
  # Copied in float32, so that the gradients of the samples are added in float32. No axes are joined, so that an axis
  # which is divided over devices stays as it is.
  wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
  kernels = jnp.broadcast_to(wide, (x.shape[0], *kernel.shape)).astype(kernel.dtype)
  return lax.dot_general(x, kernels, (((x.ndim - 1,), (1,)), ((0,), (0,))))
