"""Ahead-of-time compilation for accelerators that are not installed: NVIDIA GPUs, TPUs, or many CPUs.

XLA's compilers for GPUs and TPUs are libraries that need neither driver nor device: from a description of the chip they
compile the same program that would run on it. JAX fixes its devices when it starts, so each program is compiled in a
process of its own, started with `environment`.

The numbers of the NVIDIA chips are those of their device properties, the memory that of their drivers.
"""

import dataclasses
import importlib.metadata
import re
import sys
import types
from collections.abc import Mapping

import jax
from jax.experimental import topologies

from afw_jax.data import resources
from afw_jax.distributed import xla_flags
from afw_jax.errors import InputError, did_you_mean

GIB = 2**30
_LONGEST_REASON = 300  # characters


@dataclasses.dataclass(frozen=True)
class Target:
  """A kind of device to compile for.

  Attributes:
    platform: 'cpu', 'cuda' or 'tpu'.
    memory_gib: the memory of one device as its driver reports it; None: the memory that this process may use.
    usable: the share of it that a program may fill. The rest is for what the compiler does not count: the runtime,
      workspaces of libraries, communication buffers, fragmentation. A TPU's compiler counts everything.
    chip: device properties for the compiler (NVIDIA only).
  """

  platform: str
  memory_gib: float | None
  usable: float
  chip: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @property
  def device(self) -> types.SimpleNamespace:
    """What the choice of kernels asks of a device, as JAX describes one that is there."""
    if self.platform != 'cuda':
      return types.SimpleNamespace(platform=self.platform, device_kind=self.platform)
    return types.SimpleNamespace(platform='gpu', device_kind='NVIDIA', compute_capability=f'{self.chip["major"]}.0')


_AMPERE = dict(major=8, cores=108, fpus=64, shared=167936, shared_optin=166912, l2=41943040, clock=1.41)
_HOPPER = dict(major=9, cores=132, fpus=128, shared=233472, shared_optin=232448, l2=52428800, clock=1.98)
TARGETS = {
  'cpu': Target('cpu', None, 0.9),
  'a100_40': Target('cuda', 39.4, 0.9, _AMPERE | {'bandwidth': 1555200000000}),
  'a100': Target('cuda', 79.2, 0.9, _AMPERE | {'bandwidth': 2039040000000}),
  'h100': Target('cuda', 79.1, 0.9, _HOPPER | {'bandwidth': 3352320000000}),
  'h200': Target('cuda', 141.0, 0.9, _HOPPER | {'bandwidth': 4800000000000}),
  'v5e': Target('tpu', 15.75, 1.0),
}
_GPU = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {fpus} block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: {l2}
  clock_rate_ghz: {clock} device_memory_size: {memory} shared_memory_per_block_optin: {shared_optin}
  cuda_compute_capability {{ major: {major} }} registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
