"""Plans a training run without the hardware: does it fit, and how much do the devices send each other?

The real training step of a config is compiled for meshes of CPUs, GPUs or TPUs, which need not be installed; nothing
is run.
"""

import math
from collections.abc import Callable

import ml_collections

from afw_jax import models
from afw_jax.config import build
from afw_jax.errors import InputError
from afw_jax.planning import accelerators, isolated, table
from afw_jax.system import terminal
from afw_jax.training import accumulation

Mesh = tuple[int, int]  # parts of the batch, parts of a sample


def plan(
  config: ml_collections.ConfigDict,
  target_name: str,
  choices: str = '',
  memory_gib: float | None = None,
  *,
  write: Callable[[str], None] = terminal.say,
) -> list[dict]:
  """Compiles a config's training step for several meshes, one after the other, and writes a table line by line.

  Args:
    config: as `config.default_config` describes it; mesh.data and mesh.spatial, where set, hold for each number of
      devices.
    target_name: one of `accelerators.TARGETS`.
    choices: numbers of devices, or meshes data x spatial, separated by commas: '1,2,4x2,8'; '': the usual ones.
    memory_gib: the memory of one device, instead of the target's own.
    write: called with one line at a time.

  Returns:
    For each choice: 'mesh' (None where there is none), 'fits', and what `isolated.measure_in_subprocess` returns.

  Raises:
    InputError: the config cannot be trained, a choice is not valid, or the target's compiler is not installed.
  """
  target = accelerators.get(target_name, memory_gib)
  meshes = _meshes(config, choices or ('1,4,8,16' if target.platform == 'tpu' else '1,2,4,8,16'))
  for mesh in filter(None, meshes.values()):
    accelerators.check(target_name, target, math.prod(mesh))
  limit = target.memory_gib * target.usable
  write(
    f'{config.model.name} {" x ".join(map(str, build.input_size(config)))}, batch {config.train.batch_size}, '
    f'{config.model.dtype}: one training step compiled for {target_name}, {target.memory_gib:.4g} GiB per device'
    + (f', of which {limit:.4g} may be filled' if target.usable < 1 else '')
  )
  write('\n' + table.HEADING)
  rows = []
  hidden = not terminal.is_interactive()  # in a log the rows are progress enough
  with terminal.progress_bar(total=len(meshes), unit='mesh', leave=False, mininterval=0.5, disable=hidden) as bar:
    for choice, mesh in meshes.items():
      bar.set_description(f'compile {choice} for {target_name}')
      row = {'mesh': mesh}
      if mesh:
        flops = next((other['flops'] for other in rows if other.get('flops')), None)
        job = {'config': config, 'target_name': target_name, 'memory_gib': memory_gib}
        row |= isolated.measure_in_subprocess({**job, 'mesh_shape': mesh, 'flops': flops}, target, bar.refresh)
      row['fits'] = row.get('memory', {}).get('total', math.inf) <= limit * accelerators.GIB
      rows.append(row)
      write(table.row(choice, **row))
      bar.update(1)
  write('\n' + '\n'.join(table.advice(rows, target)))
  return rows


def _meshes(config: ml_collections.ConfigDict, choices: str) -> dict[str, Mesh | None]:
  """The mesh of each choice, for the batch and samples of a config."""
  batch_size, micro_batches, side = config.train.batch_size, config.train.micro_batches, build.input_size(config)[0]
  accumulation.check(micro_batches, batch_size, 1)
  rows = side // models.reduction(config.model.name, build.network(config, 2)[0])
  return {
    choice: mesh_of(choice, batch_size // micro_batches, side, rows, config.mesh.data, config.mesh.spatial)
    for choice in dict.fromkeys(c.strip() for c in choices.split(','))
  }


def mesh_of(choice: str, batch_size: int, side: int, rows: int, data: int = -1, spatial: int = 1) -> Mesh | None:
  """Returns (data, spatial) for a choice of the user.

  '4x2' is a mesh; '8' is a number of devices, arranged with as few parts of each sample as possible.

  Args:
    choice: a number of devices, or data x spatial.
    batch_size: samples in the batch or micro-batch, a multiple of data.
    side: the first side of a sample in voxels, a multiple of spatial.
    rows: of the features at the deepest level of the network; spatial may not be more.
    data: fixes the parts of the batch (-1: free).
    spatial: fixes the parts of a sample (1: free).

  Returns:
    None where there is no such mesh.

  Raises:
    InputError: the choice is neither a number of devices nor a mesh.
  """
  sides = choice.split('x')
  if len(sides) > 2 or not all(n.isdecimal() and int(n) for n in sides):
    raise InputError(
      '--devices', f'{choice!r} is neither a number of devices nor a mesh', 'Give for instance 1,2,4,8 or 2x4.'
    )
  if len(sides) == 2:
    found = [(int(sides[0]), int(sides[1]))]
  else:
    n = int(choice)
    found = [(n // s, s) for s in range(1, n + 1) if n % s == 0 and data in (-1, n // s) and spatial in (1, s)]
  return next(((d, s) for d, s in found if batch_size % d == 0 and side % s == 0 and s <= max(rows, 1)), None)
