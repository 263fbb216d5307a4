"""Several processes as one run: who starts JAX's runtime, who writes, how they agree, and how they end when one is lost.

Every process runs the same program on its own devices; `jax.distributed` joins them. Nothing here asks which cluster a
process might be in: it is told, or it stays alone.
"""

import contextlib
import json
import logging
import math
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from afw_jax.distributed import sharding
from afw_jax.errors import InputError

_log = logging.getLogger('afw_jax')

PyTree = Any
AUTO = 'auto'  # --coordinator: JAX asks the TPU's own metadata
# By default the others wait for minutes when one is killed or hangs.
HEARTBEAT_SECONDS = 15
SHUTDOWN_SECONDS = 15
_PORTS = (61440, 4096)  # first, number: where SLURM's job number picks one
_LOST = (
  'Gloo',
  'NCCL',
  'coordination service',
  'Barrier failed',
  'heartbeat',
)  # what the failure of another looks like
_WEEK_MS = 7 * 24 * 3600 * 1000


class Place(NamedTuple):
  """A process among the others.

  Attributes:
    coordinator: host:port of process 0; AUTO: JAX finds this, the number and the id.
    num_processes: how many there are.
    process_id: which of them this is, from 0.
    local_devices: the accelerators of its host that are its own; None = all it sees.
  """

  coordinator: str
  num_processes: int | None = None
  process_id: int | None = None
  local_devices: tuple[int, ...] | None = None


def place(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  environ: Mapping[str, str] = os.environ,
) -> Place | None:
  """Where this process belongs: what it is told, else what its launcher says; None: it is alone.

  Launchers: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID or (Kubernetes) JOB_COMPLETION_INDEX; a step of
  several tasks started by SLURM's srun; a TPU pod's TPU_WORKER_HOSTNAMES. An allocation of SLURM alone says nothing: the
  shell of `salloc` and the script of `sbatch` see SLURM_NTASKS too.

  Args:
    coordinator: host:port, or 'auto'.
    num_processes: 1 means alone, whatever the environment says.
    process_id: from 0.
    environ: the environment.

  Raises:
    InputError: told only in part, or what cannot be.
  """
  given = {'--coordinator': coordinator, '--num_processes': num_processes, '--process_id': process_id}
  if coordinator == AUTO and num_processes is process_id is None:
    return Place(AUTO)
  if num_processes == 1 and process_id in (None, 0):
    return None
  if any(value is not None for value in given.values()):
    missing = [name for name, value in given.items() if value is None]
    if missing:
      raise InputError(
        ' and '.join(missing),
        'must be given with the others',
        'Several processes need --coordinator=HOST:PORT --num_processes=N --process_id=I, I from 0 to N - 1.',
      )
    return _checked('--process_id', Place(coordinator, num_processes, process_id))
  return _by_variables(environ) or _by_slurm(environ) or _by_tpu(environ)


def _checked(where: str, found: Place) -> Place | None:
  if found.num_processes < 1:
    raise InputError(
      where, f'is given with {found.num_processes} processes', 'Give the number of processes, 1 or more.'
    )
  if not 0 <= found.process_id < found.num_processes:
    raise InputError(
      where,
      f'{found.process_id} is not one of {found.num_processes} processes',
      f'Number them from 0 to {found.num_processes - 1}.',
    )
  if not re.fullmatch(r'.+:\d+', found.coordinator):
    raise InputError(
      found.coordinator, 'is no address of a coordinator', 'Give HOST:PORT of process 0, for instance node1:12355.'
    )
  return found if found.num_processes > 1 else None


