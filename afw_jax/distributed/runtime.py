"""Distributed runtime: connects the processes of a run, and lets them agree on values, gather them and divide work.

Every process runs the same program on its own devices; `jax.distributed` connects them. Every function here also works
for a single process, which needs no `start`.
"""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from afw_jax.distributed import coordination, devices, sharding, termination, waiting
from afw_jax.distributed.launchers import AUTO, Process
from afw_jax.errors import InputError

PyTree = Any
_log = logging.getLogger('afw_jax')
# JAX's defaults leave the other processes waiting for minutes when one is killed or hangs.
HEARTBEAT_SECONDS = 15
SHUTDOWN_SECONDS = 15
_SHARED_FILE_SECONDS = 10  # a network file system may show a new file to other hosts late


def start(process: Process | None, platform: str = '') -> None:
  """Connects this process to the others and starts its devices; call it before anything uses a device.

  Where not all processes connect in time, this one ends with an error (see `waiting`). Once connected, an uncaught
  exception ends the process at once (see `termination`), and all processes but process 0 log errors only.

  Args:
    process: from `launchers.resolve_process`; None for a single process.
    platform: `runtime.platform`, that the devices must be of; '' for any.

  Raises:
    InputError: the coordinator cannot be used, this version of JAX is not supported, or the devices are not those that
      were asked for.
  """
  if process is None:
    _start_devices(platform)
    return
  # The service catches SIGTERM, which has to end the process except in training: `signals` starts it there.
  jax.config.update('jax_enable_preemption_service', False)
  with waiting.reminders(process):
    _connect(process)
  coordination.check()
  sys.excepthook = termination.end_all
  _start_devices(platform)
  multihost_utils.sync_global_devices('start')  # gloo connects for its first collective within 30 s or never
  if jax.process_index():
    for library in ('afw_jax', 'jax', 'absl'):
      logging.getLogger(library).setLevel(logging.ERROR)


def _start_devices(platform: str) -> None:
  if warning := devices.check(platform, devices.start()):
    _log.warning('%s', warning)


def _connect(process: Process) -> None:
  known = {}
  if process.coordinator != AUTO:
    known = {
      'coordinator_address': process.coordinator,
      'num_processes': process.num_processes,
      'process_id': process.process_id,
      'local_device_ids': process.local_devices,
      'cluster_detection_method': 'deactivate',
    }
  try:
    jax.distributed.initialize(
      **known,
      initialization_timeout=2 * waiting.LIMIT_SECONDS,  # `waiting` ends it before
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    raise InputError(
      process.coordinator,
      f'the processes could not be connected through this coordinator ({str(error)[:200]})',
      'Start all of them with the same --coordinator, an address that each can reach, with a free port.',
    ) from error


def process_index() -> int:
  """The rank of this process, from 0; 0 for a single process."""
  return jax.process_index() if jax.distributed.is_initialized() else 0


def process_count() -> int:
  """The number of processes."""
  return jax.process_count() if jax.distributed.is_initialized() else 1


def local_items(items: Sequence) -> Sequence:
  """Returns this process's part of a list of cases: every n-th of n processes.

  The parts differ in length by one at most, and may be empty.
  """
  return items[process_index() :: process_count()]


def on_process_zero(work: Callable[[], Any]) -> Any:
  """Calls `work` on process 0 while the others wait; returns its result there and None on the others."""
  result = work() if process_index() == 0 else None
  barrier()
  return result


def from_process_zero(read: Callable[[], Any]) -> Any:
  """Calls `read` on process 0 and returns its result on every process.

  A file that other runs may replace, or that a network file system shows late, is read this way: all processes have
  the same content.

  Args:
    read: returns anything that JSON can represent.
  """
  if process_count() == 1:
    return read()
  value = json.dumps(on_process_zero(read)).encode()
  data = np.frombuffer(value if process_index() == 0 else b'', np.uint8)
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
  data = multihost_utils.broadcast_one_to_all(data if process_index() == 0 else np.zeros(length, np.uint8))
  return json.loads(bytes(np.asarray(data)))


def barrier() -> None:
  """Waits until every process has reached this call, however long that takes."""
  if process_count() > 1:
    coordination.wait_at_barrier()


def gather(value: Any) -> list:
  """Returns the values of all processes, in the order of their ranks, on every process.

  Args:
    value: anything that JSON can represent.
  """
  if process_count() == 1:
    return [value]
  barrier()
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(data))).ravel()
  rows = multihost_utils.process_allgather(np.pad(data, (0, lengths.max() - len(data))))
  return [json.loads(bytes(row[:length])) for row, length in zip(rows, lengths)]


def check_same(where: str, value: Any) -> None:
  """Raises InputError on every process if the processes do not have the same value.

  Args:
    where: the option that gives the value, for the error.
    value: anything that JSON can represent.
  """
  values = gather(value)
  for rank, other in enumerate(values):
    if other != values[0]:
      raise InputError(
        where, f'process {rank} and process 0 were given different values', 'Start all processes with the same command.'
      )


def check_shared(path: str) -> None:
  """Raises InputError if this process cannot see a file or folder that process 0 has written."""
  for _ in range(2 * _SHARED_FILE_SECONDS):
    if os.path.exists(path):
      return
    time.sleep(0.5)
  raise InputError(
    path,
    f'was written by process 0, but process {process_index()} cannot see it',
    'Give a --workdir (and data.store) on a file system that all processes share.',
  )


def local_mesh(spatial: int) -> Mesh:
  """Returns a mesh of this process's own devices, for work that it does alone.

  Args:
    spatial: parts of a sample in the global mesh; here their greatest common divisor with the number of own devices.
  """
  return sharding.make_mesh(-1, math.gcd(spatial, jax.local_device_count()), jax.local_devices())


def local_copy(tree: PyTree, mesh: Mesh) -> PyTree:
  """Copies replicated global arrays onto this process's own devices.

  Args:
    tree: arrays that every device holds whole.
    mesh: from `local_mesh`.
  """
  copy = lambda a: a if a.is_fully_addressable else jax.device_put(a.addressable_data(0), sharding.replicated(mesh))
  return jax.tree.map(copy, tree)
