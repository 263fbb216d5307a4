"""Memory of the 3D networks at the paper's size and batch: what fits, and how near `--mode=plan` comes to the peak."""

import statistics
import time

from gpu_parts import sizes
from gpu_parts.item import Item, Work, markdown, number, single

PART, TITLE = 'memory', "The paper's volumes: 256 x 256 x 128, batch 6, bfloat16"
NETWORKS = ('unetr', 'unetrpp', 'unet3d')


def items(work: Work) -> list[Item]:
  found = []
  for network in work.chosen(NETWORKS)[: 1 if work.dry else None]:
    options = {'network': network, 'dry': work.dry}
    found.append(single(PART, f'plan {network}', 'gpu_parts.memory:planned', options, 240, timed=False))
    found.append(single(PART, f'run {network}', 'gpu_parts.memory:run', options, 200, least_s=60))
    if not (work.quick or work.dry):
      again = {**options, 'remat': True}
      found.append(single(PART, f'run {network} remat', 'gpu_parts.memory:run', again, 200, least_s=60))
  return found


def paper_config(network: str, dry: bool, dtype: str, remat: bool = False):
  """The shipped config of the paper's 3D training."""
  from configs import abdomenct1k_3d

  config = abdomenct1k_3d.get_config(network)
  config.model.dtype, config.model.remat = dtype, remat
  config.train.steps_per_epoch = 25
  if dry:
    sides, batch = sizes.TINY[network]
    config.data.size, config.train.batch_size, config.model.size = sides, batch, 'testing'
  return config


def planned(network: str, dry: bool) -> dict:
  """What `--mode=plan` says, which compiles without the device."""
  from afw_jax.planning import accelerators, isolated

  name = 'cpu' if dry else 'h100'
  target = accelerators.get(name)
  accelerators.check(name, target, 1)
  job = {'config': paper_config(network, dry, 'bfloat16'), 'target_name': name, 'mesh_shape': (1, 1)}
  found = isolated.measure_in_subprocess(job, target, lambda: None)
  return {
    'target': name,
    'plan_gib': found['memory']['total'] / 2**30,
    'tflop': found['flops'] / 1e12,
    'compile_s': found['seconds'],
  }


def run(network: str, dry: bool, remat: bool = False) -> dict:
  """The training step of that config on the device: compiled, and run three times."""
  import jax
  import numpy as np

  from afw_jax.distributed import sharding
  from afw_jax.planning import accelerators, measure
  from gpu_parts import steps

  config = paper_config(network, dry, 'bfloat16', remat)
  mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
  train_step, (abstract, batch, _) = measure.program(config, mesh, micro_batches=1, unroll=True)
  key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))
  begun = time.perf_counter()
  call = train_step.lower(abstract, batch, key).compile()
  facts = {'compile_s': time.perf_counter() - begun, 'device': steps.device()}
  facts['compiler_gib'] = accelerators.memory(call)['total'] / 2**30
  facts['peak_compiling_gib'] = steps.peak_gib()

  rng, arrays = np.random.default_rng(0), {}
  for name, wanted in batch.items():
    low, high = {'image': (-200, 400), 'label': (0, 5), 'window': (0, 1)}[name]
    arrays[name] = rng.integers(low, high, wanted.shape).astype(wanted.dtype)
  arrays['window'] = np.broadcast_to(np.float32([50, 350]), batch['window'].shape)
  arrays = sharding.put_batch(arrays, mesh)
  state = jax.device_put(_first_state(network, dry, config), sharding.replicated(mesh))
  seconds = []
  for _ in range(4):
    start = time.perf_counter()
    state, aux = call(state, arrays, key)
    loss = float(jax.block_until_ready(aux['loss']))
    seconds.append(time.perf_counter() - start)
  return {**facts, 'peak_gib': steps.peak_gib(), 'step_s': statistics.median(seconds[1:]), 'loss': loss}


def _first_state(network: str, dry: bool, config):
  """The state before the first step, made on the CPU, where compiling the initialisation takes least."""
  import jax

  from afw_jax.config.program import make_program
  from afw_jax.data.sets.lookup import get_spec
  from afw_jax.distributed import sharding

  classes = ('background', *get_spec(config.data.dataset, None).organs)
  cpu = sharding.make_mesh(1, 1, jax.devices('cpu')[:1])
  program = make_program(paper_config(network, dry, 'float32'), cpu, classes, 25)
  with jax.default_device(jax.devices('cpu')[0]):
    return program.initial_state(jax.random.key(0))


def table(records: dict[str, dict], facts: dict) -> list[str]:
  plans = {name.split(' ')[1]: record['sides']['ours'] for name, record in records.items() if name.startswith('plan ')}
  rows = []
  for name, record in records.items():
    found, plan = record['sides']['ours'], plans.get(name.split(' ')[1], {})
    if name.startswith('plan ') and 'failed' in found:
      rows.append([name, f'failed: {found["failed"]}', *[''] * 5])
    elif name.startswith('run '):
      failed, peak, says = found.get('failed'), found.get('peak_gib'), plan.get('plan_gib')
      says = None if name.endswith('remat') else says
      result = f'failed: {failed}' if failed else f'{found["step_s"]:.3f} s a step'
      ratio = f'{says / peak:.2f}' if peak and says else ''
      rate = number(plan['tflop'] / found['step_s']) if plan.get('tflop') and not failed else ''
      rows.append([name, result, number(says), number(found.get('compiler_gib')), number(peak), ratio, rate])
  heading = ['what', 'result', 'plan GiB', 'compiler here GiB', 'peak GiB', 'plan / peak', 'TFLOP/s']
  return markdown(heading, rows)