def _by_variables(environ: Mapping[str, str]) -> Place | None:
  names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES')
  told = {name: environ[name] for name in (*names, 'JAX_PROCESS_ID') if environ.get(name)}
  if not told:
    return None
  told.setdefault('JAX_PROCESS_ID', environ.get('JOB_COMPLETION_INDEX'))
  if told.get(names[1]) == '1' and told['JAX_PROCESS_ID'] in (None, '0'):
    return None
  missing = [name for name in (*names, 'JAX_PROCESS_ID') if not told.get(name)]
  if missing:  # alone, each process would train the whole in one workdir
    raise InputError(
      ' and '.join(missing),
      f'must be set with {" and ".join(name for name in told if told[name])}',
      'Set all three (in Kubernetes JOB_COMPLETION_INDEX does for the id), or none.',
    )
  for name in (names[1], 'JAX_PROCESS_ID'):
    if not told[name].isdecimal():
      raise InputError(name, f'{told[name]!r} is no number', 'Give the number of processes, and ids from 0.')
  return _checked('JAX_PROCESS_ID', Place(told[names[0]], int(told[names[1]]), int(told['JAX_PROCESS_ID'])))


def _by_slurm(environ: Mapping[str, str]) -> Place | None:
  names = (
    'SLURM_JOB_ID',
    'SLURM_STEP_ID',
    'SLURM_STEP_NUM_TASKS',
    'SLURM_STEP_NODELIST',
    'SLURM_PROCID',
    'SLURM_LOCALID',
  )
  if not all(environ.get(name) for name in names) or int(environ['SLURM_STEP_NUM_TASKS']) < 2:
    return None
  job, step, tasks, nodes, own, local = (environ[name] for name in names)
  # The first host of node7, node[07-09,12], gpu[1-2].cluster, a1,b2 ...
  prefix, number, suffix = re.match(r'([^,\[]+)(?:\[([^],-]+)[^]]*\]([^,]*))?', nodes).groups(default='')
  port = environ.get('JAX_COORDINATOR_PORT', str(_PORTS[0] + (int(job) + 17 * int(step)) % _PORTS[1]))
  # Tasks that share a node and see all its GPUs take one each; a task alone on its node takes all.
  beside = int(re.match(r'\d+', environ.get('SLURM_STEP_TASKS_PER_NODE', '1')).group()) > 1 or int(local) > 0
  bound = environ.get('CUDA_VISIBLE_DEVICES', ',').count(',') == 0
  return _checked(
    'SLURM_PROCID',
    Place(f'{prefix}{number}{suffix}:{port}', int(tasks), int(own), (int(local),) if beside and not bound else None),
  )


def _by_tpu(environ: Mapping[str, str]) -> Place | None:
  hosts = environ.get('TPU_WORKER_HOSTNAMES', '').split(',')
  if (
    len(hosts) < 2
    or not environ.get('TPU_WORKER_ID')
    or environ.get('JAX_PLATFORMS', 'tpu') not in ('', 'tpu', 'tpu,cpu')
  ):
    return None
  return Place(AUTO)


def start(found: Place | None) -> None:
  """Joins the others, before anything touches a device; does nothing for a process that is alone.

  From then on an exception that nobody catches ends the process at once: an orderly exit would wait for the others, who
  wait for it. All but process 0 tell errors only.

  Raises:
    InputError: the others were not met.
  """
  if found is None:
    return
  known = (
    {}
    if found.coordinator == AUTO
    else dict(
      coordinator_address=found.coordinator,
      num_processes=found.num_processes,
      process_id=found.process_id,
      local_device_ids=found.local_devices,
      cluster_detection_method='deactivate',
    )
  )
  _log.info(
    'process %s of %s: meeting the others at %s, for 5 minutes at most (--num_processes=1: this one alone)',
    '?' if found.process_id is None else found.process_id,
    found.num_processes or '?',
    found.coordinator,
  )
  jax.config.update(
    'jax_enable_preemption_service', False
  )  # it takes SIGTERM: `interruption` starts it where steps are taken
  try:
    jax.distributed.initialize(
      **known, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=SHUTDOWN_SECONDS
    )
  except (RuntimeError, ValueError) as error:
    raise InputError(
      found.coordinator,
      f'the other processes were not met here ({str(error)[:200]})',
      'Start all of them with one --coordinator, which all can reach and whose port is free.',
    ) from error
  sys.excepthook = _end
  multihost_utils.sync_global_devices('start')  # gloo meets for its first collective within 30 s or never
  if jax.process_index():
    for library in ('afw_jax', 'jax', 'absl'):
      logging.getLogger(library).setLevel(logging.ERROR)


