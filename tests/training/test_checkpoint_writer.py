"""Saving checkpoints: a save under way is finished whatever error leaves the block."""

import os
import time

import jax
import numpy as np
import pytest
from test_checkpoint import abstract, equal, make_state

from afw_jax.errors import InputError
from afw_jax.training import checkpoint, checkpoint_writer


@pytest.fixture
def slow_disk(monkeypatch):
  """A save takes half a second to commit."""
  rename = os.rename
  monkeypatch.setattr(os, 'rename', lambda *args, **kwargs: (time.sleep(0.5), rename(*args, **kwargs))[1])


def leave(folder, error):
  with pytest.raises(type(error)), checkpoint_writer.opened(folder, keep=2) as manager:
    checkpoint_writer.save(manager, make_state(), {})
    raise error


@pytest.mark.parametrize(
  'error',
  [
    FloatingPointError('step 4'),
    InputError('a', 'b', 'c'),
    OSError('disk'),
    MemoryError(),
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED'),
    SystemExit(143),
    KeyError('x'),
  ],
)
def test_an_error_lets_the_save_under_way_finish(tmp_path, slow_disk, error):
  leave(str(tmp_path), error)
  assert [p.name for p in tmp_path.iterdir()] == ['3']
  assert equal(checkpoint.restore_state(str(tmp_path), abstract(make_state()))[0], make_state())


@pytest.mark.parametrize('error', [KeyboardInterrupt(), jax.errors.JaxRuntimeError('Gloo: connection closed by peer')])
def test_a_second_ctrl_c_and_a_lost_process_are_not_waited_for(tmp_path, monkeypatch, error):
  monkeypatch.setattr(checkpoint_writer, 'finish', lambda manager: pytest.fail('waited'))
  leave(str(tmp_path), error)


def test_the_first_error_is_the_one_reported(tmp_path, monkeypatch, caplog):
  def fail(manager):
    raise InputError('the disk', 'is full', 'Free space.')

  with monkeypatch.context() as patched:
    patched.setattr(checkpoint_writer, 'finish', fail)
    leave(str(tmp_path / 'a'), FloatingPointError('step 4'))
    with pytest.raises(InputError, match='is full'), checkpoint_writer.opened(str(tmp_path / 'b'), keep=2):
      pass
  assert 'the disk: is full' in caplog.text


def test_meta_holds_no_nan(tmp_path):
  with checkpoint_writer.opened(str(tmp_path), keep=2) as manager:
    checkpoint_writer.save(manager, make_state(), {'best_dsc': np.nan, 'size': (3, 4)})
  meta = checkpoint.read_meta(str(tmp_path))
  assert meta['best_dsc'] is None and meta['size'] == [3, 4]
