"""Scaled dot-product attention, and the choice of its kernel."""

import os
import re
from typing import Any

import jax
import jax.numpy as jnp


def attend(query, key, value, *, divided: bool = False):
  """softmax(q k^T / sqrt(d)) v by `jax.nn.dot_product_attention`, with the kernel for the first device of the run.

  Args:
    query: (B, N, heads, d).
    key, value: (B, M, heads, d).
    divided: whether N may lie on several devices, which the fused kernel does not support.

  Returns:
    (B, N, heads, d) of the query's dtype.
  """
  implementation = 'xla' if divided else kernel(query.dtype, query.shape[-1], jax.devices()[0])
  return jax.nn.dot_product_attention(query, key, value, implementation=implementation)


def plain_attend(query, key, value, *, divided: bool = False):
  """`attend` without a fused kernel, on any device."""
  del divided
  return jax.nn.dot_product_attention(query, key, value, implementation='xla')


def kernel(dtype, head_channels: int, device: Any, xla_flags: str | None = None) -> str:
  """The kernel for a dtype, a number of channels per head and a device: 'cudnn' or 'xla'.

  'cudnn' (flash attention) supports NVIDIA GPUs from Ampere on, 16-bit floats, and heads of up to 128 channels in
  multiples of 8. Otherwise 'xla', whose softmax is float32; also where XLA may use deterministic kernels only: then a
  bfloat16 UNETR with 'cudnn' failed when it was run (H200, jax 0.11.2).

  Args:
    dtype: of query, key and value.
    head_channels: of each head.
    device: anything with `platform`, `device_kind` and `compute_capability`, as JAX's devices have them.
    xla_flags: those of the program; None: those of the environment.
  """
  flags = os.environ.get('XLA_FLAGS', '') if xla_flags is None else xla_flags
  nvidia = device.platform == 'gpu' and 'NVIDIA' in device.device_kind  # others have names for it, such as gfx942
  ampere = nvidia and float(getattr(device, 'compute_capability', None) or 0) >= 8
  fits = dtype in (jnp.bfloat16, jnp.float16) and head_channels % 8 == 0 and head_channels <= 128
  fused = ampere and fits and not _deterministic(flags)
  return 'cudnn' if fused else 'xla'


def _deterministic(xla_flags: str) -> bool:
  """Whether flags of XLA, of which the last one counts, ask for deterministic kernels."""
  found = re.findall(r'--(xla_gpu_deterministic_ops|xla_gpu_exclude_nondeterministic_ops)(?:=(\S*))?', xla_flags)
  return any(value.lower() not in ('false', '0', 'f', 'no', 'n') for value in dict(found).values())
