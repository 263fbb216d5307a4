"""Resolves the rank and coordinator of this process from flags or from its launcher (SLURM, Kubernetes, TPU).

Nothing here asks which cluster a process might run on: a process is told, or it runs alone.
"""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from afw_jax.errors import InputError

AUTO = 'auto'  # --coordinator: JAX asks the TPU's metadata
_PORTS = (61440, 4096)  # first port and number of ports from which SLURM's job id picks one


class Process(NamedTuple):
  """One process of a distributed run.

  Attributes:
    coordinator: host:port of process 0; AUTO: JAX finds the coordinator, the number of processes and the id.
    num_processes: how many processes there are.
    process_id: the rank of this one, from 0.
    local_devices: ids of the accelerators on its host that belong to it; None: all that it sees.
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
  """Rank and coordinator from the flags, else from the launcher's environment; None for a single process.

  Launchers: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID or (Kubernetes) JOB_COMPLETION_INDEX; a step of
  several tasks started by SLURM's srun; a TPU pod's TPU_WORKER_HOSTNAMES. An allocation of SLURM alone says nothing: the
  shell of `salloc` and the script of `sbatch` see SLURM_NTASKS too.

  Args:
    coordinator: host:port, or 'auto'.
    num_processes: 1 means a single process, whatever the environment says.
    process_id: from 0.
    environ: the environment variables.

  Raises:
    InputError: incomplete or contradictory flags or variables.
  """
  given = {'--coordinator': coordinator, '--num_processes': num_processes, '--process_id': process_id}
  if coordinator == AUTO and num_processes is process_id is None:
    return Process(AUTO)
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
    return _checked('--process_id', Process(coordinator, num_processes, process_id))
  return _from_variables(environ) or _from_slurm(environ) or _from_tpu(environ)


def _checked(where: str, found: Process) -> Process | None:
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
      found.coordinator,
      'is not the address of a coordinator',
      'Give HOST:PORT of process 0, for instance node1:12355.',
    )
  return found if found.num_processes > 1 else None


def _from_variables(environ: Mapping[str, str]) -> Process | None:
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
      raise InputError(name, f'{told[name]!r} is not a number', 'Give the number of processes, and ids from 0.')
  return _checked('JAX_PROCESS_ID', Process(told[names[0]], int(told[names[1]]), int(told['JAX_PROCESS_ID'])))


def _from_slurm(environ: Mapping[str, str]) -> Process | None:
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
  local_devices = (int(local),) if beside and not bound else None
  return _checked('SLURM_PROCID', Process(f'{prefix}{number}{suffix}:{port}', int(tasks), int(own), local_devices))


def _from_tpu(environ: Mapping[str, str]) -> Process | None:
  hosts = environ.get('TPU_WORKER_HOSTNAMES', '').split(',')
  platforms = environ.get('JAX_PLATFORMS', 'tpu')
  if len(hosts) < 2 or not environ.get('TPU_WORKER_ID') or platforms not in ('', 'tpu', 'tpu,cpu'):
    return None
  return Process(AUTO)
