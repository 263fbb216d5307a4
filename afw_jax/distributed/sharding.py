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
from afw_jax.models.layers.options import identity


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
    raise InputError('mesh.spatial', f'{spatial} does not divide {n} devices', f'Use {_either(_divisors(n))}.')
  if data not in (-1, n // spatial):
    raise InputError(
      'mesh.data', f'{data} x mesh.spatial {spatial} is not the number of devices, {n}', f'Use -1 or {n // spatial}.'
    )
  return Mesh(devices.reshape(-1, spatial), ('data', 'spatial'))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def batch_shardings(mesh: Mesh, batch: dict) -> dict[str, NamedSharding]:
  """How a batch is divided: images and labels along both axes of the mesh, numbers per sample along 'data' alone."""
  return {
    key: NamedSharding(mesh, PartitionSpec('data', 'spatial') if key in ('image', 'label') else PartitionSpec('data'))
    for key in batch
  }


def make_constrain(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
  """What the networks apply to features (B, *S, C) and tokens (B, N, C) after each block: keep them divided.

  Rows that do not divide evenly, as in coarse levels, still do: the last device has fewer. Fewer rows than devices are
  kept whole on each of them.
  """
  if mesh.shape['spatial'] == 1:
    return identity
  both, batch = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (('data', 'spatial'), ('data',)))

  def constrain(x):
    if x.shape[0] % mesh.shape['data']:
      return x  # an example at initialisation
    return jax.lax.with_sharding_constraint(x, both if x.shape[1] >= mesh.shape['spatial'] else batch)

  constrain.parts = mesh.shape['spatial']
  return constrain


def gather_samples(mesh: Mesh, transform: Callable[[jax.Array, dict], dict]) -> Callable[[jax.Array, dict], dict]:
  """(key, batch) -> batch that sees whole samples, though they are divided: a rotation takes its voxels from anywhere.

  Image and label are gathered once, in the few bytes that they are stored in (left to itself XLA gathers the float image for
  each corner of the interpolation); the results are divided again, so each device makes its own part of them only.
  """
  if mesh.shape['spatial'] == 1:
    return transform

  def placed(batch, *axes):
    where = NamedSharding(mesh, PartitionSpec(*axes))
    return {k: jax.lax.with_sharding_constraint(v, where) if k in ('image', 'label') else v for k, v in batch.items()}

  return lambda key, batch: placed(transform(key, placed(batch, 'data')), 'data', 'spatial')


def jit_over_mesh(mesh: Mesh, predict_step: Callable) -> Callable:
  """The jitted forward pass of evaluation over all devices of a mesh; any number of rows, filled up to what divides.

  Args:
    mesh: of this process's own devices.
    predict_step: (variables, image (B, *S, 1), window (B, 2)) -> probabilities (B, *S, C).

  Returns:
    The same function, of numpy images; its probabilities lie on the mesh's first device.
  """
  at = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
  run = jax.jit(predict_step, in_shardings=(at(), at('data', 'spatial'), at('data')))
  if mesh.size == 1:
    return run
  first = mesh.devices.flat[0]

  def predict(variables, image, window):
    filled = lambda rows: np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % mesh.shape['data'], 0)])
    return jax.device_put(run(variables, filled(image), filled(window)), first)[: len(image)]

  return predict


def check_divisible(mesh: Mesh, batch_size: int, sides: tuple[int, ...], reduction: int = 1) -> None:
  """Raises InputError where the global batch or the samples do not divide over the mesh, naming values that would.

  Args:
    mesh: data x spatial.
    batch_size: of the global batch.
    sides: of a sample.
    reduction: `models.reduction`. With fewer rows than devices at its deepest level a program is made (jaxlib 0.10.2) whose
      gradients can be wrong by whole factors, so that is refused.
  """
  data, spatial = mesh.shape['data'], mesh.shape['spatial']
  works = [
    n
    for n in _divisors(mesh.size)
    if batch_size % (mesh.size // n) == 0 and sides[0] % n == 0 and n <= max(sides[0] // reduction, 1)
  ]
  instead = f'mesh.spatial {_either(works)} with mesh.data -1' if works else ''
  if batch_size % data:
    sizes = _either(n for n in (batch_size // data * data, -(-batch_size // data) * data) if n)
    raise InputError(
      'train.batch_size',
      f'{batch_size} does not divide over mesh.data {data}',
      f'Use {sizes}{", or " if works else ""}{instead}.',
    )
  if sides[0] % spatial:
    raise InputError(
      'mesh.spatial',
      f'{spatial} does not divide the first side of {" x ".join(map(str, sides))}',
      f'Use {instead or f"a side divisible by {spatial}"}.',
    )
  if spatial > 1 and spatial * reduction > sides[0]:
    raise InputError(
      'mesh.spatial',
      f'{spatial} parts are more than the {sides[0] // reduction} rows that a first side of {sides[0]} has '
      'at the deepest level of this network',
      f'Use {instead or f"a first side of {spatial * reduction} or more"}.',
    )


def data_shard(mesh: Mesh) -> tuple[int, int]:
  """(rank, world): which of how many equal parts of a global batch this process has to read.

  Raises:
    InputError: the devices of one process are neither whole parts of the batch nor within one.
  """
  processes = np.vectorize(lambda device: device.process_index)(mesh.devices)
  mine = np.flatnonzero((processes == jax.process_index()).any(1))
  if mine[0] % len(mine) or mine[-1] - mine[0] + 1 != len(mine) or len(processes) % len(mine):
    local = int((processes == jax.process_index()).sum())
    raise InputError(
      'mesh.spatial',
      f'{mesh.shape["spatial"]} does not fit processes of {local} devices each',
      f'Use one of {", ".join(map(str, _divisors(local)))}, or a multiple of {local}.',
    )
  return int(mine[0]) // len(mine), len(processes) // len(mine)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Global arrays from this process's share of the batch."""
  rank, world = data_shard(mesh)

  def put(array, sharding):
    rows = len(array)
    shape = (rows * world, *array.shape[1:])
    if world == 1 and jax.process_count() == 1:
      return jax.device_put(array, sharding)

    def part(index):
      first, last, _ = index[0].indices(shape[0])
      return array[(slice(first - rank * rows, last - rank * rows), *index[1:])]

    return jax.make_array_from_callback(shape, sharding, part)

  return {
    key: put(array, sharding) for (key, array), sharding in zip(batch.items(), batch_shardings(mesh, batch).values())
  }


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]


def _either(values) -> str:
  """'2', '2 or 4', '1, 2 or 4', each once."""
  *most, last = dict.fromkeys(map(str, values))
  return f'{", ".join(most)} or {last}' if most else last