def _end(kind: type, error: BaseException, trace) -> None:
  sys.stdout.flush()
  if any(words in str(error) for words in _LOST):
    message = (
      f'\nerror: process {jax.process_index()} of {jax.process_count()} lost another one: what that one printed says why '
      f'({str(error).splitlines()[0][:200]}). Start all of them again with the same command: they go on from the last checkpoint.'
    )
    print(message, file=sys.stderr, flush=True)
  else:
    traceback.print_exception(kind, error, trace)
    print(
      f'\nerror: process {jax.process_index()} of {jax.process_count()} ends here, and the others with it.',
      file=sys.stderr,
      flush=True,
    )
  os._exit(1)


def index() -> int:
  """Which process this is; 0 where there is one."""
  return jax.process_index() if jax.distributed.is_initialized() else 0


def count() -> int:
  """How many processes there are."""
  return jax.process_count() if jax.distributed.is_initialized() else 1


def share(items: Sequence) -> Sequence:
  """This process's part of a list of cases: every count-th; parts differ in length by one at most, and may be empty."""
  return items[index() :: count()]


def first(work: Callable[[], Any]) -> Any:
  """What WORK returns on process 0, which does it while the others wait; None on the others."""
  result = work() if index() == 0 else None
  wait_for_all()
  return result


def wait_for_all() -> None:
  """Goes on when every process has come here, however long that takes."""
  if count() > 1:  # a collective, as in sync_global_devices, has a time limit of its own on some platforms
    distributed.global_state.client.wait_at_barrier('afw_jax', _WEEK_MS)


def gather(value: Any) -> list:
  """The values of all processes, by process; of whatever JSON can hold."""
  if count() == 1:
    return [value]
  wait_for_all()
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(data))).ravel()
  rows = multihost_utils.process_allgather(np.pad(data, (0, lengths.max() - len(data))))
  return [json.loads(bytes(row[:length])) for row, length in zip(rows, lengths)]


def check_alike(where: str, value: Any) -> None:
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
    f'was written by process 0, and process {index()} does not see it',
    'Give a --workdir (and data.store) on a file system that all processes share.',
  )


def own_mesh(spatial: int) -> Mesh:
  """The mesh of what a process does alone, on its own devices: samples in as many of `spatial` parts as these allow."""
  return sharding.make_mesh(-1, math.gcd(spatial, jax.local_device_count()), jax.local_devices())


def own_copy(tree: PyTree, mesh: Mesh) -> PyTree:
  """Arrays that every device holds whole, without the devices of other processes; mesh from `own_mesh`."""
  copy = lambda a: a if a.is_fully_addressable else jax.device_put(a.addressable_data(0), sharding.replicated(mesh))
  return jax.tree.map(copy, tree)


EXIT_INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143}


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[int], int | None]]:
  """Collects Ctrl-C and SIGTERM, so that the step under way ends and is saved; a second Ctrl-C stops at once.

  Yields:
    asked(step), to be called after every step: None, or the exit code to stop with after this step. A signal to one
    process stops all of them after the same step.
  """
  several, received = count() > 1, []
  if several and distributed.global_state.preemption_sync_manager is None:
    jax.config.update('jax_enable_preemption_service', True)
    distributed.global_state.initialize_preemption_sync_manager()

  def handler(signum, _):
    if signum in received:
      raise KeyboardInterrupt
    received.append(signal.Signals(signum))
    if several:
      os.kill(os.getpid(), signal.SIGTERM)  # which JAX's runtime catches: it finds the step with the others

  def asked(step):
    reached = multihost_utils.reached_preemption_sync_point(step) if several else received
    return EXIT_INTERRUPTED[received[0] if received else signal.SIGTERM] if reached else None

  caught = (signal.SIGINT,) if several else tuple(EXIT_INTERRUPTED)
  old = {s: signal.signal(s, handler) for s in caught}
  try:
    yield asked
  finally:
    for s, h in old.items():
      signal.signal(s, h)
    if several:
      signal.signal(signal.SIGTERM, signal.SIG_DFL)  # instead of JAX's handler: nothing is saved step by step any more
