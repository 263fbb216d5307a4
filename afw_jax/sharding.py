"""Devices: a mesh with one data axis, and the shardings of state and batch on it."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from afw_jax.errors import InputError


def make_mesh() -> Mesh:
  """All devices of all processes on one axis 'data'. (`Mesh` has Auto axes, which Linen's Dropout needs.)"""
  return Mesh(np.array(jax.devices()), ('data',))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
  """The first axis is divided over the mesh."""
  return NamedSharding(mesh, PartitionSpec('data'))


def check_batch(batch_size: int, mesh: Mesh) -> None:
  """Raises InputError where the global batch does not divide over the devices."""
  n = mesh.devices.size
  if batch_size % n:
    lower, upper = max(n, batch_size // n * n), -(-batch_size // n) * n
    raise InputError('train.batch_size', f'{batch_size} does not divide over {n} devices', f'Use {lower} or {upper}.')


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
  """Global arrays from what this process holds of the batch."""
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
