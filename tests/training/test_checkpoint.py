"""Checkpoints: whole or refused, never silently wrong."""

import errno
import glob
import os
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from afw_jax.errors import InputError
from afw_jax.training import checkpoint, checkpoint_damage, checkpoint_writer
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


MACHINE = [
  OSError(errno.EMFILE, 'Too many open files'),
  PermissionError(errno.EACCES, 'denied'),
  MemoryError(),
  OSError(errno.EIO, 'input/output'),
  jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory'),
  ValueError("UNKNOWN: Failed to open: ... [os_error_code='24']"),
]
PROGRAM = [TypeError('a list'), AttributeError('no such name'), RuntimeError('Event loop is closed'), KeyError('x')]


def failing(error):
  def fail(*_, **__):
    raise error

  return fail


@pytest.mark.parametrize('error', [*MACHINE, *PROGRAM], ids=repr)
def test_what_is_no_damage_renames_nothing(tmp_path, monkeypatch, error):
  older, newer = make_state(3, seed=1), make_state(6, seed=2)
  save(tmp_path, older, newer)
  readers = (
    lambda: checkpoint.restore_state(str(tmp_path), abstract(older)),
    lambda: checkpoint.restore_variables(str(tmp_path), variables(older)),
    lambda: checkpoint.read_meta(str(tmp_path)),
  )
  with monkeypatch.context() as patched:
    patched.setattr(checkpoint, '_read', failing(error))
    for read in readers:
      with pytest.raises(InputError, match=r'/6: this checkpoint could not be read here'):
        read()
  assert [int(read()[0].step) for read in readers[:1]] == [6] and readers[2]()['step'] == 6


@pytest.mark.parametrize('error', [ValueError('NOT_FOUND: of a wrong place'), FileNotFoundError('of a wrong place')])
def test_a_whole_checkpoint_is_never_renamed_whatever_the_error_says(tmp_path, monkeypatch, error):
  save(tmp_path, make_state(3))
  monkeypatch.setattr(checkpoint, '_load', failing(error))
  with pytest.raises(InputError, match=r'/3: this checkpoint could not be read here'):
    checkpoint.restore_state(str(tmp_path), abstract(make_state()))
  assert os.listdir(tmp_path) == ['3']


def test_a_network_of_another_width_renames_nothing(tmp_path):
  save(tmp_path, make_state(3))
  state = make_state(3)
  wider = state._replace(params={**state.params, 'log_sigma_sq': jnp.zeros(10)})
  with pytest.raises(InputError, match='could not be read here'):
    checkpoint.restore_state(str(tmp_path), abstract(wider))
  assert os.listdir(tmp_path) == ['3']


@pytest.mark.parametrize('how', [errno.EACCES, errno.EIO, 'gone'])
def test_files_that_the_system_does_not_deliver_are_no_damage(tmp_path, monkeypatch, how):
  """The disk is cut off while a checkpoint is read: its files seem to be missing."""
  save(tmp_path, make_state(3))

  def cut_off(path, item, args):
    if how == 'gone':
      os.rename(tmp_path / '3', tmp_path / 'away')
    raise FileNotFoundError(f'File {path / item} not found.')

  def refuse(path, *_, **__):
    raise OSError(how, os.strerror(how), path)

  monkeypatch.setattr(checkpoint, '_read', cut_off)
  if how != 'gone':
    monkeypatch.setattr(checkpoint_damage, 'open', refuse, raising=False)
  with pytest.raises(InputError, match='could not be read here|is no longer|cannot be read'):
    checkpoint.restore_state(str(tmp_path), abstract(make_state()))
  assert not list(tmp_path.glob('*corrupt*'))


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch):
  save(tmp_path, make_state(3))
  monkeypatch.setattr(os, 'listdir', failing(PermissionError(errno.EACCES, 'Permission denied')))
  for read in (checkpoint.read_meta, lambda folder: checkpoint.restore_state(folder, abstract(make_state()))):
    with pytest.raises(InputError, match='Permission denied'):
      read(str(tmp_path))


def test_every_file_that_is_torn_is_noticed_as_damage(tmp_path):
  older, newer = make_state(3, seed=1), make_state(6, seed=2)
  save(tmp_path / 'whole', older, newer)
  used = 0
  for i, path in enumerate(sorted(p for p in (tmp_path / 'whole' / '6').rglob('*') if p.is_file())):
    folder = tmp_path / f'torn{i}'
    shutil.copytree(tmp_path / 'whole', folder)
    torn = folder / path.relative_to(tmp_path / 'whole')
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    restored, _ = checkpoint.restore_state(str(folder), abstract(older))
    if (folder / '6.corrupt').exists():
      used += 1
    assert equal(restored, older if (folder / '6.corrupt').exists() else newer), path
    shutil.rmtree(folder)
  assert used >= 9  # of meta, and of both trees: structure, index, arrays


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
