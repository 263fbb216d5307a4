"""A profile of three training steps: the kernels that take the most time."""

import collections
import tempfile
from pathlib import Path

from gpu_parts import sizes
from gpu_parts.item import Item, Work, markdown, single

PART, TITLE = 'profile', 'Kernels by time'
NETWORKS = ('vatransunet', 'unet', 'unet3d', 'unetr')
STEPS, TOP = 3, 20


def items(work: Work) -> list[Item]:
  found = []
  for network in work.chosen(NETWORKS)[: 1 if work.dry else 2 if work.quick else None]:
    sides, batch = sizes.size(network, work)
    options = {'network': network, 'sides': sides, 'batch_size': batch, 'options': sizes.options(network, work)}
    found.append(single(PART, network, 'gpu_parts.kernels:profile', options, 240, least_s=40))
  return found


def profile(network, sides, batch_size, options) -> dict:
  """Milliseconds per step of each kernel, in bfloat16."""
  import jax

  from gpu_parts import steps

  step = steps.prepared(network, sides, batch_size, 'bfloat16', options, count=False)
  state = step.state

  def run():
    nonlocal state
    for _ in range(STEPS):
      state, aux = step.call(state, step.batch, step.key)
    jax.block_until_ready(aux)

  run()
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      run()
    (path,) = Path(folder).rglob('*.xplane.pb')
    data = jax.profiler.ProfileData.from_file(str(path))
    on_device = [plane for plane in data.planes if plane.name.startswith('/device:GPU')]
    planes = on_device or list(data.planes)  # a CPU has no plane of its own
    times, counts = collections.Counter(), collections.Counter()
    for plane in planes:
      for line in plane.lines:
        if on_device and not line.name.startswith('Stream'):
          continue  # other lines sum the same kernels up by module and by operation
        for event in line.events:
          times[event.name] += event.duration_ns / 1e6 / STEPS
          counts[event.name] += 1
    names = sorted({line.name for plane in planes for line in plane.lines})
  return {
    'device': steps.device(),
    'busy_ms': sum(times.values()),
    'kernels': sum(counts.values()) / STEPS,
    'lines': names[:20],
    'top': [[name[:100], ms, counts[name] / STEPS] for name, ms in times.most_common(TOP)],
  }


def table(records: dict[str, dict], facts: dict) -> list[str]:
  lines = []
  for name, record in records.items():
    found = record['sides']['ours']
    if 'failed' in found:
      lines += [f'- {name}: failed: {found["failed"]}', '']
      continue
    lines += [f'{name}: {found["busy_ms"]:.2f} ms a step in {found["kernels"]:.0f} kernels', '']
    rows = [[kernel, f'{ms:.3f}', f'{100 * ms / found["busy_ms"]:.1f} %', f'{n:g}'] for kernel, ms, n in found['top']]
    lines += [*markdown(['kernel', 'ms a step', 'share', 'calls a step'], rows), '']
  return lines
