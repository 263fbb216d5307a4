"""Runs preparation jobs in worker processes, and survives the death of a worker."""

import collections
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from afw_jax.data import resources
from afw_jax.errors import InputError
from afw_jax.system.terminal import progress_bar

DEATHS = 3  # a job that has killed so many workers is given up
_BYTES_PER_WORKER = 2 << 30  # several copies of a 512 x 512 x 600 scan and its label map
_BLAS = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')


def run_jobs(
  function: Callable[[dict], dict], jobs: list[dict], *, workers: int | None, progress: bool, doing: str = 'prepare'
) -> list[dict]:
  """Maps an idempotent function over jobs.

  A worker that dies (out of memory, a crash in a decoder) breaks its whole pool. The unfinished jobs are then repeated
  one at a time in a pool of their own, which identifies the job that kills its worker.

  Args:
    function: at the top level of a module; takes a job, returns a dict with 'id'.
    jobs: dicts with 'id' and 'case'.
    workers: processes; None: as many as CPUs and memory allow; 0: run in this process.
    progress: show a progress bar.
    doing: the word beside it.

  Returns:
    The results in the order of completion; {'id', 'problems': [InputError]} for a job that was given up.

  Raises:
    Exception: any exception of the function; no further job is started.
  """
  if workers is None:
    workers = default_workers()
  workers = min(workers, len(jobs))
  results = []
  with progress_bar(total=len(jobs), unit='case', desc=doing, disable=not progress) as bar:

    def done(result):
      results.append(result)
      bar.update()

    if workers == 0:
      for job in jobs:
        done(function(job))
    else:
      _run_pools(function, jobs, workers, done)
  return results


def _run_pools(function, jobs, workers, done):
  deaths = collections.Counter()
  queue, suspects = collections.deque(jobs), collections.deque()
  while queue or suspects:
    alone = bool(suspects)
    todo = collections.deque([suspects.popleft()]) if alone else queue
    running = {}
    with _pool(1 if alone else workers, workers) as pool:
      try:
        while todo or running:
          while todo and len(running) < workers:
            with _no_main():
              running[pool.submit(function, todo[0])] = todo[0]
            todo.popleft()
          for future in wait(running, return_when=FIRST_COMPLETED).done:
            done(future.result())
            del running[future]
      except BrokenProcessPool:
        for job in (*running.values(), *(todo if alone else ())):
          deaths[job['id']] += 1
          if deaths[job['id']] < DEATHS:
            suspects.append(job)
          else:
            done(
              {
                'id': job['id'],
                'problems': [
                  InputError(
                    job['case'].image,
                    f'the process that read it was killed {DEATHS} times',
                    'Probably too little memory: prepare with fewer workers, or remove the case',
                  )
                ],
              }
            )


@contextlib.contextmanager
def _pool(processes, workers):
  """A pool of new interpreters; the CPUs are divided among them for matrix products."""
  threads = str(max(1, resources.cpu_count() // workers))
  changed = [name for name in _BLAS if name not in os.environ]
  os.environ.update(dict.fromkeys(changed, threads))  # read once, when a worker imports numpy
  try:
    with ProcessPoolExecutor(processes, multiprocessing.get_context('spawn'), _start) as pool:
      yield pool
  finally:
    for name in changed:
      os.environ.pop(name)


@contextlib.contextmanager
def _no_main():
  """Keeps new workers from importing the script of the caller, which need not be guarded by __name__ or even be a file.

  Multiprocessing imports it for functions that are defined there; the functions of the jobs are not.
  """
  main = sys.modules['__main__']
  sys.modules['__main__'] = types.ModuleType('__main__')
  try:
    yield
  finally:
    sys.modules['__main__'] = main


def _start():
  """In the worker: leaves Ctrl-C to the parent process, and exits when the parent has died."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def watch():
    parent.join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def default_workers() -> int:
  """Processes that the CPUs and the memory available to this one allow."""
  return max(1, min(resources.cpu_count(), resources.memory_limit() // _BYTES_PER_WORKER))
