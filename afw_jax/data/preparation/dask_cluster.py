"""Runs preparation jobs on the workers of a Dask cluster."""

import concurrent.futures
import contextlib
import logging
import os
from collections.abc import Callable

from afw_jax.errors import InputError
from afw_jax.system.terminal import progress_bar

_log = logging.getLogger('afw_jax')
CONNECT_S = 30  # seconds to wait for the scheduler
_INSTALL = "Install it here and on the workers: pip install 'afw_jax[cluster]'"


def run_jobs(function: Callable[[dict], dict], jobs: list[dict], *, scheduler: str, progress: bool) -> list[dict]:
  """Maps an idempotent function over jobs on a Dask cluster; `worker_pool.run_jobs` does so with local processes.

  A job whose worker dies is repeated on another one, as often as the scheduler allows
  (distributed.scheduler.allowed-failures).

  Args:
    function: at the top level of a module that is installed on the workers; takes a job, returns a dict with 'id'.
    jobs: dicts with 'id' and 'case'.
    scheduler: its address (tcp://HOST:8786), or the file of `dask scheduler --scheduler-file=FILE`.
    progress: show a progress bar.

  Returns:
    The results in the order of completion; {'id', 'problems': [InputError]} for a job that killed all its workers.

  Raises:
    InputError: Dask is not installed, or the scheduler does not answer.
    Exception: any exception of the function, after the other jobs were cancelled.
  """
  try:
    import distributed
  except ImportError as e:
    raise InputError(f'--scheduler={scheduler}', f'needs Dask, and {e.name} is not installed', _INSTALL) from e
  results = []
  with (
    _client(distributed, scheduler) as client,
    progress_bar(total=len(jobs), unit='case', desc='prepare', disable=not progress) as bar,
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
                'each worker that read it died',
                'Probably it needs more memory than the workers have: give them more, or remove the case',
              )
            ],
          }
        )
      except concurrent.futures.CancelledError as e:
        raise InputError(
          f'--scheduler={scheduler}',
          'was lost during preparation',
          'Start it and the same command again: prepared cases are kept',
        ) from e
      except (ImportError, RuntimeError) as e:
        if isinstance(e, RuntimeError) and 'deserialization' not in str(e):
          raise
        raise InputError(
          f'--scheduler={scheduler}',
          f'cannot import afw_jax ({str(e).split(".")[0]})',
          'Install the same version of afw_jax on its host and on the workers',
        ) from e
      bar.update()
  return results


@contextlib.contextmanager
def _client(distributed, scheduler):
  """A connection; closing it cancels unfinished jobs."""
  by_address = '://' in scheduler or (':' in scheduler and not os.path.exists(scheduler))
  if not by_address and not os.path.isfile(scheduler):  # Dask would wait for the file without end
    raise InputError(
      f'--scheduler={scheduler}',
      'no such file',
      'Give its address (tcp://HOST:8786), or the file of `dask scheduler --scheduler-file=FILE`',
    )
  try:
    client = distributed.Client(**{'address' if by_address else 'scheduler_file': scheduler}, timeout=CONNECT_S)
  except (OSError, TimeoutError, ValueError) as e:
    raise InputError(
      f'--scheduler={scheduler}',
      f'does not answer ({e})',
      'Check that `dask scheduler` is running there, in the same version',
    ) from e
  with client:
    yield client
