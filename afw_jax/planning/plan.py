"""Will it fit, and what will it send? plan(config): the real training step, compiled for devices that need not be there."""

import contextlib
import math
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import tqdm

from afw_jax import models
from afw_jax.config import build
from afw_jax.config.program import make_program
from afw_jax.data.sets.lookup import get_spec
from afw_jax.distributed import sharding
from afw_jax.errors import InputError, InputErrors
from afw_jax.planning import accelerators, collectives
from afw_jax.training import accumulation

Mesh = tuple[int, int]  # parts of the batch, parts of a sample


def plan(
  config: ml_collections.ConfigDict,
  target_name: str,
  choices: str = '',
  memory_gib: float | None = None,
  *,
  write: Callable[[str], None] = tqdm.tqdm.write,
) -> list[dict]:
  """Compiles the config's training step for several meshes, one after the other, and writes a table of them line by line.

  Args:
    config: as configs/common.py describes it; mesh.data and mesh.spatial, where set, hold for every number of devices.
    target_name: one of `targets.TARGETS`.
    choices: numbers of devices, or meshes data x spatial: '1,2,4x2,8'; '' = some usual ones.
    memory_gib: of one device, instead of what the target has.
    write: takes one line.

  Returns:
    For each choice 'mesh' (None where there is none), what `measure` returns, and whether it 'fits'.

  Raises:
    InputError: the config cannot be trained, a choice is none, or the target's compiler is not installed.
  """
  target = accelerators.get(target_name, memory_gib)
  size, batch_size = build.input_size(config), config.train.batch_size
  choices = choices or ('1,4,8,16' if target.platform == 'tpu' else '1,2,4,8,16')
  accumulation.check(config.train.micro_batches, batch_size, 1)
  deepest = size[0] // models.reduction(config.model.name, build.network(config, 2)[0])
  meshes = {
    choice: mesh_of(
      choice, batch_size // config.train.micro_batches, size[0], deepest, config.mesh.data, config.mesh.spatial
    )
    for choice in dict.fromkeys(c.strip() for c in choices.split(','))
  }
  for mesh in filter(None, meshes.values()):
    accelerators.check(target_name, target, mesh[0] * mesh[1])
  limit = target.memory_gib * target.usable
  write(
    f'{config.model.name} {" x ".join(map(str, size))}, batch {batch_size}, {config.model.dtype}: one training step compiled for '
    f'{target_name}, {target.memory_gib:.4g} GiB a device'
    + (f', of which {limit:.4g} are planned with' if target.usable < 1 else '')
  )
  write('\n' + _HEADING)
  rows = []
  with tqdm.tqdm(total=len(meshes), unit='mesh', leave=False, mininterval=0.5 if sys.stderr.isatty() else 30) as bar:
    for choice, mesh in meshes.items():
      bar.set_description(f'compile {choice} for {target_name}')
      flops = next((row['flops'] for row in rows if row['mesh']), None)
      job = {'config': config, 'target': target_name, 'memory_gib': memory_gib, 'mesh': mesh, 'flops': flops}
      rows.append({'mesh': mesh, **(_elsewhere(job, target, bar) if mesh else {})})
      rows[-1]['fits'] = rows[-1].get('memory', {}).get('total', float('inf')) <= limit * accelerators.GIB
      write(_row(choice, **rows[-1]))
      bar.update(1)
  write('\n' + '\n'.join(_advice(rows, target)))
  return rows


