"""Checkpoints: whole or refused, never silently wrong."""

import glob
import os
import shutil

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


def save(folder, *states, keep=3):
  with checkpoint_writer.opened(str(folder), keep=keep) as manager:
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


def test_falls_back_to_the_one_before(tmp_path):
  older, newer = make_state(3, seed=1), make_state(6, seed=2)
  save(tmp_path, older, newer)
  for path in array_files(tmp_path / '6'):
    open(path, 'r+b').truncate(os.path.getsize(path) // 2)
  restored, _ = checkpoint.restore_state(str(tmp_path), abstract(older))
  assert int(restored.step) == 3 and equal(restored, older)
  assert os.path.isdir(tmp_path / '6.corrupt')


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


@pytest.mark.parametrize('item', ['meta', 'model'])
def test_a_checkpoint_that_is_replaced_while_it_is_read_is_followed(tmp_path, monkeypatch, item):
  save(tmp_path, make_state(3), keep=1)
  read, replaced = checkpoint._read, []

  def replaces(path, name, args):
    if name == item and not replaced:
      replaced.append(path)
      save(tmp_path, make_state(6, seed=2), keep=1)
      assert os.listdir(tmp_path) == ['6']
    return read(path, name, args)

  monkeypatch.setattr(checkpoint, '_read', replaces)
  restored, meta = checkpoint.restore_variables(str(tmp_path), variables(make_state()))
  assert meta['step'] == 6 and equal(restored['params'], make_state(6, seed=2).params['net'])
  shutil.rmtree(tmp_path / '6')
  replaced.clear()
  save(tmp_path, make_state(3), keep=1)
  assert checkpoint.read_meta(str(tmp_path))['step'] == (6 if item == 'meta' else 3)


ODD_FOLDERS = ('unet [2]', '[!x]', '**', 'a*b', 'a?', '{a,b}', '50%20', '~x', '$HOME', 'a#b', 'ü 肝', 'a\nb', '3', '-x')


@pytest.mark.parametrize('name', ODD_FOLDERS)
def test_a_folder_of_any_name(tmp_path, name):
  folder = tmp_path / name / 'last'
  for sibling in ('a_b', 'unet 2'):  # what a pattern would match
    (tmp_path / sibling / 'last').mkdir(parents=True)
  save(folder, make_state(3), make_state(6, seed=2))
  restored, meta = checkpoint.restore_state(str(folder), abstract(make_state()))
  assert equal(restored, make_state(6, seed=2)) and sorted(os.listdir(folder)) == ['3', '6']
  assert checkpoint.restore_variables(str(folder), variables(make_state()))[1] == meta
