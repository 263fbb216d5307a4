"""Resolves the rank and coordinator of this process from flags or from its launcher (SLURM, Kubernetes, TPU).

Only variables that a launcher sets for each process count. A cluster is never detected in any other way: a process
without flags and without such variables runs alone.
"""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from afw_jax.distributed import slurm
from afw_jax.errors import InputError

AUTO = 'auto'  # --coordinator=auto: JAX reads the TPU's metadata
_PORTS = (61440, 4096)  # first port and number of ports from which SLURM's job id picks one
_JAX_VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
_SLURM_VARIABLES = (
  'SLURM_JOB_ID',
  'SLURM_STEP_ID',
  'SLURM_STEP_NUM_TASKS',
  'SLURM_STEP_NODELIST',
  'SLURM_PROCID',
  'SLURM_LOCALID',
)


class Process(NamedTuple):
  """One process of a distributed run.

  Attributes:
    coordinator: host:port of process 0; AUTO: JAX finds the coordinator, the number of processes and the rank.
    num_processes: the number of processes.
    process_id: the rank of this process, from 0.
    local_devices: ids of the accelerators on its host that this process uses; None: all that it sees.
  """

  coordinator: str
  num_processes: int | None = None
  process_id: int | None = None
  local_devices: tuple[int, ...] | None = None


def resolve_process(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  environ: Mapping[str, str] = os.environ,
) -> Process | None:
  """Returns the rank and coordinator of this process, or None for a single process.

  Flags come first, then the variables of a launcher, in this order: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID or (Kubernetes) JOB_COMPLETION_INDEX; a SLURM step of several tasks, started by srun; a TPU pod's
  TPU_WORKER_HOSTNAMES. A SLURM allocation without a step does not count: the shell of `salloc` and the script of
  `sbatch` also see SLURM_NTASKS, but are one process.

  Args:
    coordinator: host:port of process 0, or 'auto'.
    num_processes: the number of processes; 1 means a single process, whatever the environment says.
    process_id: the rank, from 0.
    environ: the environment variables.

  Raises:
    InputError: incomplete or contradictory flags or variables, or a SLURM host list that cannot be read.
  """
  if coordinator == AUTO and num_processes is process_id is None:
    return Process(AUTO)
  if num_processes == 1 and process_id in (None, 0):
    return None
  flags = {'--coordinator': coordinator, '--num_processes': num_processes, '--process_id': process_id}
  missing = [name for name, value in flags.items() if value is None]
  if len(missing) == len(flags):
    return _from_variables(environ) or _from_slurm(environ) or _from_tpu(environ)
  if missing:
    raise InputError(
      ' and '.join(missing),
      'must be given together with the other flags of a distributed run',
      'Several processes need --coordinator=HOST:PORT --num_processes=N --process_id=I, I from 0 to N - 1.',
    )
  return _checked('--process_id', Process(coordinator, num_processes, process_id))


def _checked(where: str, process: Process) -> Process | None:
  """The process if its numbers and address are valid, None if it is the only one; `where` names the rank's source."""
  coordinator, count, rank, _ = process
  if count < 1:
    raise InputError(where, f'is given with {count} processes', 'Give the number of processes, 1 or more.')
  if not 0 <= rank < count:
    raise InputError(where, f'{rank} is not the rank of one of {count} processes', f'Use 0 to {count - 1}.')
  if not re.fullmatch(r'.+:\d+', coordinator):
    raise InputError(
      coordinator, 'is not the address of a coordinator', 'Give HOST:PORT of process 0, for instance node1:12355.'
    )
  return process if count > 1 else None


def _from_variables(environ: Mapping[str, str]) -> Process | None:
  """The process that JAX's own variables describe; Kubernetes may give the rank as JOB_COMPLETION_INDEX."""
  found = {name: environ[name] for name in _JAX_VARIABLES if environ.get(name)}
  if not found:
    return None
  address, count, rank = _JAX_VARIABLES
  found.setdefault(rank, environ.get('JOB_COMPLETION_INDEX'))
  if found.get(count) == '1' and found[rank] in (None, '0'):
    return None
  missing = [name for name in _JAX_VARIABLES if not found.get(name)]
  if missing:  # taken for a single process, each would train the whole run in the same workdir
    raise InputError(
      ' and '.join(missing),
      f'must be set together with {" and ".join(name for name in found if found[name])}',
      'Set all three (in Kubernetes JOB_COMPLETION_INDEX can stand for the rank), or none.',
    )
  return _checked(rank, Process(found[address], _number(count, found[count]), _number(rank, found[rank])))


def _from_slurm(environ: Mapping[str, str]) -> Process | None:
  """The process that srun's variables describe; None outside a step and for a step of one task."""
  if not all(environ.get(name) for name in _SLURM_VARIABLES):
    return None
  job, step, tasks, rank, local = (_number(name, environ[name]) for name in _SLURM_VARIABLES if 'NODELIST' not in name)
  if tasks < 2:
    return None
  port = environ.get('JAX_COORDINATOR_PORT') or str(_PORTS[0] + (job + 17 * step) % _PORTS[1])
  coordinator = f'{slurm.first_host(environ["SLURM_STEP_NODELIST"])}:{port}'
  # Tasks that share a node and see all its GPUs use one each; a task alone on its node uses all of them.
  shared = local > 0 or _tasks_on_this_node(environ) > 1
  bound_to_one = environ.get('CUDA_VISIBLE_DEVICES', ',').count(',') == 0
  local_devices = (local,) if shared and not bound_to_one else None
  return _checked('SLURM_PROCID', Process(coordinator, tasks, rank, local_devices))


def _tasks_on_this_node(environ: Mapping[str, str]) -> int:
  tasks = slurm.tasks_per_node(environ.get('SLURM_STEP_TASKS_PER_NODE') or '1')
  node = environ.get('SLURM_NODEID', '')
  return tasks[int(node)] if node.isdecimal() and int(node) < len(tasks) else max(tasks)


def _from_tpu(environ: Mapping[str, str]) -> Process | None:
  """AUTO on a host of a TPU pod, unless another platform than the TPU was asked for."""
  hosts = environ.get('TPU_WORKER_HOSTNAMES', '').split(',')
  platforms = environ.get('JAX_PLATFORMS', 'tpu')
  if len(hosts) < 2 or not environ.get('TPU_WORKER_ID') or platforms not in ('', 'tpu', 'tpu,cpu'):
    return None
  return Process(AUTO)


def _number(name: str, value: str) -> int:
  """A whole number from 0 in an environment variable."""
  if not value.isdecimal():
    raise InputError(name, f'{value!r} is not a whole number', 'Set a whole number, or unset it.')
  return int(value)
