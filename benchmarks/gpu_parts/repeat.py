"""Whether steps repeat to the bit: on a mesh of one device, again, in another process, with and without flags."""

from gpu_parts import sizes
from gpu_parts.compiling import FLAGS
from gpu_parts.item import Item, Work, failures, markdown, single, successes
from gpu_parts.worker import reason

PART, TITLE = 'repeat', 'The same bits again'
# Small images: what is asked is which kernels are chosen and whether they add in a fixed order, not how fast they are.
SMALL = {
  'unet': ((64, 64), 4),
  'unetr': ((32, 32, 32), 2),
  'unet3d': ((32, 32, 32), 2),
  'vatransunet': ((32, 32), 2),
}


def items(work: Work) -> list[Item]:
  more = {'cache': False, 'timed': False}
  found = [single(PART, 'mesh', 'gpu_parts.repeat:mesh', {'networks': work.chosen(('unet', 'unetr'))}, 150, **more)]
  for how in ('autotuned', 'deterministic'):
    found.append(single(PART, f'scatter {how}', 'gpu_parts.repeat:scatter', {}, 90, flags=FLAGS[how], **more))
  for network in work.chosen(SMALL)[: 1 if work.dry else 2 if work.quick else None]:
    sides, batch = sizes.size(network, work) if work.dry else SMALL[network]
    options = {'network': network, 'sides': sides, 'batch_size': batch, 'options': sizes.options(network, work)}
    for how in ('deterministic',) if work.dry else ('deterministic', 'autotuned'):
      for process in ('first', 'second'):
        name = f'{network} {how} {process}'
        found.append(single(PART, name, 'gpu_parts.repeat:steps', options, 180, flags=FLAGS[how], **more))
  return found


def steps(network, sides, batch_size, options, dtype='bfloat16', count=3) -> dict:
  """Takes the same steps twice; a digest of the parameters tells them apart, also from those of another process."""
  import hashlib
  import json

  import jax

  from afw_jax.training.fingerprint import fingerprint
  from gpu_parts import steps

  step = steps.prepared(network, sides, batch_size, dtype, options, count=False)
  first = jax.device_get(step.state)
  digests = []
  for _ in range(2):
    state = jax.device_put(first, jax.devices()[0])
    for _ in range(count):
      state, aux = step.call(state, step.batch, step.key)
    found = fingerprint(state.params)
    digests.append(hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:12])
  return {'same': digests[0] == digests[1], 'digest': digests[0], 'loss': float(aux['loss'])}


def mesh(networks: list[str]) -> dict:
  """The largest differences of the parameters after two steps: on a mesh of one device and without a mesh."""
  import jax
  import numpy as np
  from spatial import make_step

  from afw_jax.distributed import sharding
  from gpu_parts import steps

  facts = {}
  for network in networks:
    options = sizes.small(network)
    sides = (32, 32) if network == 'unet' else (16, 16, 16)
    ends = []
    for placed in (None, sharding.make_mesh(1, 1, jax.devices()[:1])):
      train_step, _ = make_step(network, sizes.CLASSES, placed, **options)
      state, batch = steps.first_state(network, sides, options), steps.random_batch(sides, 2)
      if placed:
        state = jax.device_put(state, sharding.replicated(placed))
        batch = sharding.put_batch({key: np.asarray(value) for key, value in batch.items()}, placed)
      for _ in range(2):
        state, _ = train_step(state, batch, jax.random.key(1))
      ends.append(jax.device_get(state.params))
    differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), *ends)
    facts[network] = max(jax.tree.leaves(differences))
  return facts


def scatter() -> dict:
  """Whether `.at[].set`, `.at[].add` and the gradients of pooling run, and give the same bits five times."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  import numpy as np

  from afw_jax.models.layers.pooling import max_pool

  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((2, 64, 64, 16)).astype(np.float32))
  index = jnp.asarray(rng.integers(0, 500, 100_000))
  values = jnp.asarray(rng.standard_normal(100_000).astype(np.float32))
  programs = {
    'at_set': (lambda v: jnp.zeros(100_000).at[jnp.argsort(v)].set(v), values),
    'at_add': (lambda v: jnp.zeros(500).at[index].add(v), values),
    'own_pooling': (jax.grad(lambda x: (max_pool(x) ** 2).sum()), x),
    'flax_pooling': (jax.grad(lambda x: (nn.max_pool(x, (3, 3), (2, 2)) ** 2).sum()), x),
  }
  facts = {}
  for name, (program, argument) in programs.items():
    try:
      call = jax.jit(program)
      results = [np.asarray(call(argument)).tobytes() for _ in range(5)]
      facts[name] = 'same bits' if len(set(results)) == 1 else 'DIFFERENT BITS'
    except Exception as error:  # the others are still of interest
      facts[name] = f'failed: {reason(error)}'
  return facts


def table(records: dict[str, dict], facts: dict) -> list[str]:
  rows, both = failures(records), {}
  for name, found in successes(records).items():
    if 'digest' in found:
      both.setdefault(name.rpartition(' ')[0], set()).add(found['digest'])
      rows.append([name, f'{"same bits" if found["same"] else "DIFFERENT BITS"}, {found["digest"]}'])
    elif name == 'mesh':
      rows.append(['mesh of one device: largest difference', ', '.join(f'{k} {v:.1e}' for k, v in found.items())])
    else:
      rows.append([name, ', '.join(f'{k}: {v}' for k, v in found.items())])
  lines = [
    f'- two processes, {name}: {"same" if len(found) == 1 else "DIFFERENT"} bits' for name, found in both.items()
  ]
  return [*markdown(['what', 'result'], rows), '', *lines]
