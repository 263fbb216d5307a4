"""TransUNet's npz slices and h5 volumes: read as they are, or refused; never unpickled."""

import fcntl
import io
import os
import zipfile

import h5py
import numpy as np
import pytest

from afw_jax.data.formats import volumes
from afw_jax.errors import InputError

D, H, W = 4, 6, 5
RNG = np.random.default_rng(0)
IMAGE = RNG.random((D, H, W)).astype(np.float32)
LABEL = RNG.integers(0, 9, (D, H, W)).astype(np.float32)  # as TransUNet stores them


def write_slices(folder, case='case0005', image=IMAGE, label=LABEL):
  folder.mkdir(exist_ok=True)
  for n in range(len(image)):
    np.savez(folder / f'{case}_slice{n:03d}.npz', image=image[n], label=label[n])
  return folder / f'{case}_slice*.npz'


def write_h5(path, image=IMAGE, label=LABEL, **options):
  with h5py.File(path, 'w') as f:
    f.create_dataset('image', data=image, **options)
    f.create_dataset('label', data=label, **options)
  return path


def refused(path, match, read=volumes.read_image):
  with pytest.raises(InputError, match=match) as e:
    read(path)
  assert str(path).removesuffix('_slice*.npz') in str(e.value)
  assert '\n' not in str(e.value)


def test_reading_needs_no_lock(tmp_path):
  """As on a disk that has none: another process holds the lock that h5py would ask for."""
  path = write_h5(tmp_path / 'case0001.npy.h5')
  with open(path, 'rb') as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    np.testing.assert_array_equal(volumes.read_image(path).array, IMAGE)


@pytest.mark.parametrize('kind', ['npz', 'h5', 'h5 packed', 'npz float64'])
def test_both_kinds_give_the_same_volume(tmp_path, kind):
  image = IMAGE.astype(np.float64) if 'float64' in kind else IMAGE
  if kind.startswith('npz'):
    path = write_slices(tmp_path / 'train_npz', image=image)
    write_slices(tmp_path / 'train_npz', 'case0006', 1 - image)  # another case beside it
  else:
    path = write_h5(tmp_path / 'case0001.npy.h5', compression='gzip' if 'packed' in kind else None)
  v, l = volumes.read_image(path), volumes.read_label(path)
  assert (v.array.dtype, l.array.dtype) == (np.float32, np.uint8)
  np.testing.assert_array_equal(v.array, IMAGE)
  np.testing.assert_array_equal(l.array, LABEL)
  volumes.check_pair(v, l)
  assert v.spacing_mm == (1, 1, 1)
  assert not v.geometry.has_mm
  assert len(v.sha256) == 64 and v.sha256 == l.sha256
  np.testing.assert_array_equal(v.geometry.to_internal(v.geometry.to_native(v.array)), IMAGE)
  volumes.write_label(tmp_path / 'l.nii.gz', l.array, v.geometry)
  np.testing.assert_array_equal(volumes.read_label(tmp_path / 'l.nii.gz').array, LABEL)


