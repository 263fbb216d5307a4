"""One run as a process of its own: the ordinary command line, its output in a log, ended in order by a signal."""

import contextlib
import logging
import math
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

from afw_jax.distributed.signals import EXIT_CODES
from afw_jax.errors import InputError
from afw_jax.system import atomic_files

_log = logging.getLogger('afw_jax')

LOG = 'run.log'
_ELAPSED = 'elapsed.json'
_SAVE_EVERY_S = 20
_ROOT = pathlib.Path(__file__).parents[2]


class Signals:
  """The signals that ask to end: recorded, and passed on to the process that runs at the moment.

  Attributes:
    received: the first one, None before.
    process: that is to get them, None between runs.
  """

  def __init__(self):
    self.received: signal.Signals | None = None
    self.process: subprocess.Popen | None = None

  def handle(self, signum, _) -> None:
    """Passes a signal on; a second Ctrl-C ends the run at once, as it does on its own."""
    self.received = self.received or signal.Signals(signum)
    if self.process is not None:
      self.process.send_signal(signum)

  @property
  def exit_code(self) -> int | None:
    """The code to end with; None where nobody asked to end."""
    return self.received and EXIT_CODES[self.received]


@contextlib.contextmanager
def signals() -> Iterator[Signals]:
  """Records Ctrl-C and SIGTERM while the block runs."""
  caught = Signals()
  previous = {signum: signal.signal(signum, caught.handle) for signum in EXIT_CODES}
  try:
    yield caught
  finally:
    for signum, old in previous.items():
      signal.signal(signum, old)


def run(command: Sequence[str], folder: str, caught: Signals) -> int:
  """Runs a command to its end and returns its exit code, negative if it was ended by a signal.

  Args:
    command: to run; in a session of its own, so that Ctrl-C reaches it once, through `caught`.
    folder: its output is added to the log there, and its time to that of earlier starts (`elapsed_s`).
    caught: signals to pass on.

  Raises:
    InputError: the folder cannot be written.
  """
  path = os.path.join(folder, LOG)
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, (str(_ROOT), os.environ.get('PYTHONPATH'))))}
  before, start = elapsed_s(folder), time.monotonic()
  record = lambda: atomic_files.write_json(
    os.path.join(folder, _ELAPSED), {'seconds': before + time.monotonic() - start}
  )
  with atomic_files.write_errors(path), open(path, 'ab') as log:
    process = subprocess.Popen(
      command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    caught.process = process
    try:
      if caught.received:  # between the last look and the start
        process.send_signal(caught.received)
      while process.returncode is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
          process.wait(_SAVE_EVERY_S)
        record()
    except BaseException:  # this process fails: the run may not stay behind without its log and its lock
      process.terminate()
      process.wait()
      raise
    finally:
      caught.process = None
  return process.returncode


def elapsed_s(folder: str) -> float:
  """Seconds that a run took so far, over all of its starts by this program; 0 where its record is not there.

  It only serves an estimate, so a damaged record is said and counts as none; the next start replaces it.
  """
  path = os.path.join(folder, _ELAPSED)
  if not os.path.exists(path):
    return 0.0
  try:
    seconds = atomic_files.read_json(path, cure='It is written again.').get('seconds')
  except InputError as error:
    seconds, said = None, str(error)
  else:
    said = f'{path}: has seconds {seconds!r}'
  if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not math.isfinite(seconds) or seconds < 0:
    _log.warning('%s: the time that is left is estimated without it', said)
    return 0.0
  return float(seconds)


def last_error(folder: str) -> str:
  """The last line of a log that says what went wrong, '' where there is none."""
  with contextlib.suppress(OSError):
    lines = pathlib.Path(folder, LOG).read_text(encoding='utf-8', errors='replace')[-20000:].splitlines()
    return next((line for line in reversed(lines) if 'rror' in line), lines[-1] if lines else '')[:400]
  return ''


def sleep(seconds: float, caught: Signals, tick: Callable[[float], None] = time.sleep) -> None:
  """Waits, but not after a signal."""
  end = time.monotonic() + seconds
  while caught.received is None and time.monotonic() < end:
    tick(min(0.5, seconds))
