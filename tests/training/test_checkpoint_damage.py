"""Damaged checkpoints are set aside; whole ones are not, whatever keeps them from being read."""

import errno
import glob
import os
import random
import shutil

import jax
import jax.numpy as jnp
import pytest
from test_checkpoint import abstract, array_files, equal, make_state, save, variables

from afw_jax.errors import InputError
from afw_jax.training import checkpoint, checkpoint_damage


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


@pytest.mark.parametrize('item', ['model', 'train'])
@pytest.mark.parametrize('kind', ['manifest.ocdbt', 'd/*'])
def test_a_flipped_bit_in_the_index_of_the_arrays_is_damage(tmp_path, item, kind):
  older, newer = make_state(3, seed=1), make_state(6, seed=2)
  save(tmp_path, older, newer)
  (path,) = (tmp_path / '6' / item).glob(kind)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)
  assert equal(checkpoint.restore_state(str(tmp_path), abstract(older))[0], older)
  assert os.path.isdir(tmp_path / '6.corrupt')


def test_an_error_that_proves_nothing_renames_nothing(tmp_path):
  older, newer = make_state(3, seed=1), make_state(6, seed=2)
  save(tmp_path, older, newer)
  path = tmp_path / '6' / 'model' / '_METADATA'
  path.write_text(path.read_text().replace('value_type', 'value_tipe'))  # as a program of another version may write it
  with pytest.raises(InputError, match='may be whole.*rename its folder'):
    checkpoint.restore_state(str(tmp_path), abstract(older))
  assert sorted(os.listdir(tmp_path)) == ['3', '6']


def test_all_torn_is_an_error(tmp_path):
  state = make_state()
  save(tmp_path, state)
  for path in array_files(tmp_path):
    open(path, 'r+b').truncate(1)
  with pytest.raises(InputError, match='none of its 1'):
    checkpoint.restore_state(str(tmp_path), abstract(state))


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


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch):
  save(tmp_path, make_state(3))
  monkeypatch.setattr(os, 'listdir', failing(PermissionError(errno.EACCES, 'Permission denied')))
  for read in (checkpoint.read_meta, lambda folder: checkpoint.restore_state(folder, abstract(make_state()))):
    with pytest.raises(InputError, match='Permission denied'):
      read(str(tmp_path))
