"""What signals during a training ask for: an end after this step, or at once."""

import os
import signal

import pytest

from afw_jax.distributed.signals import graceful_shutdown


@pytest.mark.parametrize('signum, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_one_signal_asks_for_an_end_after_the_step(signum, code):
  with graceful_shutdown() as exit_code:
    assert exit_code(1) is None
    os.kill(os.getpid(), signum)
    assert exit_code(2) == code


def ends_at_once(signum):
  """Whether two signals of a kind end the training at once."""
  try:
    with graceful_shutdown() as exit_code:
      os.kill(os.getpid(), signum)
      os.kill(os.getpid(), signum)
      assert exit_code(1) is not None
  except KeyboardInterrupt:
    return True
  return False


def test_a_second_ctrl_c_ends_at_once():
  assert ends_at_once(signal.SIGINT)


def test_a_sigterm_that_comes_twice_lets_the_step_be_saved():
  """A scheduler sends it to all processes of a job, one of which passes its own on to the training that it started."""
  assert not ends_at_once(signal.SIGTERM)
