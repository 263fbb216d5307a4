"""XLA flags: the one that makes convolutions fast on a CPU, the one that makes a GPU repeat itself to the bit."""

import importlib.metadata
import os
import sys

from afw_jax.errors import InputError

CPU_FLAG = '--xla_cpu_experimental_ynn_fusion_type=-individual_convolution'
GPU_FLAG = '--xla_gpu_deterministic_ops=true'  # also excludes autotuning, which picks kernels by the clock
KNOWN_JAXLIB = ('0.10.2',)  # an XLA flag that a jaxlib does not know aborts the process


def set_cpu_flags() -> str | None:
  """Sends convolutions to XLA's older CPU kernels: the newer ones compute the weight gradient on one thread.

  Call it before jax is imported.
  Measured on two cores, a UNet's train step takes 0.8 of the time. Nothing is set where it might do harm: jax already
  imported, XLA_FLAGS already set by the user, a jaxlib not known to accept the flag, another platform than the CPU
  asked for, or an accelerator's plugin installed.

  Returns:
    The flag if it was added to XLA_FLAGS, otherwise None.
  """
  if 'jax' in sys.modules or 'jaxlib' in sys.modules or os.environ.get('XLA_FLAGS'):
    return None
  if os.environ.get('JAX_PLATFORMS', 'cpu') not in ('', 'cpu') or _accelerator_installed():
    return None
  if _version('jaxlib') not in KNOWN_JAXLIB:
    return None
  os.environ['XLA_FLAGS'] = CPU_FLAG
  return CPU_FLAG


def set_deterministic() -> str | None:
  """Makes a GPU give the same bits each time: no atomic sums, no kernels chosen by timing. Slower.

  Call it before the first array is made: XLA reads its flags then. CPUs and TPUs repeat themselves without it.

  Returns:
    The flag if it was added to XLA_FLAGS; None where it is there already or no GPU plugin is installed.

  Raises:
    InputError: a jaxlib not known to accept the flag.
  """
  flags = os.environ.get('XLA_FLAGS', '')
  if not importlib.metadata.entry_points(group='jax_plugins') or GPU_FLAG.split('=')[0] in flags:
    return None
  if _version('jaxlib') not in KNOWN_JAXLIB:
    raise InputError(
      'runtime.deterministic',
      f'jaxlib {_version("jaxlib")} is not known to have the flag {GPU_FLAG}',
      'Set XLA_FLAGS yourself and leave the option out',
    )
  os.environ['XLA_FLAGS'] = f'{flags} {GPU_FLAG}'.strip()
  return GPU_FLAG


def _accelerator_installed() -> bool:
  """Whether a plugin (CUDA, ROCm, ...: they announce themselves as entry points) or libtpu is installed."""
  return bool(importlib.metadata.entry_points(group='jax_plugins')) or _version('libtpu') is not None


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