# Chips -> topology of the slices of TPU v5e that exist.
_V5E = {1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16', 256: '16x16'}


def get(name: str, memory_gib: float | None = None) -> Target:
  """Returns the target of a name, with its memory filled in.

  Args:
    name: one of `TARGETS`.
    memory_gib: the memory of one device, instead of the target's own.

  Raises:
    InputError: the name is unknown, or the memory is not positive.
  """
  if name not in TARGETS:
    raise InputError(
      '--target', f'{name!r} is not a known device', f'{did_you_mean(name, TARGETS)}Use one of {", ".join(TARGETS)}.'
    )
  target = TARGETS[name]
  if memory_gib is not None and memory_gib <= 0:
    raise InputError('--memory_gib', f'{memory_gib} is not positive', 'Give the memory of one device in GiB.')
  return dataclasses.replace(target, memory_gib=memory_gib or target.memory_gib or resources.memory_limit() / GIB)


def check(name: str, target: Target, count: int) -> None:
  """Raises InputError if the target's compiler is not installed, or no TPU slice has this number of chips."""
  if target.platform == 'tpu' and count not in _V5E:
    raise InputError('--devices', f'no slice of {name} has {count} chips', f'Use some of {", ".join(map(str, _V5E))}.')
  if target.platform == 'cuda' and not (_installed('jax-cuda12-pjrt') or _installed('jax-cuda13-pjrt')):
    packages = f'jax-cuda12-pjrt=={jax.__version__} jax-cuda12-plugin=={jax.__version__}'
  elif target.platform == 'tpu' and not _installed('libtpu'):
    packages = next(r.split(';')[0].strip() for r in importlib.metadata.requires('jax') if r.startswith('libtpu'))
  else:
    return
  raise InputError(
    f'--target={name}',
    'its compiler is not installed (it needs disk space, but no such device)',
    f'{sys.executable} -m pip install --no-deps --target=compilers {packages}  and start the same command with '
    'PYTHONPATH=compilers.',
  )


def environment(target: Target, count: int, base: Mapping[str, str]) -> dict[str, str]:
  """Returns the environment variables for a process that compiles for a number of devices.

  Args:
    target: the kind of device.
    count: the number of devices.
    base: the variables of this process, os.environ. The user's flags in XLA_FLAGS are kept.
  """
  flags, more = base.get('XLA_FLAGS', '').split(), {}
  if target.platform == 'cpu':
    flags = [f for f in flags if 'host_platform_device_count' not in f]
    flags.append(f'--xla_force_host_platform_device_count={count}')
  else:
    flags = [f for f in flags if f != xla_flags.CPU_FLAG]
  if target.platform == 'cuda':
    flags.append('--xla_gpu_autotune_level=0')  # autotuning would time kernels on the GPU
    flags += xla_flags.no_triton(flags) if xla_flags.is_known_release() else []
  if target.platform == 'tpu':
    more = {
      'TPU_SKIP_MDS_QUERY': '1',
      'TPU_ACCELERATOR_TYPE': f'v5litepod-{max(count, 4)}',
      'TPU_WORKER_ID': '0',
      'TPU_WORKER_HOSTNAMES': 'localhost',
      'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
      # The compiler's search for the fastest form takes most of its time and hardly changes the memory.
      'JAX_EXEC_TIME_OPTIMIZATION_EFFORT': base.get('JAX_EXEC_TIME_OPTIMIZATION_EFFORT', '-1.0'),
    }
  kept = {k: v for k, v in base.items() if k not in ('JAX_COMPILATION_CACHE_DIR', 'JAX_NUM_CPU_DEVICES')}
  return {**kept, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ' '.join(flags), **more}


def devices(name: str, target: Target, count: int) -> list:
  """Returns devices of the target to compile for; in a process that was started with `environment`.

  Args:
    name: of the target.
    target: the kind of device.
    count: the number of devices.
  """
  if target.platform == 'cpu':
    return jax.devices()[:count]
  if target.platform == 'cuda':
    chip = _GPU.format(name=name, memory=int(target.memory_gib * GIB), **target.chip)
    return topologies.get_topology_desc(name, 'cuda', target_config=chip, topology=f'1x1x{count}').devices
  single = {'chips_per_host_bounds': (1, 1, 1)} if count == 1 else {}
  return topologies.get_topology_desc(f'v5e:{_V5E[count]}', 'tpu', **single).devices


def memory(compiled) -> dict[str, int]:
  """Returns the bytes that a compiled program holds on one device.

  Returns:
    'arguments', 'outputs', 'aliased' (donated arguments that become outputs), 'temporary', and their 'total'.
  """
  parts = compiled.memory_analysis()
  arguments, outputs, aliased, temporary = (
    getattr(parts, f'{part}_size_in_bytes') for part in ('argument', 'output', 'alias', 'temp')
  )
  return {
    'arguments': arguments,
    'outputs': outputs,
    'aliased': aliased,
    'temporary': temporary,
    'total': arguments + outputs - aliased + temporary,
  }


def exhausted(message: str) -> float | None:
  """Reads the GiB that a program needs from the error of a compiler that refuses it; None for any other error."""
  if 'RESOURCE_EXHAUSTED' not in message or 'hbm' not in message.lower():  # vmem is the scratch memory of a core
    return None
  used = re.search(r'(?:[Uu]sed |required for HLO temporaries \()([\d.]+)([KMGT])', message)
  return float(used[1]) * {'K': 2**-20, 'M': 2**-10, 'G': 1, 'T': 2**10}[used[2]] if used else float('inf')


def reason(message: str) -> str:
  """The first line of a compiler's error, without the operands and metadata of the operation that it names."""
  first = next((line.strip() for line in message.splitlines() if line.strip()), 'the compiler gave no reason')
  first = first.split(', metadata=')[0]
  return first if len(first) <= _LONGEST_REASON else f'{first[:_LONGEST_REASON]} ...'


def _installed(package: str) -> bool:
  return any(importlib.metadata.distributions(name=package))
