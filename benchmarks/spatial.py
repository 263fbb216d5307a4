"""Memory and communication of a train step on 1 to 8 devices, as a Markdown table: python benchmarks/spatial.py.

Nothing is run and no weights are initialised: the real train step (CE + AFW-Dice, SGD with momentum, the state donated)
is compiled for virtual CPU devices on meshes of data x spatial, and the compiler reports what each device holds.
Compiling takes up to some minutes per line (`--networks`, `--meshes` and `--sides` choose fewer).

These are programs for CPUs: the 3D convolution has another form there (`afw_jax/models/layers/volume_conv.py`), whose
shifted copies take memory that convolutions on GPUs and TPUs do not, and those have workspaces of their own. The
division over devices comes before that choice, so shares and collectives carry over, GiB only roughly.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from afw_jax.distributed.xla_flags import set_cpu_flags  # noqa: E402
from afw_jax.planning import collectives  # noqa: E402

set_cpu_flags()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from afw_jax import losses, models  # noqa: E402
from afw_jax.distributed import sharding  # noqa: E402
from afw_jax.training import optimizer, step  # noqa: E402

NETWORKS = ('unet3d', 'unetr', 'unetrpp')
MESHES = ('1x1', '1x2', '2x1', '1x4', '2x2', '1x8', '2x4')
HEADER = (
  '| network | devices | data x spatial | temporary GiB per device | share of one | arguments GiB per device '
  '| results of collectives, GiB | largest, MiB |\n|---|---|---|---|---|---|---|---|'
)


def make_step(name, classes, mesh, *, loss='ce_afw', **options):
  """Returns the jitted train step of a network and the function that initialises its state; mesh None: no shardings."""
  placed = {'constrain': sharding.make_constrain(mesh)} if mesh else {}
  model = models.build(name, classes, **placed, **options)
  loss_fn = losses.deep_supervised(
    losses.make_loss(loss), getattr(model, 'head_weights', None), main=getattr(model, 'main_output', 0)
  )
  tx = optimizer.sgd(optimizer.polynomial_schedule(0.01, epochs=1, steps_per_epoch=1000))
  train_step = step.make_train_step(model, loss_fn, tx, lambda key, batch: batch)
  where = {'out_shardings': (sharding.replicated(mesh),) * 2} if mesh else {}
  return jax.jit(train_step, donate_argnums=0, **where), functools.partial(
    step.init_state, model, tx, num_classes=classes
  )


def compile_step(name, sides, batch_size, classes, mesh, **options):
  """The compiled train step of a network on a mesh."""
  train_step, init = make_step(name, classes, mesh, **options)
  state = jax.eval_shape(init, jax.random.key(0), image=jax.ShapeDtypeStruct((1, *sides, 1), jnp.float32))
  everywhere = sharding.replicated(mesh)
  state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), state)
  batch = {'image': ((batch_size, *sides, 1), jnp.float32), 'label': ((batch_size, *sides), jnp.int32)}
  placed = sharding.batch_shardings(mesh, batch)
  batch = {key: jax.ShapeDtypeStruct(*batch[key], sharding=placed[key]) for key in batch}
  return train_step.lower(state, batch, jax.random.key(0)).compile()


def row(name, shape, compiled, whole) -> str:
  """One line of the table; `whole` is the temporary memory on one device, if known."""
  memory = compiled.memory_analysis()
  sent = collectives.collectives(compiled.as_text())
  kind, largest = max(sent, key=lambda one: one[1], default=('nothing', 0))
  share = f'{memory.temp_size_in_bytes / whole:.3f}' if whole else ''
  return (
    f'| {name} | {shape[0] * shape[1]} | {shape[0]} x {shape[1]} | {memory.temp_size_in_bytes / 2**30:.2f} | {share} '
    f'| {memory.argument_size_in_bytes / 2**30:.2f} | {sum(size for _, size in sent) / 2**30:.2f} '
    f'| {largest / 2**20:.1f} ({kind}) |'
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--networks', nargs='+', default=NETWORKS, choices=models.MODELS)
  parser.add_argument('--meshes', nargs='+', default=MESHES, help='data x spatial, as 2x4')
  parser.add_argument('--sides', nargs='+', type=int, default=(128, 256, 256))
  parser.add_argument('--batch', type=int, default=6)
  parser.add_argument('--classes', type=int, default=5)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--remat', action='store_true', help='recompute the blocks in the backward pass')
  parser.add_argument('--epa-layout', default='released', help="of UNETR++: 'released' or 'fixed'")
  parser.add_argument('--write', type=Path, metavar='FILE', help='save the table there')
  args = parser.parse_args()
  options = {'dtype': args.dtype, 'remat': args.remat}
  shapes = [tuple(map(int, mesh.split('x'))) for mesh in args.meshes]
  jax.config.update('jax_num_cpu_devices', max(data * spatial for data, spatial in shapes))

  lines = [HEADER]
  print(HEADER, flush=True)
  for name in args.networks:
    whole, own = None, {'epa_layout': args.epa_layout} if name == 'unetrpp' else {}
    for data, spatial in shapes:
      mesh = sharding.make_mesh(data, spatial, jax.devices()[: data * spatial])
      sharding.check_divisible(mesh, args.batch, args.sides, models.reduction(name, models.build(name, args.classes)))
      begun = time.perf_counter()
      compiled = compile_step(name, tuple(args.sides), args.batch, args.classes, mesh, **options, **own)
      print(f'compiled in {time.perf_counter() - begun:.0f} s', file=sys.stderr)
      whole = compiled.memory_analysis().temp_size_in_bytes if data == spatial == 1 else whole
      lines.append(row(name, (data, spatial), compiled, whole))
      print(lines[-1], flush=True)
  note = (
    f'{" x ".join(map(str, args.sides))}, batch {args.batch}, {args.classes} classes, {options}, '
    f'UNETR++ {args.epa_layout!r}; jax {jax.__version__}, compiled for {jax.devices()[0].device_kind}.'
  )
  print(f'\n{note}')
  if args.write:
    args.write.write_text('\n'.join((*lines, '', note)) + '\n', encoding='utf-8')


if __name__ == '__main__':
  main()
