"""Device mesh ('data', 'spatial'), and the shardings of state, batch and features on it.

The batch is divided along 'data', and the first spatial axis of each sample (D of a volume, H of a slice) along
'spatial', so that one volume can be spread over several devices. The program is written for one device; XLA's
partitioner adds the sums over the batch and the exchange of borders between neighbours.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from afw_jax.errors import InputError
from afw_jax.models.layers.options import identity


def make_mesh(data: int = -1, spatial: int = 1, devices=None) -> Mesh:
  """Arranges the devices of all processes as a mesh with the axes ('data', 'spatial').

  `jax.sharding.Mesh` has Auto axes, which Linen's Dropout needs (those of `jax.make_mesh` are Explicit).

  Args:
    data: the number of parts of the batch; -1: as many as there are devices for.
    spatial: the number of parts of one sample.
    devices: the devices to use; by default all.

  Raises:
    InputError: the number of devices is not data x spatial.
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
  """Sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def replicate(tree, mesh: Mesh):
  """Copies numpy arrays to every device of a mesh: those of process 0, so that all processes have the same bits.

  All processes call it together. Each may have computed its own on a CPU of another kind, which rounds differently.
  """
  everywhere = replicated(mesh)
  if jax.process_count() > 1:
    tree = multihost_utils.broadcast_one_to_all(tree)
  return jax.tree.map(lambda a: jax.make_array_from_callback(np.shape(a), everywhere, lambda index: a[index]), tree)


def batch_shardings(mesh: Mesh, batch: dict) -> dict[str, NamedSharding]:
  """Shardings of a batch's arrays: images and labels along both axes of the mesh, all others along 'data' only."""
  return {
    key: NamedSharding(mesh, PartitionSpec('data', 'spatial') if key in ('image', 'label') else PartitionSpec('data'))
    for key in batch
  }


def make_constrain(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
  """Returns a function that keeps features divided over the mesh; networks apply it after each block.

  It takes features (B, *S, C) or tokens (B, N, C). Axis 1 need not divide evenly, as in coarse levels: the last device
  then has fewer rows. With fewer rows than devices every device holds all of them.
  """
  if mesh.shape['spatial'] == 1:
    return identity
  both, batch = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (('data', 'spatial'), ('data',)))

  def constrain(x):
    if x.shape[0] % mesh.shape['data']:
      return x  # the single example of an initialisation
    return jax.lax.with_sharding_constraint(x, both if x.shape[1] >= mesh.shape['spatial'] else batch)

  constrain.parts = mesh.shape['spatial']
  return constrain


def gather_samples(mesh: Mesh, transform: Callable[[jax.Array, dict], dict]) -> Callable[[jax.Array, dict], dict]:
  """Gathers the samples of a batch before a spatial transform and divides the results again.

  A rotation reads voxels from the whole sample. Image and label are gathered once, in the integer types in which they
  are stored; XLA alone would gather the float image for each corner of the interpolation. Each device computes its own
  part of the results only.

  Args:
    mesh: data x spatial.
    transform: (key, batch) -> batch, for instance the augmentation.

  Returns:
    A function like `transform`.
  """
  if mesh.shape['spatial'] == 1:
    return transform

  def divide(batch, *axes):
    target = NamedSharding(mesh, PartitionSpec(*axes))
    return {k: jax.lax.with_sharding_constraint(v, target) if k in ('image', 'label') else v for k, v in batch.items()}

  return lambda key, batch: divide(transform(key, divide(batch, 'data')), 'data', 'spatial')


def jit_over_mesh(mesh: Mesh, predict_step: Callable) -> Callable:
  """Compiles the forward pass of evaluation for all devices of a mesh; batches are padded to a multiple of 'data'.

  Args:
    mesh: of this process's own devices.
    predict_step: (variables, image (B, *S, 1), window (B, 2) in HU) -> probabilities (B, *S, C).

  Returns:
    A function like `predict_step` that takes numpy arrays with any B; its result is on the first device of the mesh.
  """
  at = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
  run = jax.jit(predict_step, in_shardings=(at(), at('data', 'spatial'), at('data')))
  if mesh.size == 1:
    return run
  first = mesh.devices.flat[0]

  def predict(variables, image, window):
    pad = lambda rows: np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % mesh.shape['data'], 0)])
    return jax.device_put(run(variables, pad(image), pad(window)), first)[: len(image)]

  return predict


def check_divisible(mesh: Mesh, batch_size: int, sides: tuple[int, ...], reduction: int = 1) -> None:
  """Raises InputError, with values that would work, if the global batch or its samples do not divide over the mesh.

  Args:
    mesh: data x spatial.
    batch_size: the number of samples in the global batch.
    sides: the shape of a sample in voxels, D, H, W or H, W.
    reduction: the factor between the first side and its rows at the deepest level of the network, `models.reduction`.
      Fewer rows there than devices are refused: jaxlib 0.10.2 compiles a program whose gradients can be wrong by whole
      factors.
  """
  data, spatial = mesh.shape['data'], mesh.shape['spatial']
  instead = _spatial_that_works(mesh.size, batch_size, sides[0], reduction)
  if batch_size % data:
    sizes = _either(n for n in (batch_size // data * data, -(-batch_size // data) * data) if n)
    raise InputError(
      'train.batch_size',
      f'{batch_size} does not divide over mesh.data {data}',
      f'Use {sizes}{", or " if instead else ""}{instead}.',
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


def _spatial_that_works(devices: int, batch_size: int, side: int, reduction: int) -> str:
  """'mesh.spatial 1, 2 or 4 with mesh.data -1': the values for so many devices, '' where there is none."""
  works = [
    n
    for n in _divisors(devices)
    if batch_size % (devices // n) == 0 and side % n == 0 and n <= max(side // reduction, 1)
  ]
  return f'mesh.spatial {_either(works)} with mesh.data -1' if works else ''


def data_shard(mesh: Mesh) -> tuple[int, int]:
  """Returns (rank, world): this process reads part `rank` of `world` equal parts of each global batch.

  Processes whose devices hold parts of the same samples read the same part.

  Raises:
    InputError: the devices of this process are neither whole parts of the batch nor within one.
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
  """Puts a batch onto the devices of a mesh as global arrays.

  Args:
    batch: this process's part of the global batch, see `data_shard`; each array (B / world, ...).
    mesh: data x spatial.

  Returns:
    Arrays (B, ...) with the shardings of `batch_shardings`.
  """
  shardings = batch_shardings(mesh, batch)
  if jax.process_count() == 1:
    return {key: jax.device_put(array, shardings[key]) for key, array in batch.items()}
  rank, world = data_shard(mesh)

  def put(array, sharding):
    rows = len(array)
    shape = (rows * world, *array.shape[1:])

    def part(index):
      start, stop, _ = index[0].indices(shape[0])
      return array[(slice(start - rank * rows, stop - rank * rows), *index[1:])]

    return jax.make_array_from_callback(shape, sharding, part)

  return {key: put(array, shardings[key]) for key, array in batch.items()}


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]


def _either(values) -> str:
  """The distinct values as text: '2', '2 or 4', '1, 2 or 4'."""
  *most, last = dict.fromkeys(map(str, values))
  return f'{", ".join(most)} or {last}' if most else last
