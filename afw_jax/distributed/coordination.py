"""Wraps JAX's coordination service, the only part of JAX used in this package that has no public interface.

Two things are needed from it:
  - A barrier without a time limit. Process 0 may prepare data for hours while the others wait, and the public
    `multihost_utils.sync_global_devices` is a collective, which times out.
  - The preemption service, started late. `jax.distributed.initialize` starts it at once or never; while it runs,
    SIGTERM does not end a process, which is wanted during training only.
"""

import importlib
from typing import Any

import jax

from afw_jax.errors import InputError

_NO_LIMIT_MS = 7 * 24 * 3600 * 1000  # a week


def check() -> None:
  """Raises InputError if this version of JAX lacks what this module uses; for after `jax.distributed.initialize`."""
  _attribute('client.wait_at_barrier')
  _attribute('preemption_sync_manager')
  _attribute('initialize_preemption_sync_manager')


def wait_at_barrier() -> None:
  """Waits until every process has reached this call, however long that takes."""
  _attribute('client.wait_at_barrier')('afw_jax', _NO_LIMIT_MS)


def start_preemption_service() -> None:
  """Lets JAX catch SIGTERM and choose the step after which all processes stop; does nothing if it does already."""
  if _attribute('preemption_sync_manager') is None:
    jax.config.update('jax_enable_preemption_service', True)
    _attribute('initialize_preemption_sync_manager')()


def _attribute(path: str) -> Any:
  """An attribute of the state of JAX's distributed runtime, by its dotted path."""
  try:
    value = importlib.import_module('jax._src.distributed').global_state
    for name in path.split('.'):
      value = getattr(value, name)
  except (ImportError, AttributeError) as error:
    raise InputError(
      f'jax {jax.__version__}',
      f'jax._src.distributed has no global_state.{path}, which a run of several processes needs',
      'Install the version of jax in requirements.txt, or use a single process (--num_processes=1)',
    ) from error
  return value
