"""Whether the training step of UNETR compiles for the device at 96^3, and the device's own ceilings."""

import subprocess
import time

from afw_jax.distributed import xla_flags
from gpu_parts import sizes
from gpu_parts.item import Item, Work, markdown, number, single

PART, TITLE = 'compile', 'Compilation of UNETR'
FLAGS = {  # as `runtime.deterministic` sets them, and the other way that XLA offers
  'autotuned': '',
  'deterministic': f'{xla_flags.DETERMINISTIC_FLAG} {xla_flags.NO_TRITON_FLAG}',
  'excluding nondeterministic': f'--xla_gpu_exclude_nondeterministic_ops=true {xla_flags.NO_TRITON_FLAG}',
}
DEVICE = 'device'


def items(work: Work) -> list[Item]:
  sides, batch = sizes.size('unetr', work)
  options = {'network': 'unetr', 'sides': sides, 'batch_size': batch, 'options': sizes.options('unetr', work)}
  found = [single(PART, DEVICE, 'gpu_parts.compiling:ceilings', {'side': 64 if work.dry else 8192}, 90)]
  for how, flags in FLAGS.items() if work.chosen(['unetr']) else ():
    for dtype in ('bfloat16', 'float32') if how != 'excluding nondeterministic' else ('bfloat16',):
      more = {'flags': flags, 'cache': False, 'timed': False}
      found.append(
        single(
          PART, f'unetr {dtype} {how}', 'gpu_parts.compiling:compile_step', {**options, 'dtype': dtype}, 150, **more
        )
      )
  return found


def compile_step(network, sides, batch_size, dtype, options) -> dict:
  """Compiles a training step and runs it once: the loss has to be finite."""
  import jax

  from gpu_parts import steps

  step = steps.prepared(network, sides, batch_size, dtype, options, count=False)
  _, aux = step.call(step.state, step.batch, step.key)
  return {**step.facts, 'loss': float(jax.device_get(aux['loss']))}


def ceilings(side: int) -> dict:
  """The device, and what it reaches: matrix products of random numbers, and copying."""
  import jax
  import jax.numpy as jnp

  first = jax.devices()[0]
  facts = {'device': first.device_kind, 'platform': first.platform, 'jax': jax.__version__}
  try:
    command = ['nvidia-smi', '--query-gpu=name,driver_version,memory.total,clocks.sm', '--format=csv,noheader']
    facts['nvidia_smi'] = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
  except FileNotFoundError:
    facts['nvidia_smi'] = 'not installed'
  facts['memory_gib'] = (first.memory_stats() or {}).get('bytes_limit', 0) / 2**30

  def seconds(function, *arguments) -> float:
    call = jax.jit(function)
    jax.block_until_ready(call(*arguments))
    times = []
    for _ in range(5):
      start = time.perf_counter()
      out = [call(*arguments) for _ in range(4)]
      jax.block_until_ready(out)
      times.append((time.perf_counter() - start) / 4)
    return sorted(times)[2]

  a, b = (jax.random.normal(jax.random.key(i), (side, side)) for i in range(2))
  for name, dtype, precision in (
    ('bfloat16', jnp.bfloat16, 'default'),
    ('tf32', jnp.float32, 'default'),
    ('float32_highest', jnp.float32, 'highest'),
  ):
    product = lambda x, y, p=precision: jnp.dot(x, y, precision=p)
    facts[f'{name}_tflop_per_s'] = 2 * side**3 / seconds(product, a.astype(dtype), b.astype(dtype)) / 1e12
  x = jnp.ones((side * side * 4,), jnp.float32)
  facts['copy_gb_per_s'] = 2 * x.nbytes / seconds(lambda x: x + 1, x) / 1e9
  return facts


def table(records: dict[str, dict], facts: dict) -> list[str]:
  lines = [f'- {key}: {number(value) if isinstance(value, float) else value}' for key, value in facts.items()]
  rows = []
  for name, record in records.items():
    found = record['sides']['ours']
    if name != DEVICE:
      result = f'failed: {found["failed"]}' if 'failed' in found else f'loss {found["loss"]:.4f}'
      rows.append([name, result, number(found.get('compile_s')), number(found.get('planned_gib'))])
    elif 'failed' in found:
      lines.append(f'- failed: {found["failed"]}')
  return [*lines, '', *markdown(['program', 'result', 'seconds (beside others)', 'GiB by the compiler'], rows)]
