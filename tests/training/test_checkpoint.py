"""Checkpoints: whole or refused, never silently wrong."""

import errno
import glob
import os
import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from afw_jax.errors import InputError
from afw_jax.training import checkpoint, checkpoint_writer
from afw_jax.training.fingerprint import fingerprint
from afw_jax.training.step import TrainState


def make_state(step=3, seed=0):
  rng = np.random.default_rng(seed)
  params = {
    'net': {'conv': {'kernel': jnp.asarray(rng.normal(size=(3, 3, 8, 16)), jnp.float32)}},
    'log_sigma_sq': jnp.asarray(rng.normal(size=(9,)), jnp.float32),
  }
  tx = optax.sgd(0.1, momentum=0.9)
  return TrainState(jnp.asarray(step, jnp.int32), params, {'bn': {'mean': jnp.ones(16)}}, tx.init(params))


def save(folder, *states):
  with checkpoint_writer.opened(str(folder), keep=3) as manager:
    for state in states:
      checkpoint_writer.save(manager, state, {'best_dsc': 0.5, 'step_is': int(state.step)})
      checkpoint_writer.finish(manager)


def abstract(state):
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)


def variables(state):
  """The abstract variables of the network of a state."""
  whole = abstract(state)
  return {'params': whole.params['net'], 'batch_stats': whole.batch_stats}


def equal(a, b):
  return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def array_files(folder):
  return sorted(p for p in glob.glob(os.path.join(str(folder), '**', 'd', '*'), recursive=True) if os.path.isfile(p))


def test_round_trip(tmp_path):
  state = make_state()
  save(tmp_path, state)
  restored, meta = checkpoint.restore_state(str(tmp_path), abstract(state))
  assert equal(state, restored) and isinstance(restored, TrainState)
  assert meta['step_is'] == 3 and meta['best_dsc'] == 0.5


def test_nothing_there(tmp_path):
  assert checkpoint.restore_state(str(tmp_path / 'none'), abstract(make_state())) is None
  assert checkpoint.read_meta(str(tmp_path / 'none')) is None


def test_flipped_bits_are_always_noticed(tmp_path):
  state, rng = make_state(), random.Random(0)
  save(tmp_path, state)
  files = array_files(tmp_path)
  assert files
  for _ in range(20):
    path = rng.choice(files)
    data = bytearray(open(path, 'rb').read())
    original = bytes(data)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    open(path, 'wb').write(data)
    try:
      result = checkpoint.restore_state(str(tmp_path), abstract(state))
      assert equal(result[0], state)  # a bit that no array's value depends on
    except InputError:
      for broken in glob.glob(str(tmp_path / '*.corrupt')):
        os.rename(broken, broken.removesuffix('.corrupt'))
    open(path, 'wb').write(original)
  assert equal(checkpoint.restore_state(str(tmp_path), abstract(state))[0], state)


def test_falls_back_to_the_one_before(tmp_path):
  older, newer = make_state(3, seed=1), make_state(6, seed=2)
  save(tmp_path, older, newer)
  for path in array_files(tmp_path / '6'):
    open(path, 'r+b').truncate(os.path.getsize(path) // 2)
  restored, _ = checkpoint.restore_state(str(tmp_path), abstract(older))
  assert int(restored.step) == 3 and equal(restored, older)
  assert os.path.isdir(tmp_path / '6.corrupt')


def test_all_torn_is_an_error(tmp_path):
  state = make_state()
  save(tmp_path, state)
  for path in array_files(tmp_path):
    open(path, 'r+b').truncate(1)
  with pytest.raises(InputError, match='none of its 1'):
    checkpoint.restore_state(str(tmp_path), abstract(state))


def test_of_another_network(tmp_path):
  state = make_state()
  save(tmp_path, state)
  mine = variables(state)
  kernel = mine['params']['conv']['kernel']
  wider = {
    **mine,
    'params': {'conv': {'kernel': jax.ShapeDtypeStruct((3, 3, 8, 32), jnp.float32, sharding=kernel.sharding)}},
  }
  deeper = {**mine, 'params': {**mine['params'], 'more': kernel}}
  flatter = {**mine, 'params': {}}
  with pytest.raises(InputError, match='torn, altered or of another network'):
    checkpoint.restore_variables(str(tmp_path), wider)
  for other in (deeper, flatter, {'params': mine['params']}):
    with pytest.raises(InputError, match='of another network or version'):
      checkpoint.restore_variables(str(tmp_path), other)


def test_the_variables_of_the_network_alone(tmp_path):
  state = make_state()
  save(tmp_path, state)
  restored, meta = checkpoint.restore_variables(str(tmp_path), variables(state))
  assert equal(restored, {'batch_stats': state.batch_stats, 'params': state.params['net']}) and meta['step'] == 3


def test_unfinished_saves_are_not_checkpoints(tmp_path):
  state = make_state()
  save(tmp_path, state)
  os.makedirs(tmp_path / '9.orbax-checkpoint-tmp' / 'model')
  restored, _ = checkpoint.restore_state(str(tmp_path), abstract(state))
  assert int(restored.step) == 3


def test_fingerprint_notices_swapped_rows():
  a = jnp.arange(12.0).reshape(3, 4)
  assert fingerprint({'a': a}) != fingerprint({'a': a[::-1]})
  assert fingerprint({'a': a}) == fingerprint({'a': a + 0})


def test_a_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
  state = make_state()
  save(tmp_path, state)
  monkeypatch.setattr(checkpoint_writer.shutil, 'disk_usage', lambda path: type('Usage', (), {'free': 1000})())
  with pytest.raises(InputError, match='Free space'):
    save(tmp_path, make_state(6))
  assert equal(checkpoint.restore_state(str(tmp_path), abstract(state))[0], state)


def test_a_second_torn_checkpoint_of_the_same_step_is_set_aside_too(tmp_path):
  state = make_state()
  for _ in range(3):
    save(tmp_path, state)
    for path in array_files(tmp_path / '3'):
      open(path, 'r+b').truncate(1)
    with pytest.raises(InputError, match='none of its 1'):
      checkpoint.restore_state(str(tmp_path), abstract(state))
  assert {p.name for p in tmp_path.iterdir()} == {'3.corrupt', '3.corrupt-2', '3.corrupt-3'}


@pytest.mark.parametrize(
  'error',
  [
    OSError(errno.EMFILE, 'Too many open files'),
    PermissionError(errno.EACCES, 'denied'),
    MemoryError(),
    OSError(errno.EIO, 'input/output'),
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory'),
    ValueError("UNKNOWN: Failed to open: ... [os_error_code='24']"),
  ],
)
def test_trouble_of_this_machine_renames_nothing(tmp_path, monkeypatch, error):
  older, newer = make_state(3, seed=1), make_state(6, seed=2)
  save(tmp_path, older, newer)

  def fail(*_):
    raise error

  with monkeypatch.context() as patched:
    patched.setattr(checkpoint, '_read', fail)
    with pytest.raises(InputError, match=r'/6: this checkpoint could not be read here'):
      checkpoint.restore_state(str(tmp_path), abstract(older))
  assert int(checkpoint.restore_state(str(tmp_path), abstract(older))[0].step) == 6
