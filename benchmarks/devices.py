"""Images per second of a train step on 1, 2, 4 and 8 devices, as a Markdown table: python benchmarks/devices.py.

The plain program (no mesh, no shardings) and the sharded one on meshes of data x spatial train on the same global
batch, in turn; timed is one step, from the batch in host memory to the loss. On a CPU the devices are virtual and share
its cores: more of them can only cost time there, and the table says how much.
"""

import argparse
import math
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from afw_jax.distributed.xla_flags import set_cpu_flags  # noqa: E402

set_cpu_flags()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from conditions import measured  # noqa: E402
from spatial import make_step  # noqa: E402

from afw_jax import models  # noqa: E402
from afw_jax.distributed import sharding  # noqa: E402

HEADER = '| program | devices | images/s | time, ms: median | least | of the plain one |\n|---|---|---|---|---|---|'


def make_runner(name, classes, batch, mesh):
  """Returns a function that takes one step and waits for its loss: () -> (seconds, loss)."""
  train_step, init = make_step(name, classes, mesh)
  where = {'out_shardings': sharding.replicated(mesh)} if mesh else {}
  state = jax.jit(init, compiler_options={'xla_backend_optimization_level': 0}, **where)(
    jax.random.key(0), batch['image'][:1]
  )
  place = (lambda: sharding.put_batch(batch, mesh)) if mesh else lambda: jax.device_put(batch)
  key = jax.random.key(1)

  def run():
    nonlocal state
    begun = time.perf_counter()
    state, aux = train_step(state, place(), key)
    loss = float(aux['loss'])
    return time.perf_counter() - begun, loss

  return run


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--network', default='unet', choices=models.MODELS)
  parser.add_argument('--sides', nargs='+', type=int, default=(112, 112))
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--classes', type=int, default=9)
  parser.add_argument('--meshes', nargs='+', default=('1x1', '2x1', '4x1', '8x1', '1x2', '4x2'), help='data x spatial')
  parser.add_argument('--rounds', type=int, default=7)
  args = parser.parse_args()
  shapes = [tuple(map(int, mesh.split('x'))) for mesh in args.meshes]
  jax.config.update('jax_num_cpu_devices', max(data * spatial for data, spatial in shapes))

  rng = np.random.default_rng(0)
  batch = {
    'image': rng.random((args.batch, *args.sides, 1), np.float32),
    'label': rng.integers(0, args.classes, (args.batch, *args.sides), np.int32),
  }
  runners, found = {'plain': make_runner(args.network, args.classes, batch, None)}, {}
  for data, spatial in shapes:
    mesh = sharding.make_mesh(data, spatial, jax.devices()[: data * spatial])
    sharding.check_divisible(
      mesh, args.batch, args.sides, models.reduction(args.network, models.build(args.network, args.classes))
    )
    runners[f'{data} x {spatial}'] = make_runner(args.network, args.classes, batch, mesh)
  for program, run in runners.items():
    found[program] = []
    _, loss = run()  # compiles
    print(f'{program}: first loss {loss:.6f}', file=sys.stderr)
  for _ in range(args.rounds):
    for program, run in runners.items():
      found[program].append(run()[0])

  print(HEADER)
  for program, times in found.items():
    devices = math.prod(int(n) for n in program.split(' x ')) if program != 'plain' else 1
    median = statistics.median(times)
    print(
      f'| {program} | {devices} | {args.batch / median:.2f} | {1e3 * median:.0f} | {1e3 * min(times):.0f} '
      f'| {statistics.median(t / p for t, p in zip(times, found["plain"])):.3f} |'
    )
  print(
    f'\n{args.network}, {" x ".join(map(str, args.sides))}, batch {args.batch}, float32, ce_afw, {args.rounds} rounds; '
    f'jax {jax.__version__}, {jax.devices()[0].device_kind}.'
  )


if __name__ == '__main__':
  with measured('jax'):
    main()
