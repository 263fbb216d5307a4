"""NIfTI files that are broken, lying or malicious: refused with the file's name and a cure, never loaded wrong."""

import gzip
import io
import struct

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afw_jax.data.formats import geometry as geometry_module
from afw_jax.data.formats import volumes
from afw_jax.errors import InputError

SHAPE = (6, 5, 4)
AFFINE = np.array([[-0.8, 0, 0, 10], [0, 0.9, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(-1024, 2000, SHAPE).astype(np.int16)
# byte offsets of the NIfTI-1 header
DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET, SLOPE, INTER, UNITS = 40, 70, 72, 76, 108, 112, 116, 123
QFORM_CODE, SFORM_CODE, QUATERN, QOFFSET, SROW, MAGIC = 252, 254, 256, 268, 280, 344


def nifti(array=VOXELS, affine=AFFINE, qform=1):
  image = nib.Nifti1Image(array, affine)
  image.set_sform(affine, code=1)
  image.set_qform(affine, code=qform)
  return image.to_bytes()


def patched(*changes, data=None):
  data = bytearray(data or nifti())
  for offset, fmt, *values in changes:
    struct.pack_into('<' + fmt, data, offset, *values)
  return bytes(data)


def refused(path, data, match=None, read=volumes.read_image):
  path.write_bytes(data)
  with pytest.raises(InputError, match=match) as e:
    read(path)
  message = str(e.value)
  assert message.startswith(f'{path}: ')
  assert '\n' not in message
  assert e.value.cure
  return message


def test_the_file_that_the_hostile_ones_are_made_from_is_read(tmp_path):
  (tmp_path / 'i.nii').write_bytes(patched())
  v = volumes.read_image(tmp_path / 'i.nii')
  np.testing.assert_array_equal(v.geometry.to_native(v.array), VOXELS)


HEADERS = {
  'two dimensions': ([(DIM, '3h', 2, 6, 20)], 'not one 3D volume'),
  'four dimensions': ([(DIM, '5h', 4, 6, 5, 2, 2)], 'not one 3D volume'),
  'a vector per voxel': ([(DIM, '6h', 5, 6, 5, 2, 1, 2)], 'not one 3D volume'),
  'no dimensions': ([(DIM, 'h', 0)], 'not one 3D volume'),
  'too many dimensions': ([(DIM, 'h', 8)], 'not one 3D volume'),
  'negative dimension count': ([(DIM, 'h', -3)], 'not one 3D volume'),
  'negative size': ([(DIM, '4h', 3, 6, 5, -4)], 'size'),
  'zero size': ([(DIM, '4h', 3, 6, 5, 0)], 'size'),
  'size above the limit': ([(DIM, '4h', 3, 30000, 30000, 30000)], 'size'),
  'more voxels than the file can hold': ([(DIM, '4h', 3, 900, 900, 700)], 'can hold'),
  'one slice too many': ([(DIM, '4h', 3, 6, 5, 5)], 'can hold'),
  'one slice too few': ([(DIM, '4h', 3, 6, 5, 3)], 'more bytes'),
  'complex': ([(DATATYPE, '2h', 32, 64)], 'complex'),
  'RGB': ([(DATATYPE, '2h', 128, 24)], 'RGB'),
  'RGBA': ([(DATATYPE, '2h', 2304, 32)], 'RGB'),
  'unknown type': ([(DATATYPE, '2h', 77, 16)], 'data type'),
  'no type': ([(DATATYPE, '2h', 0, 0)], 'data type'),
  'binary': ([(DATATYPE, '2h', 1, 1)], 'data type'),
  'type wider than the data': ([(DATATYPE, '2h', 16, 32)], 'can hold'),
  'type narrower than the data': ([(DATATYPE, '2h', 2, 8)], 'more bytes'),
  'bitpix of another type': ([(BITPIX, 'h', 8)], 'bits per voxel'),
  'pixdim zero': ([(PIXDIM, '4f', 1, 0, 0.9, 2.5)], 'pixdim'),
  'pixdim negative': ([(PIXDIM, '4f', 1, 0.8, -0.9, 2.5)], 'pixdim'),
  'pixdim NaN': ([(PIXDIM, '4f', 1, 0.8, 0.9, np.nan)], 'pixdim'),
  'pixdim 3 mm, affine 0.8 mm': ([(PIXDIM, '4f', 1, 3, 0.9, 2.5), (QFORM_CODE, 'h', 0)], 'by pixdim'),
  'pixdim 2 % off': ([(PIXDIM, '4f', 1, 0.8, 0.9, 2.55), (QFORM_CODE, 'h', 0)], 'by pixdim'),
  'lengths in metres': ([(UNITS, 'B', 1)], 'mm'),
  'lengths in micrometres': ([(UNITS, 'B', 3)], 'mm'),
  'first voxel in the header': ([(VOX_OFFSET, 'f', 100)], 'first voxel'),
  'first voxel at 0': ([(VOX_OFFSET, 'f', 0)], 'first voxel'),
  'first voxel at NaN': ([(VOX_OFFSET, 'f', np.nan)], 'first voxel'),
  'first voxel at infinity': ([(VOX_OFFSET, 'f', np.inf)], 'first voxel'),
  'first voxel at a fraction': ([(VOX_OFFSET, 'f', 352.5)], 'first voxel'),
  'first voxel one byte late': ([(VOX_OFFSET, 'f', 353)], 'can hold'),
  'slope NaN': ([(SLOPE, 'f', np.nan)], 'scaling'),
  'slope infinite': ([(SLOPE, 'f', np.inf)], 'scaling'),
  'slope 0 with an intercept': ([(SLOPE, '2f', 0, -1024)], 'scaling'),
  'intercept NaN': ([(SLOPE, '2f', 1, np.nan)], 'scaling'),
  'slope 0 with intercept NaN': ([(SLOPE, '2f', 0, np.nan)], 'scaling'),
  'slope beyond float32': ([(SLOPE, '2f', 3e38, 0)], 'float32'),
  'no orientation at all': ([(QFORM_CODE, '2h', 0, 0)], 'where it lies'),
  'an unknown sform code': ([(SFORM_CODE, 'h', 99)], 'where it lies'),
  'a negative qform code': ([(QFORM_CODE, 'h', -1)], 'where it lies'),
  'a zero affine': ([(SROW, '12f', *[0] * 12)], 'singular'),
  'two axes alike': ([(SROW, '12f', 0.8, 0, 0, 0, 0, 0.9, 0, 0, 0, 2.5, 0, 0)], 'singular'),
  'a NaN affine': ([(SROW, 'f', np.nan)], 'NaN'),
  'an infinite origin': ([(SROW + 12, 'f', np.inf)], 'infinite'),
  'a sheared affine': ([(SROW + 4, 'f', 0.05)], 'sheared'),
  'a huge voxel': ([(SROW, 'f', -800), (PIXDIM + 4, 'f', 800)], 'voxel size'),
  'sform mirrored against qform': ([(SROW, 'f', 0.8)], 'differently'),
  'sform moved against qform': ([(SROW + 12, 'f', 15)], 'differently'),
  'an impossible quaternion': ([(QUATERN, '3f', 2, 2, 2)], 'qform'),
  'a NaN quaternion': ([(QUATERN, 'f', np.nan)], 'qform|NaN'),
  'a qform without sform, at NaN': ([(QOFFSET, 'f', np.nan), (SFORM_CODE, 'h', 0)], 'NaN'),
  'qfac 7': ([(PIXDIM, 'f', 7)], 'qform'),
  'a header and image pair': ([(MAGIC, '4s', b'ni1\0')], 'single-file'),
  'Analyze': ([(MAGIC, '4s', b'\0\0\0\0')], 'single-file'),
  'no header size': ([(0, 'i', 0)], 'not a NIfTI'),
}


@pytest.mark.parametrize('name', HEADERS)
@pytest.mark.parametrize('suffix', ['.nii', '.nii.gz'])
def test_lying_headers(tmp_path, name, suffix):
  changes, match = HEADERS[name]
  if suffix == '.nii':
    refused(tmp_path / 'i.nii', patched(*changes), match)
  else:  # the data may compress well: what an uncompressed file cannot hold is then missing
    refused(tmp_path / 'i.nii.gz', gzip.compress(patched(*changes)), match.replace('can hold', 'can hold|too early'))


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


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 351), value=st.binary(min_size=1, max_size=8))
def test_any_header_bytes_give_a_volume_or_an_input_error(tmp_path_factory, position, value):
  path = tmp_path_factory.getbasetemp() / 'fuzz.nii'
  data = bytearray(nifti())
  data[position : position + len(value)] = value
  path.write_bytes(data[: len(nifti())])
  for read in (volumes.read_image, volumes.read_label):
    try:
      v = read(path)
    except InputError:
      continue
    assert v.array.size == VOXELS.size
    assert np.all(np.isfinite(v.array))


@pytest.mark.parametrize(
  'data',
  [
    b'',
    b'\0',
    b'<html><body>404 Not Found</body></html>' * 20,
    b'\x1f\x8b',
    b'\x1f\x8bgarbage' * 99,
    gzip.compress(b''),
    gzip.compress(b'<html>' * 200),
    gzip.compress(bytes(400)),
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


@pytest.mark.parametrize(
  'array', [np.zeros((6, 5), np.int16), np.zeros((6, 5, 4, 2), np.int16), np.zeros(SHAPE, np.complex64)]
)
def test_what_nibabel_writes_of_other_kinds(tmp_path, array):
  refused(tmp_path / 'i.nii', nib.Nifti1Image(array, np.eye(4)).to_bytes())


def test_a_fourth_dimension_of_one_is_the_same_volume(tmp_path):
  (tmp_path / 'i.nii').write_bytes(nifti(VOXELS[..., None]))
  v = volumes.read_image(tmp_path / 'i.nii')
  assert v.geometry.shape == SHAPE
  np.testing.assert_array_equal(v.geometry.to_native(v.array), VOXELS)


def test_rounding_between_sform_and_qform_is_accepted(tmp_path):
  turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
  affine = np.eye(4)
  affine[:3, :3] = turn @ np.diag([0.7, 0.7, 5]) + 1e-5
  affine[:3, 3] = (-123.456, 234.567, -1000.1)
  (tmp_path / 'i.nii').write_bytes(nifti(affine=affine))
  np.testing.assert_allclose(volumes.read_image(tmp_path / 'i.nii').geometry.affine, affine, rtol=1e-6)


def test_slope_and_intercept_are_applied(tmp_path):
  (tmp_path / 'i.nii').write_bytes(patched((SLOPE, '2f', 2, -1024)))
  v = volumes.read_image(tmp_path / 'i.nii')
  assert v.array.dtype == np.int16
  np.testing.assert_array_equal(v.geometry.to_native(v.array), 2 * VOXELS - 1024)
  (tmp_path / 'i.nii').write_bytes(patched((SLOPE, '2f', 0.25, 0.5)))
  v = volumes.read_image(tmp_path / 'i.nii')
  assert v.array.dtype == np.float32
  np.testing.assert_array_equal(v.geometry.to_native(v.array), 0.25 * VOXELS + 0.5)
  (tmp_path / 'i.nii').write_bytes(patched((SLOPE, '2f', 0, 0)))  # the standard: not scaled
  np.testing.assert_array_equal(volumes.read_image(tmp_path / 'i.nii').array, v.geometry.to_internal(VOXELS))
  (tmp_path / 'i.nii').write_bytes(patched((SLOPE, '2f', 20, 0)))  # integral, beyond int16
  assert volumes.read_image(tmp_path / 'i.nii').array.dtype == np.float32


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


def test_a_claim_beyond_memory_is_refused_before_memory_is_taken(tmp_path, monkeypatch):
  monkeypatch.setattr(geometry_module, '_available_bytes', lambda: 500)
  refused(tmp_path / 'i.nii', nifti(), 'memory')


def test_a_bomb_that_holds_more_than_it_claims_stops_early(tmp_path):
  packed = io.BytesIO()
  with gzip.GzipFile(fileobj=packed, mode='wb') as f:
    f.write(nifti())
    for _ in range(200):
      f.write(bytes(1 << 20))
  assert len(packed.getvalue()) < 1 << 20
  refused(tmp_path / 'i.nii.gz', packed.getvalue(), 'more bytes')


def test_a_huge_claim_in_a_small_file_costs_nothing(tmp_path):
  claim = patched((DIM, '4h', 3, 4096, 4096, 64))
  refused(tmp_path / 'i.nii.gz', gzip.compress(claim + bytes(1000)), 'can hold')
