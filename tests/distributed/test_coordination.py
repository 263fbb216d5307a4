"""JAX's coordination service: a version of JAX without what is used of it is refused by name, not with a traceback."""

import importlib

import jax
import pytest
from jax._src import distributed

from afw_jax.distributed import coordination
from afw_jax.errors import InputError


class Client:
  def wait_at_barrier(self, name, timeout_in_ms):
    self.waited = name, timeout_in_ms


class State:
  """As much of JAX's state as a connected process has."""

  def __init__(self):
    self.client, self.preemption_sync_manager, self.started = Client(), None, 0

  def initialize_preemption_sync_manager(self):
    self.preemption_sync_manager, self.started = object(), self.started + 1


@pytest.fixture
def state(monkeypatch):
  state = State()
  monkeypatch.setattr(distributed, 'global_state', state)
  return state


def test_this_version_of_jax_has_what_is_used():
  assert hasattr(distributed.global_state, 'preemption_sync_manager')
  assert callable(distributed.global_state.initialize_preemption_sync_manager)
  assert callable(importlib.import_module('jaxlib._jax').DistributedRuntimeClient.wait_at_barrier)


def test_the_barrier_has_no_limit_that_a_run_reaches(state):
  coordination.check()
  coordination.wait_at_barrier()
  assert state.client.waited[1] >= 24 * 3600 * 1000


def test_the_preemption_service_is_started_once(state, monkeypatch):
  updates = []
  monkeypatch.setattr(jax.config, 'update', lambda *update: updates.append(update))
  coordination.start_preemption_service()
  coordination.start_preemption_service()
  assert state.started == 1 and updates == [('jax_enable_preemption_service', True)]


@pytest.mark.parametrize(
  'owner, name',
  [
    (distributed, 'global_state'),
    (State, 'initialize_preemption_sync_manager'),
    (Client, 'wait_at_barrier'),
  ],
)
def test_a_version_of_jax_without_it_is_refused(state, monkeypatch, owner, name):
  monkeypatch.delattr(owner, name)
  check_refused()


def test_a_version_of_jax_without_the_state_of_the_service_is_refused(state):
  del state.preemption_sync_manager
  check_refused()


def test_a_version_of_jax_without_the_module_is_refused(monkeypatch):
  def missing(name):
    raise ImportError(name)

  monkeypatch.setattr(importlib, 'import_module', missing)
  check_refused()


def check_refused():
  with pytest.raises(InputError, match=f'^jax {jax.__version__}: jax._src.distributed has no global_state') as error:
    coordination.check()
  assert 'requirements.txt' in str(error.value) and '--num_processes=1' in str(error.value)
