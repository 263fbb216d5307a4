"""3D convolution at stride 1, in the form that is fastest where the program will run.

On GPUs and TPUs it is `lax.conv_general_dilated`. XLA's 3D convolution for CPUs is three to five times slower than its
2D one, forward and backward, so there the planes of the volume become a batch of images: one 2D convolution with the
depth's taps as so many more channels, on whichever side has fewer, and sums of shifted planes. Programs compiled for
another platform than this machine's take that platform's form.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def volume_conv(x, kernel):
  """Convolution over (D, H, W) at stride 1, with the zero padding that keeps the size.

  Args:
    x: (B, D, H, W, Cin).
    kernel: (kd, kh, kw, Cin, Cout) of x's dtype, odd sizes.

  Returns:
    (B, D, H, W, Cout) of x's dtype.
  """
  if kernel.shape[:3] == (1, 1, 1):  # on a CPU its weight gradient is six times faster than the convolution's
    return jnp.dot(x, kernel[0, 0, 0])
  return _conv(x, kernel)


@jax.custom_vjp
def _conv(x, kernel):
  return lax.platform_dependent(x, kernel, cpu=_planes, default=_volumes)


def _forward(x, kernel):
  return _conv(x, kernel), (x, kernel)


def _backward(kept, grad):
  x, kernel = kept
  x_grad = lax.platform_dependent(grad, kernel, cpu=_planes_x_grad, default=functools.partial(_volumes_x_grad, x))
  kernel_grad = lax.platform_dependent(x, grad, cpu=functools.partial(_planes_kernel_grad, kernel.shape[:3]),
                                       default=functools.partial(_volumes_kernel_grad, kernel))
  return x_grad, kernel_grad


_conv.defvjp(_forward, _backward)


def _volumes(x, kernel):
  return lax.conv_general_dilated(x, kernel, (1, 1, 1), [(k // 2, k // 2) for k in kernel.shape[:3]],
                                  dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'))


def _volumes_x_grad(x, grad, kernel):
  return jax.linear_transpose(lambda x: _volumes(x, kernel), x)(grad)[0]


def _volumes_kernel_grad(kernel, x, grad):
  return jax.linear_transpose(lambda kernel: _volumes(x, kernel), kernel)(grad)[0]


def _planes(x, kernel):
  dtype = x.dtype
  x, kernel = _at_least_float32(x), _at_least_float32(kernel)
  depth, *size, inputs, outputs = kernel.shape
  if inputs < outputs:  # y[d] = sum over t of x[d + t] k[t]
    wide = jnp.concatenate([_shift(x, t) for t in _taps(depth)], -1)
    return _images(wide, jnp.moveaxis(kernel, 0, 2).reshape(*size, depth * inputs, outputs)).astype(dtype)
  parts = _images(x, jnp.moveaxis(kernel, 0, 3).reshape(*size, inputs, depth * outputs))
  return sum(_shift(part, t) for part, t in zip(jnp.split(parts, depth, -1), _taps(depth))).astype(dtype)


def _planes_x_grad(grad, kernel):
  return _planes(grad, jnp.flip(kernel, (0, 1, 2)).swapaxes(3, 4))


def _planes_kernel_grad(size, x, grad):
  depth, *size = size
  inputs, outputs, dtype = x.shape[-1], grad.shape[-1], x.dtype
  x, grad = _at_least_float32(x), _at_least_float32(grad)
  if inputs < outputs:
    wide = jnp.concatenate([_shift(x, t) for t in _taps(depth)], -1)
    return jnp.moveaxis(_images_kernel_grad(size, wide, grad).reshape(*size, depth, inputs, outputs), 2, 0).astype(dtype)
  wide = jnp.concatenate([_shift(grad, -t) for t in _taps(depth)], -1)
  return jnp.moveaxis(_images_kernel_grad(size, x, wide).reshape(*size, inputs, depth, outputs), 3, 0).astype(dtype)


def _images(x, kernel):
  """2D convolution of every plane of x with one kernel (kh, kw, Cin, Cout)."""
  y = lax.conv_general_dilated(x.reshape(-1, *x.shape[2:]), kernel, (1, 1), [(k // 2, k // 2) for k in kernel.shape[:2]],
                               dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  return y.reshape(*x.shape[:-1], kernel.shape[-1])


def _images_kernel_grad(size, x, grad):
  """Gradient of `_images` in its kernel: a convolution with planes for channels, and channels of x for images.

  The transpositions are written out because without them XLA's CPU kernels fall back to a loop inside `lax.scan`.
  """
  x, grad = (a.reshape(-1, *a.shape[2:]) for a in (x, grad))
  y = lax.conv_general_dilated(x.transpose(3, 1, 2, 0), grad.transpose(1, 2, 0, 3), (1, 1), [(k // 2, k // 2) for k in size],
                               dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  return y.transpose(1, 2, 0, 3)


def _taps(depth):
  return range(-(depth // 2), depth // 2 + 1)


def _shift(x, by):
  """x[:, d + by] at d, zero outside; a pad, so that a sharded axis exchanges only the planes at its edges."""
  return lax.pad(x, jnp.zeros((), x.dtype), [(-by, by, 0) if axis == 1 else (0, 0, 0) for axis in range(x.ndim)])


def _at_least_float32(x):
  """XLA's CPU convolutions of 16-bit floats are slower than those of float32."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
