"""Size, work and memory of every network, as a Markdown table: python benchmarks/networks.py [--write FILE].

Nothing is executed and no weights are allocated: the programs are only traced, and compiled to obtain their memory
(minutes in all; --no-memory leaves that out). All networks of `models.MODELS` are included.

Work is XLA's count for the forward pass of one image: two operations per multiply-add, elementwise operations included,
products with the zeros of the padding left out. For comparison: the convolutions of the UNet at 224 x 224 are
10.66 G multiply-adds = 21.33 GFLOP by hand, padding included; XLA's count for the whole network is 20.83.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from afw_jax.distributed.xla_flags import set_cpu_flags  # noqa: E402

set_cpu_flags()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from afw_jax import losses, models  # noqa: E402

# Image sides, batch and classes: the paper's 2D slices (Synapse) and volumes (AbdomenCT-1K), and the usual crops.
SLICES = [((224, 224), 24, 9)]
VOLUMES = {
  'unet3d': [((128, 256, 256), 6, 5), ((128, 128, 128), 2, 5)],
  'unetr': [((128, 256, 256), 6, 5), ((96, 96, 96), 2, 5)],
  'unetrpp': [((128, 256, 256), 6, 5), ((64, 128, 128), 2, 5)],
}
HEADER = (
  '| network | image | classes | parameters | forward GFLOP per image | batch | activations of a train step, GiB |\n'
  '|---|---|---|---|---|---|---|'
)


def forward_flops(model, variables, sides) -> str:
  """GFLOP of one image, with a '>' if the program has a loop, whose body XLA counts once whatever its length."""
  image = jax.ShapeDtypeStruct((1, *sides, 1), jnp.float32)
  lowered = jax.jit(model.apply).lower(variables, image)
  loop = '> ' if 'stablehlo.while' in lowered.as_text() else ''
  return f'{loop}{lowered.cost_analysis()["flops"] / 1e9:,.1f}'


def train_memory(model, variables, sides, batch) -> int:
  """Bytes that the compiled loss and gradient need besides their arguments and results: activations and scratch."""
  loss_fn = losses.deep_supervised(
    losses.make_loss('ce_afw'), getattr(model, 'head_weights', None), main=getattr(model, 'main_output', 0)
  )

  def step(params, rest, s, image, label, key):
    def loss_of(params, s):
      logits, updates = model.apply(
        {'params': params, **rest}, image, train=True, mutable=['batch_stats'], rngs={'dropout': key}
      )
      return loss_fn(logits, label, s)[0], updates

    return jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(params, s)

  rest = {name: tree for name, tree in variables.items() if name != 'params'}
  image = jax.ShapeDtypeStruct((batch, *sides, 1), jnp.float32)
  label = jax.ShapeDtypeStruct((batch, *sides), jnp.int32)
  s = jax.ShapeDtypeStruct((model.num_classes,), jnp.float32)
  compiled = jax.jit(step).lower(variables['params'], rest, s, image, label, jax.random.key(0)).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def row(name, sides, batch, classes, options, memory) -> str:
  """One line of the table."""
  model = models.build(name, classes, **options)
  variables = models.abstract_variables(model, (1, *sides, 1))
  parameters = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  flops = forward_flops(model, variables, sides)
  held = f'{train_memory(model, variables, sides, batch) / 2**30:.2f}' if memory else ''
  return f'| {name} | {" x ".join(map(str, (*sides, 1)))} | {classes} | {parameters:,} | {flops} | {batch} | {held} |'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--networks', nargs='+', default=models.MODELS, help='only these')
  parser.add_argument('--dtype', default='float32', help='compute dtype')
  parser.add_argument('--remat', action='store_true', help='recompute the blocks in the backward pass')
  parser.add_argument('--no-memory', action='store_true', help='do not compile the train steps')
  parser.add_argument('--write', type=Path, metavar='FILE', help='save the table there')
  args = parser.parse_args()
  options = {'dtype': args.dtype, **({'remat': True} if args.remat else {})}

  lines = [HEADER]
  print(HEADER, flush=True)
  for name in args.networks:
    for sides, batch, classes in VOLUMES.get(name, SLICES):
      lines.append(row(name, sides, batch, classes, options, not args.no_memory))
      print(lines[-1], flush=True)
  note = (
    f'{args.dtype}{", remat" if args.remat else ""}, ce_afw; jax {jax.__version__}, programs made for '
    f'{jax.devices()[0].device_kind}. Parameters of the references that no output depends on are left out.'
  )
  print(f'\n{note}')
  if args.write:
    args.write.write_text('\n'.join((*lines, '', note)) + '\n', encoding='utf-8')


if __name__ == '__main__':
  main()
