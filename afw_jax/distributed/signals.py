"""Ctrl-C and SIGTERM during training: the step under way ends and is saved, in all processes after the same step."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import jax
from jax._src import distributed
from jax.experimental import multihost_utils

from afw_jax.distributed import runtime

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@contextlib.contextmanager
def graceful_shutdown() -> Iterator[Callable[[int], int | None]]:
  """Collects Ctrl-C and SIGTERM, so that the step under way ends and is saved; a second Ctrl-C stops at once.

  Yields:
    asked(step), to be called after every step: None, or the exit code to stop with after this step. A signal to one
    process stops all of them after the same step.
  """
  several, received = runtime.process_count() > 1, []
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
    return EXIT_CODES[received[0] if received else signal.SIGTERM] if reached else None

  caught = (signal.SIGINT,) if several else tuple(EXIT_CODES)
  old = {s: signal.signal(s, handler) for s in caught}
  try:
    yield asked
  finally:
    for s, h in old.items():
      signal.signal(s, h)
    if several:
      signal.signal(signal.SIGTERM, signal.SIG_DFL)  # instead of JAX's handler: nothing is saved step by step any more
