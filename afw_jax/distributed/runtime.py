"""The distributed runtime: joins the processes, and lets them agree, gather values and share out work.

Every process runs the same program on its own devices; `jax.distributed` joins them.
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
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from afw_jax.distributed import sharding, termination
from afw_jax.distributed.launchers import AUTO, Process
from afw_jax.errors import InputError

_log = logging.getLogger('afw_jax')

PyTree = Any
# By default the others wait for minutes when one is killed or hangs.
HEARTBEAT_SECONDS = 15
SHUTDOWN_SECONDS = 15
_WEEK_MS = 7 * 24 * 3600 * 1000


def start(process: Process | None) -> None:
  """Joins the others, before anything touches a device; does nothing for a process that is alone.

  From then on an exception that nobody catches ends the process at once: an orderly exit would wait for the others, who
  wait for it. All but process 0 tell errors only.

  Raises:
    InputError: the others were not met.
  """
  if process is None:
    return
  known = (
    {}
    if process.coordinator == AUTO
    else dict(
      coordinator_address=process.coordinator,
      num_processes=process.num_processes,
      process_id=process.process_id,
      local_device_ids=process.local_devices,
      cluster_detection_method='deactivate',
    )
  )
  _log.info(
    'process %s of %s: meeting the others at %s, for 5 minutes at most (--num_processes=1: this one alone)',
    '?' if process.process_id is None else process.process_id,
    process.num_processes or '?',
    process.coordinator,
  )
  jax.config.update(
    'jax_enable_preemption_service', False
  )  # it takes SIGTERM: `signals` starts it where steps are taken
  try:
    jax.distributed.initialize(
      **known, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=SHUTDOWN_SECONDS
    )
  except (RuntimeError, ValueError) as error:
    raise InputError(
      process.coordinator,
      f'the other processes were not met here ({str(error)[:200]})',
      'Start all of them with one --coordinator, which all can reach and whose port is free.',
    ) from error
  sys.excepthook = termination.end_all
  multihost_utils.sync_global_devices('start')  # gloo meets for its first collective within 30 s or never
  if jax.process_index():
    for library in ('afw_jax', 'jax', 'absl'):
      logging.getLogger(library).setLevel(logging.ERROR)


def process_index() -> int:
  """Which process this is; 0 where there is one."""
  return jax.process_index() if jax.distributed.is_initialized() else 0


def process_count() -> int:
  """How many processes there are."""
  return jax.process_count() if jax.distributed.is_initialized() else 1


def local_items(items: Sequence) -> Sequence:
  """This process's part of a list of cases: every count-th; parts differ in length by one at most, and may be empty."""
  return items[process_index() :: process_count()]


def on_process_zero(work: Callable[[], Any]) -> Any:
  """What WORK returns on process 0, which does it while the others wait; None on the others."""
  result = work() if process_index() == 0 else None
  barrier()
  return result


def barrier() -> None:
  """Goes on when every process has come here, however long that takes."""
  if process_count() > 1:  # a collective, as in sync_global_devices, has a time limit of its own on some platforms
    distributed.global_state.client.wait_at_barrier('afw_jax', _WEEK_MS)


def gather(value: Any) -> list:
  """The values of all processes, by process; of whatever JSON can hold."""
  if process_count() == 1:
    return [value]
  barrier()
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(data))).ravel()
  rows = multihost_utils.process_allgather(np.pad(data, (0, lengths.max() - len(data))))
  return [json.loads(bytes(row[:length])) for row, length in zip(rows, lengths)]


def check_same(where: str, value: Any) -> None:
  """Raises InputError where the processes were not given the same."""
  values = gather(value)
  for other, theirs in enumerate(values):
    if theirs != values[0]:
      raise InputError(
        where, f'process {other} was given other values than process 0', 'Start all processes with the same command.'
      )


def check_shared(path: str) -> None:
  """Raises InputError where this process does not see what process 0 has written."""
  for _ in range(20):  # a network file system may take its time
    if os.path.exists(path):
      return
    time.sleep(0.5)
  raise InputError(
    path,
    f'was written by process 0, and process {process_index()} does not see it',
    'Give a --workdir (and data.store) on a file system that all processes share.',
  )


def local_mesh(spatial: int) -> Mesh:
  """The mesh of what a process does alone, on its own devices: samples in as many of `spatial` parts as these allow."""
  return sharding.make_mesh(-1, math.gcd(spatial, jax.local_device_count()), jax.local_devices())


def local_copy(tree: PyTree, mesh: Mesh) -> PyTree:
  """Arrays that every device holds whole, without the devices of other processes; mesh from `local_mesh`."""
  copy = lambda a: a if a.is_fully_addressable else jax.device_put(a.addressable_data(0), sharding.replicated(mesh))
  return jax.tree.map(copy, tree)
