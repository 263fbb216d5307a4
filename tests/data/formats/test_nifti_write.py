"""Writing NIfTI files: atomic, nothing is written that does not fit, and errors name the file."""

import errno
import os

import nibabel as nib
import numpy as np
import pytest

from afw_jax.data.formats import volumes
from afw_jax.data.formats.geometry import Geometry
from afw_jax.errors import InputError

SHAPE = (3, 4, 5)


@pytest.mark.parametrize(
  'array',
  [
    np.full((5, 4, 3), 65536),
    np.full((5, 4, 3), -1),
    np.ones((5, 4, 3)),
    np.ones((3, 4, 5), int),
    np.ones((5, 4), int),
    np.full((5, 4, 3), 'a'),
  ],
)
def test_label_maps_that_do_not_fit_are_not_written(tmp_path, array):
  g = Geometry(shape=SHAPE, affine=np.diag([-1.0, -1, 1, 1]))
  with pytest.raises(InputError, match=r'l\.nii\.gz: not written'):
    volumes.write_label(tmp_path / 'l.nii.gz', array, g)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('value', [np.nan, np.inf, 1e39, 40000, 1j])
def test_scans_that_do_not_fit_are_not_written(tmp_path, value):
  g = Geometry(shape=SHAPE, affine=np.diag([-1.0, -1, 1, 1]))
  with pytest.raises(InputError, match='not written'):
    volumes.write_image(tmp_path / 'i.nii.gz', np.full((5, 4, 3), value), g)
  assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
  g = Geometry(shape=SHAPE, affine=np.eye(4))
  path = tmp_path / 'l.nii.gz'
  volumes.write_label(path, np.ones(g.internal_shape, int), g)
  before = path.read_bytes()

  def full(fd):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(InputError, match='No space left') as e:
    volumes.write_label(path, np.zeros(g.internal_shape, int), g)
  assert str(path) in str(e.value) and 'Free some disk space' in str(e.value)
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ['l.nii.gz']


def test_interrupted_writing_leaves_no_rest(tmp_path, monkeypatch):
  def interrupt(fd):
    raise KeyboardInterrupt

  monkeypatch.setattr(os, 'fsync', interrupt)
  with pytest.raises(KeyboardInterrupt):
    volumes.write_label(tmp_path / 'l.nii', np.zeros((5, 4, 3), int), Geometry(shape=SHAPE, affine=np.eye(4)))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['missing/l.nii.gz', 'l.mgz', 'l.nii.gz/l.nii', 'x' * 300 + '.nii'])
def test_places_where_nothing_can_be_written(tmp_path, name):
  (tmp_path / 'l.nii.gz').write_bytes(b'a file')
  with pytest.raises(InputError, match='written'):
    volumes.write_label(tmp_path / name, np.zeros((5, 4, 3), int), Geometry(shape=SHAPE, affine=np.eye(4)))
  assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write and read everywhere')
def test_no_permission(tmp_path):
  path = tmp_path / 'i.nii.gz'
  nib.save(nib.Nifti1Image(np.ones(SHAPE, np.int16), np.eye(4)), path)
  g = volumes.read_image(path).geometry
  path.chmod(0)
  with pytest.raises(InputError, match='Permission'):
    volumes.read_image(path)
  tmp_path.chmod(0o500)
  try:
    with pytest.raises(InputError, match='permissions'):
      volumes.write_label(tmp_path / 'l.nii.gz', np.zeros(g.internal_shape, int), g)
  finally:
    tmp_path.chmod(0o700)


def test_permission_errors_name_the_file(tmp_path, monkeypatch):
  path = tmp_path / 'i.nii.gz'
  nib.save(nib.Nifti1Image(np.ones(SHAPE, np.int16), np.eye(4)), path)

  def deny(*args, **kwargs):
    raise PermissionError(errno.EACCES, 'Permission denied')

  monkeypatch.setattr('builtins.open', deny)
  with pytest.raises(InputError, match='Permission denied') as e:
    volumes.read_image(path)
  assert str(path) in str(e.value)
