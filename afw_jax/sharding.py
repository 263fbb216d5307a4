"""Devices: a mesh of data x spatial, and the shardings of state, batch and features on it.

The batch is divided along 'data', and each sample's first spatial axis (D of a volume, H of a slice) along 'spatial', so
that a volume may lie on several devices. The program is written for one device; XLA's partitioner adds the sums over
the batch and the exchange of borders between neighbours.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from afw_jax.errors import InputError
from afw_jax.models.options import identity


def make_mesh(data: int = -1, spatial: int = 1, devices=None) -> Mesh:
  """All devices of all processes as ('data', 'spatial'). (`Mesh` has Auto axes, which Linen's Dropout needs.)

  Args:
    data: parts of the batch; -1 = as many as there are devices for.
    spatial: parts of one sample.
    devices: other than all there are.

  Raises:
    InputError: the devices cannot be arranged so.
  """
  devices = np.array(jax.devices() if devices is None else devices)
  n = devices.size
  if spatial < 1 or n % spatial:
    raise InputError('mesh.spatial', f'{spatial} does not divide {n} devices', f'Use one of {_divisors(n)}.')
  if data not in (-1, n // spatial):
    raise InputError('mesh.data', f'{data} x mesh.spatial {spatial} is not the number of devices, {n}',
                     f'Use -1 or {n // spatial}.')
  return Mesh(devices.reshape(-1, spatial), ('data', 'spatial'))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def of_batch(mesh: Mesh, batch: dict) -> dict[str, NamedSharding]:
  """How a batch is divided: images and labels along both axes of the mesh, numbers per sample along 'data' alone."""
  return {key: NamedSharding(mesh, PartitionSpec('data', 'spatial') if key in ('image', 'label') else PartitionSpec('data'))
          for key in batch}


def make_constrain(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
  """What the networks apply to features (B, *S, C) and tokens (B, N, C) after each block: keep them divided.

  An axis that the mesh does not divide evenly, as in the coarsest levels, is left to the partitioner.
  """
  if mesh.shape['spatial'] == 1:
    return identity
  both, batch = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (('data', 'spatial'), ('data',)))
  divided = lambda x: x.shape[0] % mesh.shape['data'] == 0 and x.shape[1] % mesh.shape['spatial'] == 0

  def constrain(x):
    if x.shape[0] % mesh.shape['data']:
      return x  # an example at initialisation
    return jax.lax.with_sharding_constraint(x, both if divided(x) else batch)

  return constrain


def check(mesh: Mesh, batch_size: int, sides: tuple[int, ...]) -> None:
  """Raises InputError where the global batch or the samples do not divide over the mesh."""
  for key, n, parts in (('train.batch_size', batch_size, mesh.shape['data']), ('mesh.spatial', sides[0], mesh.shape['spatial'])):
    if n % parts == 0:
      continue
    if key == 'mesh.spatial':
      raise InputError(key, f'{parts} does not divide the first side of {sides}', f'Use one of {_divisors(n)}.')
    lower, upper = max(parts, n // parts * parts), -(-n // parts) * parts
    raise InputError(key, f'{n} does not divide over {parts} devices', f'Use {lower} or {upper}.')


def share(mesh: Mesh) -> tuple[int, int]:
  """(rank, world): which of how many equal parts of a global batch this process has to read."""
  mine = {i for i, row in enumerate(mesh.devices) for device in row if device.process_index == jax.process_index()}
  return min(mine) // len(mine), mesh.shape['data'] // len(mine)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Global arrays from this process's share of the batch."""
  rank, world = share(mesh)

  def put(array, sharding):
    rows = len(array)
    shape = (rows * world, *array.shape[1:])
    if world == 1 and jax.process_count() == 1:
      return jax.device_put(array, sharding)

    def part(index):
      first, last, _ = index[0].indices(shape[0])
      return array[(slice(first - rank * rows, last - rank * rows), *index[1:])]

    return jax.make_array_from_callback(shape, sharding, part)

  return {key: put(array, sharding) for (key, array), sharding in zip(batch.items(), of_batch(mesh, batch).values())}


def _divisors(n: int) -> str:
  return ', '.join(str(d) for d in range(1, n + 1) if n % d == 0)
