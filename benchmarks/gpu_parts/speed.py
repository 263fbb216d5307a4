"""Training steps per second, memory and compilation of every network, in turns with PyTorch."""

import importlib.util
import statistics
import time

from gpu_parts import sizes
from gpu_parts.item import Item, Ready, Side, Work, markdown, number

PART, TITLE = 'speed', 'Training steps'
COMPILE_LIMIT_S = 240
NEEDED_BY_PEERS = {'unetr': ('monai',), 'unet3d': ('dynamic_network_architectures',)}


def items(work: Work) -> list[Item]:
  found = []
  for dtype in sizes.dtypes(work):
    for network in work.chosen(sizes.FULL):
      sides, batch = sizes.size(network, work)
      common = {'network': network, 'sides': sides, 'batch_size': batch, 'dtype': dtype, 'round_s': round_s(work)}
      ours = Side('gpu_parts.speed:ours', {**common, 'options': sizes.options(network, work)}, COMPILE_LIMIT_S)
      peers = {
        f'torch {how}': Side('gpu_parts.torch_step:step', {**common, 'how': how, 'dry': work.dry}, limit)
        for how, limit in (('eager', 90), ('compile', 150))
        if all(importlib.util.find_spec(name) for name in ('torch', *NEEDED_BY_PEERS.get(network, ())))
      }
      rounds = 1 if work.dry else 3 if work.quick else 7
      found.append(Item(PART, f'{network} {dtype}', {'ours': ours, **peers}, rounds=rounds, least_s=60))
  return found


def round_s(work: Work) -> float:
  """Seconds of one round."""
  return 0 if work.dry else 0.7 if work.quick else 1.5


def steps_of(round_s: float, step_s: float) -> int:
  """Steps in a round."""
  return min(max(round(round_s / max(step_s, 1e-6)), 1), 200)


def ours(network, sides, batch_size, dtype, round_s, options) -> Ready:
  """The training step of this package; the batch stays on the device, the state is donated."""
  import jax

  from gpu_parts import steps

  begun = time.perf_counter()
  step = steps.prepared(network, sides, batch_size, dtype, options)
  state, losses = step.state, []

  def run(count: int) -> float:
    nonlocal state
    start = time.perf_counter()
    for _ in range(count):
      state, aux = step.call(state, step.batch, step.key)
    losses.append(float(jax.block_until_ready(aux['loss'])))
    return (time.perf_counter() - start) / count

  run(1)
  facts = {**step.facts, 'first_step_after_s': time.perf_counter() - begun, 'device': steps.device()}
  facts |= {'sides': sides, 'batch_size': batch_size}
  run(2)
  count = steps_of(round_s, run(3))
  return Ready(
    facts,
    lambda: run(count),
    lambda: {'peak_gib': steps.peak_gib(), 'first_loss': losses[0], 'last_loss': losses[-1], 'steps': count},
  )


def _peak(found: dict) -> str:
  """Peak GiB of the steps; '<=' where the search for fast kernels, before them, took as much."""
  peak, before = found.get('peak_gib'), found.get('peak_compiling_gib')
  return f'{"<= " if peak and before and before >= peak else ""}{number(peak)}'


def table(records: dict[str, dict], facts: dict) -> list[str]:
  rows, failures = [], []
  for name, record in records.items():
    network, dtype = name.split(' ')
    for side, found in record['sides'].items():
      if not found.get('rounds') or 'failed' in found:
        failures.append(f'- {name}, {side}: failed: {found.get("failed", "no round")}')
        continue
      sides, batch, seconds = found['sides'], found['batch_size'], statistics.median(found['rounds'])
      mine = record['sides']['ours']
      rate = mine['tflop'] / seconds if mine.get('tflop') else None
      ceiling = facts.get('bfloat16_tflop_per_s')
      ratio = seconds / statistics.median(mine['rounds']) if mine.get('rounds') and side != 'ours' else None
      spread = (max(found['rounds']) - min(found['rounds'])) / seconds
      rows.append(
        [
          network,
          f'{batch} x {" x ".join(map(str, sides))}',
          dtype,
          side,
          f'{1e3 * seconds:.2f}',
          f'{100 * spread:.0f} %',
          f'{batch / seconds:.1f}',
          f'{ratio:.2f}' if ratio else '',
          _peak(found),
          number(rate),
          f'{100 * rate / ceiling:.1f} %' if rate and ceiling else '',
          number(found.get('first_step_after_s')),
          f'{number(found["first_loss"])} -> {number(found["last_loss"])}',
        ]
      )
  heading = [
    'network',
    'batch',
    'dtype',
    'side',
    'ms a step',
    'spread',
    'images/s',
    'time / ours',
    'peak GiB',
    'TFLOP/s',
  ]
  return [*markdown([*heading, 'of bf16 ceiling', 'first step after s', 'loss'], rows), '', *failures]
