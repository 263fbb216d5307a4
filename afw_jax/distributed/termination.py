"""Ends this process at once after an uncaught exception, so that the other processes of the run end too."""

import os
import sys
import traceback

import jax

# Words in the error that this process gets when another one has failed.
_LOST = ('Gloo', 'NCCL', 'coordination service', 'Barrier failed', 'heartbeat')


def lost_another(error: BaseException) -> bool:
  """Whether an error in this process means that another process of the run failed."""
  return any(words in str(error) for words in _LOST)


def end_all(kind: type[BaseException], error: BaseException, trace) -> None:
  """Reports an uncaught exception with the rank of this process and exits with code 1; for `sys.excepthook`.

  Python's own exit would run JAX's shutdown, which waits for the other processes, while they wait for this one.
  """
  sys.stdout.flush()
  rank = f'process {jax.process_index()} of {jax.process_count()}'
  if lost_another(error):
    message = (
      f'{rank} lost the connection to another process, whose own output says why ({str(error).splitlines()[0][:200]}). '
      'Start all processes again with the same command: the run resumes from its last checkpoint.'
    )
  else:
    traceback.print_exception(kind, error, trace)
    message = f'{rank} ends because of this exception, and the other processes end with it.'
  print(f'\nerror: {message}', file=sys.stderr, flush=True)
  os._exit(1)
