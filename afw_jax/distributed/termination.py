"""Ending together: when one process of a distributed run fails, it ends at once, so that the others do not wait for it."""

import os
import sys
import traceback

import jax

# What the failure of another process looks like in this one.
_LOST = ('Gloo', 'NCCL', 'coordination service', 'Barrier failed', 'heartbeat')


def lost_another(error: BaseException) -> bool:
  """Whether an error means that another process of the run failed."""
  return any(words in str(error) for words in _LOST)


def end_all(kind: type, error: BaseException, trace) -> None:
  """The `sys.excepthook` of a distributed run: says which process failed and leaves without the orderly exit of Python.

  An orderly exit would wait for the other processes, who wait for this one.
  """
  sys.stdout.flush()
  if lost_another(error):
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
