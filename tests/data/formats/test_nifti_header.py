"""NIfTI headers that are invalid, contradictory or malicious are refused with the name of the file and a cure."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nifti_bytes import (
  BITPIX,
  DATATYPE,
  DIM,
  MAGIC,
  PIXDIM,
  QFORM_CODE,
  QOFFSET,
  QUATERN,
  SFORM_CODE,
  SHAPE,
  SLOPE,
  SROW,
  UNITS,
  VOX_OFFSET,
  VOXELS,
  nifti,
  patched,
  refused,
)

from afw_jax.data import resources
from afw_jax.data.formats import volumes
from afw_jax.errors import InputError


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
  'first voxel in the header': ([(VOX_OFFSET, 'f', 100)], 'vox_offset'),
  'first voxel at 0': ([(VOX_OFFSET, 'f', 0)], 'vox_offset'),
  'first voxel at NaN': ([(VOX_OFFSET, 'f', np.nan)], 'vox_offset'),
  'first voxel at infinity': ([(VOX_OFFSET, 'f', np.inf)], 'vox_offset'),
  'first voxel at a fraction': ([(VOX_OFFSET, 'f', 352.5)], 'vox_offset'),
  'first voxel one byte late': ([(VOX_OFFSET, 'f', 353)], 'can hold'),
  'slope NaN': ([(SLOPE, 'f', np.nan)], 'scaling'),
  'slope infinite': ([(SLOPE, 'f', np.inf)], 'scaling'),
  'slope 0 with an intercept': ([(SLOPE, '2f', 0, -1024)], 'scaling'),
  'intercept NaN': ([(SLOPE, '2f', 1, np.nan)], 'scaling'),
  'slope 0 with intercept NaN': ([(SLOPE, '2f', 0, np.nan)], 'scaling'),
  'slope beyond float32': ([(SLOPE, '2f', 3e38, 0)], 'float32'),
  'no orientation at all': ([(QFORM_CODE, '2h', 0, 0)], 'has no affine'),
  'an unknown sform code': ([(SFORM_CODE, 'h', 99)], 'has no affine'),
  'a negative qform code': ([(QFORM_CODE, 'h', -1)], 'has no affine'),
  'a zero affine': ([(SROW, '12f', *[0] * 12)], 'singular'),
  'two axes alike': ([(SROW, '12f', 0.8, 0, 0, 0, 0, 0.9, 0, 0, 0, 2.5, 0, 0)], 'singular'),
  'a NaN affine': ([(SROW, 'f', np.nan)], 'NaN'),
  'an infinite origin': ([(SROW + 12, 'f', np.inf)], 'infinite'),
  'a sheared affine': ([(SROW + 4, 'f', 0.05)], 'sheared'),
  'a huge voxel': ([(SROW, 'f', -800), (PIXDIM + 4, 'f', 800)], 'voxel size'),
  'sform mirrored against qform': ([(SROW, 'f', 0.8)], 'sform and its qform'),
  'sform moved against qform': ([(SROW + 12, 'f', 15)], 'sform and its qform'),
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


def test_a_claim_beyond_memory_is_refused_before_memory_is_taken(tmp_path, monkeypatch):
  monkeypatch.setattr(resources, 'free_memory', lambda: 500)
  refused(tmp_path / 'i.nii', nifti(), 'memory')


def test_a_huge_claim_in_a_small_file_costs_nothing(tmp_path):
  claim = patched((DIM, '4h', 3, 4096, 4096, 64))
  refused(tmp_path / 'i.nii.gz', gzip.compress(claim + bytes(1000)), 'can hold')
