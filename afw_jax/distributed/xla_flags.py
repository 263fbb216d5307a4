"""Environment variables that XLA and JAX read once: fast convolutions on a CPU, reproducible ones on a GPU.

Nothing here imports jax.
"""

import importlib.metadata
import os
import sys
from collections.abc import Mapping, Sequence

from afw_jax.errors import InputError

CPU_FLAG = '--xla_cpu_experimental_ynn_fusion_type=-individual_convolution'
DETERMINISTIC_FLAG = '--xla_gpu_deterministic_ops=true'  # also excludes autotuning, which picks kernels by timing
# Where no kernels are timed, XLA chooses its own (Triton) matrix products without trying them, and jaxlib 0.10.2 cannot
# compile some of those of TransUNet ("Couldn't find output tile sizes"). This leaves them to cuBLAS.
NO_TRITON_FLAG = '--xla_gpu_enable_triton_gemm=false'
# Releases that know these flags, and in which the CPU flag was measured to help. XLA aborts the process over a flag
# that it does not know, so nothing is set for any other release.
KNOWN_JAXLIB = ('0.10.2', '0.11.2', '0.12.0.1')


def set_cpu_flags() -> str | None:
  """Makes XLA use its older CPU kernels for convolutions: the newer ones compute the weight gradient on one thread.

  Call it before jax is imported. Measured on two cores, a UNet's train step takes 0.6 to 0.8 of the time with jaxlib
  0.10.2, and 0.5 to 0.6 with 0.12.0.1; with 0.11.2 the gradients of three convolutions take 0.7. Nothing is set where
  it might do harm: jax is already imported, the user has set XLA_FLAGS, the release of jaxlib is not known to accept
  the flag, another platform than the CPU was asked for, or the plugin of an accelerator is installed.

  Returns:
    The flag if it was added to XLA_FLAGS, otherwise None.
  """
  if 'jax' in sys.modules or 'jaxlib' in sys.modules or os.environ.get('XLA_FLAGS'):
    return None
  if not is_for_cpu() or not is_known_release():
    return None
  os.environ['XLA_FLAGS'] = CPU_FLAG
  return CPU_FLAG


def is_for_cpu() -> bool:
  """Whether JAX has nothing but the CPU: no other platform is asked for, no accelerator's software is installed."""
  if os.environ.get('JAX_PLATFORMS', 'cpu') not in ('', 'cpu'):
    return False
  # Plugins of JAX (CUDA, ROCm, ...) register as entry points.
  return not importlib.metadata.entry_points(group='jax_plugins') and _version('libtpu') is None


def set_deterministic() -> str | None:
  """Makes a GPU compute the same bits each time: no atomic sums, no kernels chosen by timing. Slower.

  Call it before the first array is made: XLA reads its flags then. CPUs and TPUs are deterministic without it.

  Returns:
    The flags that were added to XLA_FLAGS; None if none is missing, no GPU plugin is installed, or XLA_FLAGS refuses
    deterministic kernels.

  Raises:
    InputError: the release of jaxlib is not known to accept the flags that are missing.
  """
  flags = os.environ.get('XLA_FLAGS', '').split()
  said = _values(flags, DETERMINISTIC_FLAG) + _values(flags, '--xla_gpu_exclude_nondeterministic_ops')
  if not importlib.metadata.entry_points(group='jax_plugins') or (said and not any(map(_is_true, said))):
    return None
  added = ' '.join(([] if said else [DETERMINISTIC_FLAG]) + no_triton(flags))
  if not added:
    return None
  if not is_known_release():
    raise InputError(
      'runtime.deterministic',
      f'jaxlib {_version("jaxlib")} is not known to accept {added}',
      f"Leave the option out, and set XLA_FLAGS='{DETERMINISTIC_FLAG} {NO_TRITON_FLAG}' yourself",
    )
  os.environ['XLA_FLAGS'] = ' '.join([*flags, added])
  return added


def no_triton(flags: Sequence[str]) -> list[str]:
  """What to add to flags of XLA where no kernels are timed: nothing where they say it, on or off, themselves."""
  return [] if _values(flags, NO_TRITON_FLAG) else [NO_TRITON_FLAG]


def is_known_release() -> bool:
  """Whether the installed jaxlib is known to accept the flags of this module; others may abort the process."""
  return _version('jaxlib') in KNOWN_JAXLIB


def _values(flags: Sequence[str], flag: str) -> list[str]:
  """The values that a list of flags gives to one of them, '' where it has none."""
  name = flag.partition('=')[0]
  return [value for key, _, value in (f.partition('=') for f in flags) if key == name]


def _is_true(value: str) -> bool:
  return value.lower() not in ('false', '0', 'f', 'no', 'n')


def check_device_count(environ: Mapping[str, str] = os.environ) -> None:
  """Raises InputError for a JAX_NUM_CPU_DEVICES that JAX answers with a traceback; call it before jax is imported."""
  count = environ.get('JAX_NUM_CPU_DEVICES')
  if count is not None and count != '-1' and not (count.isdecimal() and int(count)):  # -1: JAX's default
    raise InputError(
      'JAX_NUM_CPU_DEVICES', f'{count!r} is not a number of devices', 'Set a whole number from 1, or unset it.'
    )


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
