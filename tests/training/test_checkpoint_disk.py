"""Folders and disks that Orbax alone does not handle."""

import errno
import fcntl
import os

import pytest
from orbax.checkpoint._src.serialization import tensorstore_utils
from test_checkpoint import abstract, equal, make_state, save

from afw_jax.errors import InputError
from afw_jax.training import checkpoint, checkpoint_disk


def options():
  """What TensorStore is told about files, with and without its index format."""
  contexts = [tensorstore_utils.get_ts_context(use_ocdbt=use_ocdbt).spec.to_json() for use_ocdbt in (True, False)]
  return [(c.get('file_io_locking'), c.get('file_io_sync')) for c in contexts]


def refuse(code):
  raise OSError(code, os.strerror(code))


@pytest.mark.parametrize('call', ['flock', 'lockf'])
@pytest.mark.parametrize('code', [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_disk_without_locks_is_written_without_them(tmp_path, monkeypatch, call, code):
  monkeypatch.setattr(fcntl, call, lambda *_: refuse(code))
  usual = options()
  with checkpoint_disk.usable(str(tmp_path)):
    assert options() == [({'mode': 'none'}, None)] * 2
  assert options() == usual


def test_a_disk_that_cannot_flush_folders(tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'fsync', lambda _: refuse(errno.EINVAL))
  usual = options()
  with checkpoint_disk.usable(str(tmp_path / 'a')), checkpoint_disk.usable(str(tmp_path / 'b')):
    assert options() == [(None, False)] * 2
  assert options() == usual
  save(tmp_path / 'a', make_state(3))
  assert equal(checkpoint.restore_state(str(tmp_path / 'a'), abstract(make_state()))[0], make_state())


def test_an_ordinary_disk_is_locked_and_flushed(tmp_path):
  usual = options()
  with checkpoint_disk.usable(str(tmp_path)):
    assert options() == usual
  assert not list(tmp_path.iterdir())


def test_a_failing_disk_is_an_error(tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'fsync', lambda _: refuse(errno.EIO))
  with pytest.raises(InputError, match='cannot be written'), checkpoint_disk.usable(str(tmp_path)):
    pass


@pytest.mark.parametrize('name', ['a\\b', 'gs:', os.fsdecode(b'\xff')], ids=repr)
def test_names_that_tensorstore_cannot_write_are_refused_at_once(tmp_path, name):
  with pytest.raises(InputError, match='cannot hold checkpoints'):
    save(tmp_path / name / 'last', make_state(3))
  assert not list(tmp_path.iterdir())
