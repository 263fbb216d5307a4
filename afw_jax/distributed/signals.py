"""Handles Ctrl-C and SIGTERM during training: all processes finish the same step, save it and exit."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

from jax.experimental import multihost_utils

from afw_jax.distributed import coordination, runtime

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@contextlib.contextmanager
def graceful_shutdown() -> Iterator[Callable[[int], int | None]]:
  """Records Ctrl-C and SIGTERM instead of stopping the program; a second Ctrl-C stops it at once.

  A second SIGTERM does not: schedulers send it to all processes of a job, and one of these may pass its own on.

  Yields:
    exit_code(step), to be called once after every step: the code to exit with after this step, or None to continue. A
    signal to one process stops all processes after the same step.
  """
  several, received = runtime.process_count() > 1, []
  if several:
    coordination.start_preemption_service()

  def handler(signum, _):
    if signum == signal.SIGINT and signum in received:
      raise KeyboardInterrupt
    received.append(signal.Signals(signum))
    if several:
      os.kill(os.getpid(), signal.SIGTERM)  # JAX catches it and finds a step to stop after with the other processes

  def exit_code(step: int) -> int | None:
    stop = multihost_utils.reached_preemption_sync_point(step) if several else received
    return EXIT_CODES[received[0] if received else signal.SIGTERM] if stop else None

  caught = (signal.SIGINT,) if several else tuple(EXIT_CODES)
  previous = {signum: signal.signal(signum, handler) for signum in caught}
  try:
    yield exit_code
  finally:
    for signum, old in previous.items():
      signal.signal(signum, old)
    if several:  # JAX's handler would swallow SIGTERM after training, when nothing is saved step by step any more
      signal.signal(signal.SIGTERM, signal.SIG_DFL)
