"""Messages while the processes of a distributed run connect: which are awaited, and an error after five minutes."""

import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator

from afw_jax.distributed.launchers import AUTO, Process
from afw_jax.errors import InputError

LIMIT_SECONDS = 300
REMINDER_SECONDS = 30

_log = logging.getLogger('afw_jax')


@contextlib.contextmanager
def reminders(process: Process) -> Iterator[None]:
  """Logs which processes this one waits for, at once and every `REMINDER_SECONDS`, until the block ends.

  After `LIMIT_SECONDS` it ends this process with an error and exit code 2, without unwinding: the block is inside JAX's
  C++ code then, and JAX's own time limit would abort the process with a stack trace.
  """
  _log.info('connecting to %s: %s', process.coordinator, describe(process))
  connected = threading.Event()

  def watch() -> None:
    for waited in range(REMINDER_SECONDS, LIMIT_SECONDS, REMINDER_SECONDS):
      if connected.wait(REMINDER_SECONDS):
        return
      _log.warning('not connected after %d s: %s%s', waited, describe(process), _reachability(process))
    if not connected.wait(REMINDER_SECONDS):
      _end(process)

  threading.Thread(target=watch, daemon=True).start()
  try:
    yield
  finally:
    connected.set()


def describe(process: Process) -> str:
  """Names the processes that a process waits for, e.g. 'process 0 of 2 waits for process 1'."""
  rank, count = process.process_id, process.num_processes
  if rank is None or count is None:
    return 'this process waits for all hosts of the TPU slice'
  if rank == 0:
    return f'process 0 of {count} waits for ' + ('process 1' if count == 2 else f'processes 1 to {count - 1}')
  return f'process {rank} of {count} waits for process 0' + (f' and {count - 2} more' if count > 2 else '')


def _reachability(process: Process) -> str:
  """For a process other than 0: whether anything listens at the coordinator's address."""
  if process.coordinator == AUTO or not process.process_id:
    return ''
  host, _, port = process.coordinator.rpartition(':')
  try:
    socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
  except OSError as error:
    return f'; process 0 cannot be reached at {process.coordinator} ({error.strerror or error})'
  return '; process 0 can be reached'


def _end(process: Process) -> None:
  error = InputError(
    process.coordinator,
    f'{describe(process)}, but not all have connected within {LIMIT_SECONDS} s{_reachability(process)}',
    'Start all processes with the same command and the same --coordinator, an address that each can reach, with a free '
    'port; or run this one alone with --num_processes=1.',
  )
  sys.stdout.flush()
  print(f'\nerror: {error}', file=sys.stderr, flush=True)
  os._exit(2)
