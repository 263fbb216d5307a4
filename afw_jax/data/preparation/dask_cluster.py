"""Divides the preparing between hosts: an array job's share of the cases, or an existing Dask cluster. Owns Dask."""

import concurrent.futures
import contextlib
import logging
import os
from collections.abc import Callable, Mapping

import tqdm

from afw_jax.errors import InputError

_log = logging.getLogger('afw_jax')
CONNECT_S = 30
_INSTALL = "Install it here and on the workers: pip install 'afw_jax[cluster]'"


def parse_shard(text: str, environment: Mapping[str, str]) -> tuple[int, int] | None:
  """Which share of the cases this process does.

  Args:
    text: 'i/n', counted from 0; '' = what SLURM says of this task of an array job.
    environment: os.environ.

  Returns:
    (i, n), or None: everything.

  Raises:
    InputError: no such share, or a task list that cannot be counted.
  """
  if text:
    i, _, n = text.partition('/')
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
      raise InputError(
        f'--shard={text}', 'is not i/n with i below n', 'Count from 0: the second of eight shards is --shard=1/8'
      )
    return int(i), int(n)
  if 'SLURM_ARRAY_TASK_ID' not in environment:
    return None
  task, count, first, last, step = (
    int(environment.get(f'SLURM_ARRAY_TASK_{key}', default))
    for key, default in (
      ('ID', ''),
      ('COUNT', 1),
      ('MIN', environment['SLURM_ARRAY_TASK_ID']),
      ('MAX', environment['SLURM_ARRAY_TASK_ID']),
      ('STEP', 1),
    )
  )
  if count > 1 and first + (count - 1) * step != last:
    raise InputError(
      'SLURM_ARRAY_TASK_ID',
      f'the {count} tasks {first} to {last} are not evenly numbered',
      'Submit --array=0-N, or say which share this task is: --shard=i/n',
    )
  shard = (task - first) // step, count
  _log.info('task %d of a SLURM array: shard %d/%d (--shard=0/1 would prepare everything)', task, *shard)
  return shard


def run_jobs(function: Callable[[dict], dict], jobs: list[dict], *, scheduler: str, progress: bool) -> list[dict]:
  """Maps an idempotent function over jobs on the workers of a Dask cluster; as `pool.run_jobs` does with processes.

  A job whose worker dies is given to another one; after the deaths that the scheduler allows
  (distributed.scheduler.allowed-failures) it is given up.

  Args:
    function: at module level of something installed on the workers; takes a job, returns a dict with 'id'.
    jobs: dicts with 'id' and 'case'.
    scheduler: its address (tcp://HOST:8786), or the file that `dask scheduler --scheduler-file` writes.
    progress: show a bar with the time left.

  Returns:
    The results, in the order of completion. A case given up gives {'id', 'problems': [InputError]}.

  Raises:
    InputError: Dask is not installed, or the scheduler does not answer.
    Whatever the function raises; the other jobs are cancelled then.
  """
  try:
    import distributed
  except ImportError as e:
    raise InputError(f'--scheduler={scheduler}', f'needs Dask, and {e.name} is not installed', _INSTALL) from e
  results = []
  with (
    _client(distributed, scheduler) as client,
    tqdm.tqdm(total=len(jobs), unit='case', desc='prepare', disable=not progress) as bar,
  ):
    if not client.nthreads():
      _log.warning('%s has no worker yet: waiting for one (dask worker %s)', scheduler, client.scheduler.address)
    futures = dict(zip(client.map(function, jobs, pure=False), jobs))
    for future in distributed.as_completed(futures):
      try:
        results.append(future.result())
      except distributed.KilledWorker:
        job = futures[future]
        results.append(
          {
            'id': job['id'],
            'problems': [
              InputError(
                job['case'].image,
                'reading it ended one worker after the other',
                'Probably too little memory: give the workers more, or remove the case',
              )
            ],
          }
        )
      except concurrent.futures.CancelledError as e:
        raise InputError(
          f'--scheduler={scheduler}',
          'was lost on the way',
          'Start it and the same command again: cases that are done are kept',
        ) from e
      except (ImportError, RuntimeError) as e:
        if isinstance(e, RuntimeError) and 'deserialization' not in str(e):
          raise
        raise InputError(
          f'--scheduler={scheduler}',
          f'cannot load what it shall run ({str(e).split(".")[0]})',
          'Install the same version of afw_jax on its host and on the workers',
        ) from e
      bar.update()
  return results


@contextlib.contextmanager
def _client(distributed, scheduler):
  """A connection; closing it cancels what is not done yet."""
  by_address = '://' in scheduler or (':' in scheduler and not os.path.exists(scheduler))
  if not by_address and not os.path.isfile(scheduler):  # Dask would wait for the file for ever
    raise InputError(
      f'--scheduler={scheduler}',
      'no such file',
      'Give an address (tcp://HOST:8786), or the file of `dask scheduler --scheduler-file=FILE`',
    )
  try:
    client = distributed.Client(**{'address' if by_address else 'scheduler_file': scheduler}, timeout=CONNECT_S)
  except (OSError, TimeoutError, ValueError) as e:
    raise InputError(
      f'--scheduler={scheduler}',
      f'does not answer ({e})',
      'Is `dask scheduler` still running there, and of the same version?',
    ) from e
  with client:
    yield client
