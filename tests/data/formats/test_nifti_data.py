"""NIfTI files with damaged, truncated or impossible data are refused, never read wrongly."""

import gzip
import io

import numpy as np
import pytest
from nifti_bytes import SHAPE, SLOPE, VOXELS, nifti, patched, refused

from afw_jax.data.formats import volumes
from afw_jax.errors import InputError


def test_every_prefix_and_suffix_of_a_file_is_refused(tmp_path):
  data = nifti()
  packed = gzip.compress(data)
  for whole, name in ((data, 'i.nii'), (packed, 'i.nii.gz')):
    for n in [*range(0, len(whole), 7), len(whole) - 1]:
      refused(tmp_path / name, whole[:n])
    for extra in (b'\0', b'\0' * 512, b'garbage', packed):
      refused(tmp_path / name, whole + extra)
  for n in range(1, 9):  # the gzip trailer: checksum and length
    refused(tmp_path / 'i.nii.gz', packed[:-n], 'truncated')


def test_flipped_bits_in_a_gz_are_refused(tmp_path):
  packed = gzip.compress(nifti(), mtime=0)
  rng = np.random.default_rng(1)
  for bit in rng.choice(np.arange(10 * 8, (len(packed) - 1) * 8), 60, replace=False):  # after gzip's own 10-byte header
    data = bytearray(packed)
    data[bit // 8] ^= 1 << bit % 8
    refused(tmp_path / 'i.nii.gz', bytes(data))


def test_no_flipped_bit_anywhere_changes_what_is_loaded(tmp_path):
  small = nifti(VOXELS[:3, :3, :2])
  packed = gzip.compress(small, mtime=0)
  path = tmp_path / 'i.nii.gz'
  path.write_bytes(packed)
  truth = volumes.read_image(path)
  loaded = 0
  for bit in range(len(packed) * 8):
    data = bytearray(packed)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    try:
      v = volumes.read_image(path)
    except InputError:
      continue
    loaded += 1  # gzip's date, its note of the operating system: no bit of the scan
    np.testing.assert_array_equal(v.array, truth.array)
    assert v.geometry == truth.geometry
  assert loaded <= 10 * 8


@pytest.mark.parametrize(
  'data',
  [
    b'',
    b'\0',
    b'<html><body>404 Not Found</body></html>' * 20,
    b'\x1f\x8b',
    b'\x1f\x8bgarbage' * 99,
    gzip.compress(b'', mtime=0),  # the time would become part of the test's name
    gzip.compress(b'<html>' * 200, mtime=0),
    gzip.compress(bytes(400), mtime=0),
    bytes(1000),
  ],
)
@pytest.mark.parametrize('name', ['i.nii', 'i.nii.gz'])
@pytest.mark.parametrize('read', [volumes.read_image, volumes.read_label])
def test_files_that_are_no_images(tmp_path, data, name, read):
  refused(tmp_path / name, data, read=read)


def test_gz_without_compression_and_the_reverse(tmp_path):
  refused(tmp_path / 'i.nii.gz', nifti(), 'not gzip-compressed')
  refused(tmp_path / 'i.nii', gzip.compress(nifti()), 'not a NIfTI')


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('read', [volumes.read_image, volumes.read_label])
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_voxels_that_are_not_finite(tmp_path, value, read, dtype):
  array = VOXELS.astype(dtype)
  array[2, 3, 1] = value
  refused(tmp_path / 'i.nii', nifti(array), 'slice 1 .* NaN or infinite', read)


def test_values_beyond_float32(tmp_path):
  refused(tmp_path / 'i.nii', nifti(np.full(SHAPE, 1e300)), 'float32')


LABELS = (np.arange(120).reshape(SHAPE) % 5).astype(np.int16)


@pytest.mark.parametrize(
  'array, match',
  [
    (LABELS + 0.5, 'integers'),
    (LABELS * 0.999, 'integers'),
    (LABELS - 1, 'from -1'),
    (LABELS.astype(np.int32) + 70000, '70000'),
    (LABELS.astype(np.float32) - 1, 'from -1'),
  ],
)
def test_labels_that_are_none(tmp_path, array, match):
  refused(tmp_path / 'l.nii', nifti(array), match, volumes.read_label)


def test_label_scale(tmp_path):
  data = nifti(LABELS)
  refused(tmp_path / 'l.nii', patched((SLOPE, '2f', 0.5, 0), data=data), 'integers', volumes.read_label)
  refused(tmp_path / 'l.nii', patched((SLOPE, '2f', 1, -1), data=data), 'from -1', volumes.read_label)
  refused(tmp_path / 'l.nii', patched((SLOPE, '2f', 0.5, 0.1), data=data), 'integers', volumes.read_label)
  (tmp_path / 'l.nii').write_bytes(patched((SLOPE, '2f', 2, 1), data=data))
  v = volumes.read_label(tmp_path / 'l.nii')
  np.testing.assert_array_equal(v.geometry.to_native(v.array), 2 * LABELS + 1)


def test_a_bomb_that_holds_more_than_it_claims_stops_early(tmp_path):
  packed = io.BytesIO()
  with gzip.GzipFile(fileobj=packed, mode='wb') as f:
    f.write(nifti())
    for _ in range(200):
      f.write(bytes(1 << 20))
  assert len(packed.getvalue()) < 1 << 20
  refused(tmp_path / 'i.nii.gz', packed.getvalue(), 'more bytes')


@pytest.mark.parametrize('shift', [4e-8, -4e-8, 9e-4, -9e-4])
@pytest.mark.parametrize('ids', [LABELS, LABELS * 70])
def test_labels_that_automatic_scaling_made_fractions(tmp_path, shift, ids):
  (tmp_path / 'l.nii').write_bytes(nifti(ids + np.float64(shift)))
  v = volumes.read_label(tmp_path / 'l.nii')
  assert v.array.dtype == (np.uint8 if ids.max() < 256 else np.uint16)
  np.testing.assert_array_equal(v.geometry.to_native(v.array), ids)


@pytest.mark.parametrize('stored', ['i2', 'u2', 'i4'])
def test_labels_that_were_saved_with_a_scale_factor(tmp_path, stored):
  most = np.iinfo(stored).max
  slope = np.float32(13 / most)
  words = np.rint(LABELS / np.float64(slope)).astype(stored)
  (tmp_path / 'l.nii').write_bytes(patched((SLOPE, '2f', slope, 0), data=nifti(words)))
  np.testing.assert_array_equal(volumes.read_label(tmp_path / 'l.nii').array, labels_of(nifti(LABELS), tmp_path))


def labels_of(data, folder):
  (folder / 'plain.nii').write_bytes(data)
  return volumes.read_label(folder / 'plain.nii').array


@pytest.mark.parametrize('stray', [0.5, 1.002, 2.75, -0.002, 254.5])
def test_one_fraction_is_enough_to_refuse_a_label_map(tmp_path, stray):
  array = LABELS.astype(np.float32)
  array[2, 3, 1] = stray
  assert f'one is {stray}' in refused(tmp_path / 'l.nii', nifti(array), 'not all integers', volumes.read_label)
