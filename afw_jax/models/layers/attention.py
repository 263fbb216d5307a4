"""Scaled dot-product attention, and the choice of its kernel."""

import jax
import jax.numpy as jnp


def attend(query, key, value, *, divided: bool = False):
  """softmax(q k^T / sqrt(d)) v by `jax.nn.dot_product_attention`.

  Args:
    query: (B, N, heads, d).
    key, value: (B, M, heads, d).
    divided: whether N may lie on several devices, which the fused kernel does not support.

  Returns:
    (B, N, heads, d) of the query's dtype.
  """
  implementation = 'xla' if divided else kernel(query.dtype, query.shape[-1])
  return jax.nn.dot_product_attention(query, key, value, implementation=implementation)


def kernel(dtype, head_channels: int) -> str:
  """The kernel for a dtype and a number of channels per head: 'cudnn' or 'xla'.

  'cudnn' (flash attention) supports NVIDIA GPUs from Ampere on, 16-bit floats, and heads of up to 128 channels in
  multiples of 8. Otherwise 'xla', whose softmax is float32.
  """
  device = jax.devices()[0]
  ampere = device.platform == 'gpu' and float(getattr(device, 'compute_capability', None) or 0) >= 8
  fits = dtype in (jnp.bfloat16, jnp.float16) and head_channels % 8 == 0 and head_channels <= 128
  return 'cudnn' if ampere and fits and 'NVIDIA' in device.device_kind else 'xla'