class Evil:
  """Unpickling it makes a folder."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return os.mkdir, (self.path,)


@pytest.mark.parametrize('key', ['image', 'label'])
def test_pickled_content_is_refused_and_never_run(tmp_path, key):
  path = write_slices(tmp_path / 'd')
  arrays = {'image': IMAGE[2], 'label': LABEL[2]}
  arrays[key] = np.array([Evil(tmp_path / 'harm')], dtype=object)
  np.savez(tmp_path / 'd' / 'case0005_slice002.npz', **arrays)
  for read in (volumes.read_image, volumes.read_label):
    refused(path, 'case0005_slice002.npz.*pickled.*can run code', read)
  (tmp_path / 'd' / 'case0005_slice002.npz').write_bytes(b'\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00]\x94(K\x01e.')
  refused(path, 'not a valid .npz')
  assert not (tmp_path / 'harm').exists()
  np.load(_object_npz(tmp_path), allow_pickle=True)['image']  # the trap works for those who walk into it
  assert (tmp_path / 'harm').exists()


def _object_npz(tmp_path):
  np.savez(tmp_path / 'trap.npz', image=np.array([Evil(tmp_path / 'harm')], dtype=object))
  return tmp_path / 'trap.npz'


@pytest.mark.parametrize(
  'image, match',
  [
    (np.zeros((3, 3)), 'size'),
    (np.zeros((H, W, 3)), 'not one slice'),
    (np.zeros(5), 'not one slice'),
    (np.zeros((H, W), complex), 'complex'),
    (np.full((H, W), 'a'), 'not one slice'),
    (np.full((H, W), np.nan), r'not in \[0, 1\]'),
    (np.full((H, W), 1.5), r'not in \[0, 1\]'),
    (np.full((H, W), -0.1), r'not in \[0, 1\]'),
    (np.zeros((0, 5)), 'not one slice'),
  ],
)
def test_bad_slices(tmp_path, image, match):
  path = write_slices(tmp_path / 'd')
  np.savez(tmp_path / 'd' / 'case0005_slice001.npz', image=image, label=np.zeros(image.shape))
  refused(path, match)


@pytest.mark.parametrize(
  'label', [np.full((H, W), 0.5), np.full((H, W), -1.0), np.full((H, W), 256), np.full((H, W), np.nan)]
)
def test_bad_labels(tmp_path, label):
  path = write_slices(tmp_path / 'd')
  np.savez(tmp_path / 'd' / 'case0005_slice001.npz', image=IMAGE[0], label=label)
  refused(path, 'label has values', volumes.read_label)


def test_labels_that_are_nearly_integers(tmp_path):
  path = write_slices(tmp_path / 'd')
  before = volumes.read_label(path).array
  np.savez(tmp_path / 'd' / 'case0005_slice001.npz', image=IMAGE[0], label=LABEL[1] - 4e-8)
  np.testing.assert_array_equal(volumes.read_label(path).array, before)


def test_slices_that_do_not_fit_together(tmp_path):
  path = write_slices(tmp_path / 'd')
  np.savez(tmp_path / 'd' / 'case0005_slice001.npz', image=IMAGE[0], label=LABEL[0, :3])
  refused(path, 'its label')
  np.savez(tmp_path / 'd' / 'case0005_slice001.npz', image=IMAGE[0])
  refused(path, 'no array "label"')
  for n in (0, 1, 2):
    path = write_slices(tmp_path / f'gap{n}')
    (tmp_path / f'gap{n}' / f'case0005_slice00{n}.npz').unlink()
    refused(path, f'case0005_slice00{n}.npz: this slice of the case is missing')
  refused(tmp_path / 'd' / 'case0099_slice*.npz', 'case0099_slice000.npz.*missing')
  refused(tmp_path / 'nowhere' / 'case0005_slice*.npz', 'cannot be read')


def test_flipped_bits_and_cut_slices(tmp_path):
  path = write_slices(tmp_path / 'd')
  target = tmp_path / 'd' / 'case0005_slice001.npz'
  whole = target.read_bytes()
  rng = np.random.default_rng(2)
  refusals = 0
  for bit in rng.integers(0, len(whole) * 8, 100):
    data = bytearray(whole)
    data[bit // 8] ^= 1 << bit % 8
    target.write_bytes(data)
    try:
      np.testing.assert_array_equal(volumes.read_image(path).array, IMAGE)  # a date in the archive may change
      np.testing.assert_array_equal(volumes.read_label(path).array, LABEL)
    except InputError:
      refusals += 1
  assert refusals > 60
  for n in rng.integers(0, len(whole), 20):
    target.write_bytes(whole[:n])
    refused(path, 'not a valid .npz')


def test_an_array_that_claims_more_than_is_there(tmp_path):
  path = write_slices(tmp_path / 'd')
  member = io.BytesIO()
  np.save(member, IMAGE[0])
  lie = member.getvalue().replace(b'(6, 5)', b'(9, 9)')
  with zipfile.ZipFile(tmp_path / 'd' / 'case0005_slice001.npz', 'w') as archive:
    archive.writestr('image.npy', lie)
    archive.writestr('label.npy', lie)
  refused(path, 'not a valid .npz')
  with zipfile.ZipFile(tmp_path / 'd' / 'case0005_slice001.npz', 'w') as archive:
    archive.writestr('image.npy', member.getvalue() + b'more')
    archive.writestr('label.npy', member.getvalue())
  refused(path, 'after its data')


@pytest.mark.parametrize(
  'image, label, match',
  [
    (IMAGE[0], LABEL[0], 'size'),
    (IMAGE, LABEL[:3], 'its label'),
    (IMAGE + 2, LABEL, r'\[0, 1\]'),
    (np.where(IMAGE > 0.9, np.nan, IMAGE), LABEL, r'\[0, 1\]'),
    (IMAGE.astype(complex), LABEL, 'complex'),
  ],
)
def test_bad_h5(tmp_path, image, label, match):
  refused(write_h5(tmp_path / 'case0001.npy.h5', image, label), match)


def test_h5_that_is_not_what_it_seems(tmp_path):
  path = tmp_path / 'case0001.npy.h5'
  with h5py.File(path, 'w') as f:  # created, never written: reads as zeros
    f.create_dataset('image', (D, H, W), 'f4')
    f.create_dataset('label', data=LABEL)
  refused(path, 'never written')
  write_h5(tmp_path / 'other.h5')
  with h5py.File(path, 'w') as f:
    f['image'] = h5py.ExternalLink('other.h5', 'image')
    f['label'] = LABEL
  refused(path, 'no dataset "image"')
  with h5py.File(path, 'w') as f:
    f.create_group('image')
    f['label'] = LABEL
  refused(path, 'no dataset "image"')
  with h5py.File(path, 'w') as f:
    f['label'] = LABEL
  refused(path, 'no dataset "image"')
  with h5py.File(path, 'w') as f:
    f.create_dataset('image', (2000, 600, 600), 'f4', chunks=(1, 600, 600), compression='gzip')[0] = 1
    f['label'] = LABEL
  refused(path, 'can hold')
  for data in (b'', b'<html>', b'\x89HDF\r\n\x1a\n' + bytes(100), write_h5(path).read_bytes()[:2500]):
    path.write_bytes(data)
    refused(path, 'not a valid HDF5')