def mesh_of(choice: str, batch_size: int, side: int, rows: int, data: int = -1, spatial: int = 1) -> Mesh | None:
  """(data, spatial) of a choice: '4x2' as it says, '8' with as many parts of the batch, and as few of each sample, as divide.

  Args:
    choice: a number of devices, or data x spatial.
    batch_size: what data has to divide, the batch or a micro-batch.
    side: what spatial has to divide.
    rows: at the deepest level, the most that spatial may be.
    data: fixes the parts of the batch (-1: free).
    spatial: fixes the parts of a sample (1: free).

  Returns:
    None where there is no such mesh.

  Raises:
    InputError: the choice is no number of devices and no mesh.
  """
  sides = choice.split('x')
  if len(sides) > 2 or not all(n.isdecimal() and int(n) for n in sides):
    raise InputError(
      '--devices', f'{choice!r} is no number of devices and no mesh', 'Give for instance 1,2,4,8 or 2x4.'
    )
  if len(sides) == 2:
    found = [(int(sides[0]), int(sides[1]))]
  else:
    n = int(choice)
    found = [(n // s, s) for s in range(1, n + 1) if n % s == 0 and data in (-1, n // s) and spatial in (1, s)]
  return next(((d, s) for d, s in found if batch_size % d == 0 and side % s == 0 and s <= max(rows, 1)), None)


def program(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, *, micro_batches: int, unroll: bool):
  """(training step, its arguments as shapes on the mesh) of a config, as `train.train` runs it."""
  spec = get_spec(config.data.dataset, config.data.root if config.data.dataset == 'folder' else None)
  made = make_program(
    config,
    mesh,
    ('background', *spec.organs),
    max(config.train.steps_per_epoch, 1),
    micro_batches=micro_batches,
    unroll=unroll,
  )
  size, batch_size = made.input_size, config.train.batch_size
  raw = jnp.int16 if spec.modality == 'CT' else jnp.float32  # scans with fractions of a unit are float32
  batch = {
    'image': jax.ShapeDtypeStruct((batch_size, *size, 1), raw),
    'label': jax.ShapeDtypeStruct((batch_size, *size), jnp.uint8),
    'window': jax.ShapeDtypeStruct((batch_size, 2), jnp.float32),
  }
  shaped = lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where)
  key = jax.eval_shape(lambda: jax.random.key(0))
  arguments = (
    made.abstract_state(),
    {k: shaped(batch[k], where) for k, where in sharding.batch_shardings(mesh, batch).items()},
    shaped(key, sharding.replicated(mesh)),
  )
  return made.train_step, arguments


def measure(job: dict) -> dict:
  """Compiles one program, in a process of its own.

  Args:
    job: 'config', 'target', 'memory_gib', 'mesh', and 'flops' where they are known already.

  Returns:
    'flops' of the whole batch, 'seconds' to compile; 'memory' of `targets.memory` and 'traffic' of `targets.traffic`, or
    'exhausted', the GiB that the compiler refused.
  """
  target = accelerators.get(job['target'], job['memory_gib'])
  data, spatial = job['mesh']
  mesh = sharding.make_mesh(data, spatial, accelerators.devices(job['target'], target, data * spatial))
  micro_batches = job['config'].train.micro_batches
  train_step, arguments = program(job['config'], mesh, micro_batches=micro_batches, unroll=target.platform == 'cpu')
  lowered = train_step.lower(*arguments)
  result = {'flops': job['flops'] or _flops(job['config'])}
  start = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needed = accelerators.exhausted(str(error))
    if needed is None:
      raise
    return {**result, 'exhausted': needed, 'seconds': time.perf_counter() - start}
  return {
    **result,
    'memory': accelerators.memory(compiled),
    'traffic': collectives.traffic(compiled.as_text()),
    'seconds': time.perf_counter() - start,
  }


def _flops(config: ml_collections.ConfigDict) -> float:
  """Floating point operations of one step of the whole batch at once, before any compiler: no target's own, and none twice.

  Lowered for a TPU, which needs none: a CPU's forms of the 3D convolution also count products with zeros.
  """
  mesh = sharding.make_mesh(devices=jax.devices('cpu')[:1])
  train_step, arguments = program(config, mesh, micro_batches=1, unroll=True)
  return train_step.trace(*arguments).lower(lowering_platforms=('tpu',)).cost_analysis()['flops']


def _elsewhere(job: dict, target: accelerators.Target, bar: tqdm.tqdm) -> dict:
  """`measure` in a new process, because XLA reads its flags once."""
  root = str(pathlib.Path(__file__).parent.parent)
  environment = accelerators.environment(target, job['mesh'][0] * job['mesh'][1], os.environ)
  environment['PYTHONPATH'] = os.pathsep.join(filter(None, (root, environment.get('PYTHONPATH'))))
  with tempfile.TemporaryDirectory() as folder, open(os.path.join(folder, 'log'), 'w+') as log:
    question, answer = os.path.join(folder, 'job'), os.path.join(folder, 'answer')
    with open(question, 'wb') as f:
      pickle.dump(job, f)
    process = subprocess.Popen(
      [sys.executable, '-m', 'afw_jax.planning.plan', question, answer], env=environment, stdout=log, stderr=log
    )
    try:
      while process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
          process.wait(0.5)
        bar.refresh() if sys.stderr.isatty() else bar.update(0)
    finally:
      process.kill()
    if process.returncode == -9:
      raise InputError(
        '--devices',
        f'the compiler was killed at {job["mesh"]}: most likely this machine has too little memory for it',
        'Plan fewer or larger meshes at a time, or on a machine with more memory.',
      )
    if process.returncode:
      log.seek(0)
      raise RuntimeError(
        f'compiling for {job["target"]} {job["mesh"]} ended with {process.returncode}:\n{log.read()[-4000:]}'
      )
    with open(answer, 'rb') as f:
      result = pickle.load(f)
  if isinstance(result, Exception):
    raise result
  return result


_HEADING = (
  f'{"devices":>7} {"data x spatial":>15} {"GiB/device":>11} {"temporary":>10} {"fits":>5} {"TFLOP/device":>13} '
  f'{"collectives":>12} {"MiB/step":>9} {"largest MiB":>24}  by kind (MiB)'
)


def _row(
  choice: str,
  *,
  mesh: Mesh | None,
  fits: bool,
  flops: float = 0,
  memory=None,
  traffic=(),
  exhausted: float = 0,
  seconds=0,
) -> str:
  """One mesh in the columns of the heading; `exhausted` in place of memory and traffic where the compiler refused it."""
  if mesh is None:
    return f'{choice:>7}  no such mesh divides the batch and the first side of the samples and leaves a row a device at the deepest level'
  devices = mesh[0] * mesh[1]
  total, temporary = (f'{memory[k] / accelerators.GIB:.3g}' if memory else '' for k in ('total', 'temporary'))
  line = (
    f'{devices:>7} {"{} x {}".format(*mesh):>15} {total or f"{exhausted:.3g}":>11} {temporary:>10} {"yes" if fits else "no":>5} '
    f'{flops / devices / 1e12:>13.3g}'
  )
  if memory is None:
    return line
  kind, largest, _ = max(traffic, key=lambda t: t[1], default=('', 0, 0))
  return (
    f'{line} {sum(times for _, _, times in traffic):>12} {sum(size * times for _, size, times in traffic) / 2**20:>9.1f} '
    f'{f"{largest / 2**20:.2f} {kind}":>24}  {_kinds(traffic)}'.rstrip()
  )


def _kinds(traffic: list[tuple[str, int, int]]) -> str:
  """'21 all-reduce (63.0), 70 collective-permute (181.2)': how many of each kind, and MiB."""
  texts = []
  for kind in sorted({kind for kind, _, _ in traffic}):
    own = [(size, times) for k, size, times in traffic if k == kind]
    texts.append(f'{sum(times for _, times in own)} {kind} ({sum(size * times for size, times in own) / 2**20:.1f})')
  return ', '.join(texts)


def _advice(rows: list[dict], target: accelerators.Target) -> list[str]:
  lines = [
    f'One step of the whole batch: {row["flops"] / 1e12:.3g} TFLOP, forward and backward.'
    for row in rows
    if row['mesh']
  ][:1]
  fitting = [row['mesh'] for row in rows if row['fits']]
  if not fitting:
    return [
      *lines,
      'None of these fits. More devices, --config.model.remat=True, --config.model.dtype=bfloat16, a smaller batch, '
      'or --config.train.micro_batches may help.',
    ]
  data, spatial = min(fitting, key=math.prod)
  devices = data * spatial
  lines.append(
    f'The smallest of these that fits: {devices} device{"s" * (devices > 1)}, --config.mesh.data={data} --config.mesh.spatial={spatial}'
  )
  held = next(row['memory']['total'] for row in rows if row['mesh'] == (data, spatial)) / accelerators.GIB
  if target.platform == 'cuda' and held > 0.7 * target.memory_gib:
    lines.append(
      'JAX takes three quarters of a GPU by itself; to use it all, start with XLA_PYTHON_CLIENT_MEM_FRACTION=0.92.'
    )
  return lines


def _main(question: str, answer: str) -> None:
  with open(question, 'rb') as f:
    job = pickle.load(f)
  try:
    result = measure(job)
  except (InputError, InputErrors) as error:
    result = error
  with open(answer, 'wb') as f:
    pickle.dump(result, f)


if __name__ == '__main__':
  _main(*sys.argv[1:])
