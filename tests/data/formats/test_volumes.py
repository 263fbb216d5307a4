"""Volumes: reading and writing NIfTI is an exact round trip, pairs must match, other files are refused."""

import gzip
import hashlib
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from test_geometry import ALL_48, axis_affine, rotation

from afw_jax.data.formats import volumes
from afw_jax.data.formats.geometry import Geometry, displacement
from afw_jax.errors import InputError

SHAPE = (3, 4, 5)
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = rotation((0.3, -0.2, 0.5)) @ np.diag([-0.8, 0.9, 2.5])
OBLIQUE[:3, 3] = (10.5, -20, 33)
HEADER_FIELDS = (
  'dim',
  'pixdim',
  'xyzt_units',
  'qform_code',
  'sform_code',
  'quatern_b',
  'quatern_c',
  'quatern_d',
  'qoffset_x',
  'qoffset_y',
  'qoffset_z',
  'srow_x',
  'srow_y',
  'srow_z',
)


def save(path, array, affine, sform=1, qform=1, units='mm'):
  image = nib.Nifti1Image(array, affine, dtype=array.dtype)
  image.set_sform(affine, code=sform)
  image.set_qform(affine, code=qform)
  image.header.set_xyzt_units(units)
  nib.save(image, path)
  return path


LPS = np.diag([-1.0, -1, 1, 1])


def volume(array, affine=LPS):
  return volumes.Volume(array=array, geometry=Geometry(shape=array.shape[::-1], affine=affine), source='s', sha256='')


@pytest.mark.parametrize('affine', [axis_affine(*a) for a in ALL_48] + [OBLIQUE, np.diag([1, -1, 1, 1]) @ OBLIQUE])
def test_round_trip_is_exact(tmp_path, affine):
  rng = np.random.default_rng(0)
  image = rng.integers(-1024, 3000, SHAPE).astype(np.int16)
  label = rng.integers(0, 256, SHAPE).astype(np.uint8)
  save(tmp_path / 'i.nii.gz', image, affine)
  save(tmp_path / 'l.nii', label, affine)
  vi, vl = volumes.read_image(tmp_path / 'i.nii.gz'), volumes.read_label(str(tmp_path / 'l.nii'))
  volumes.check_pair(vi, vl)
  assert (vi.array.dtype, vl.array.dtype) == (np.int16, np.uint8)
  assert vi.array.flags.c_contiguous
  volumes.write_image(tmp_path / 'i2.nii', vi.array, vi.geometry)
  volumes.write_label(tmp_path / 'l2.nii.gz', vl.array, vi.geometry)
  for source, copy, array in (('i.nii.gz', 'i2.nii', image), ('l.nii', 'l2.nii.gz', label)):
    before, after = nib.load(tmp_path / source), nib.load(tmp_path / copy)
    np.testing.assert_array_equal(np.asanyarray(after.dataobj), array)
    assert after.get_data_dtype() == array.dtype
    np.testing.assert_array_equal(after.affine, before.affine)
    for field in HEADER_FIELDS:
      np.testing.assert_array_equal(after.header[field], before.header[field], err_msg=field)


@pytest.mark.parametrize('affine', [axis_affine(*ALL_48[n]) for n in (0, 7, 21, 46)] + [OBLIQUE])
def test_a_marked_voxel_keeps_its_place_in_the_patient(tmp_path, affine):
  image = np.zeros(SHAPE, np.int16)
  image[2, 1, 3] = 7
  v = volumes.read_image(save(tmp_path / 'i.nii.gz', image, affine))
  (zyx,) = np.argwhere(v.array == 7)
  np.testing.assert_allclose(v.geometry.internal_affine @ (*zyx, 1), affine @ (2, 1, 3, 1), atol=1e-4)
  assert sorted(v.spacing_mm) == pytest.approx(sorted(np.linalg.norm(affine[:3, :3], axis=0)), rel=1e-6)
  assert v.spacing_mm == pytest.approx(np.linalg.norm(v.geometry.internal_affine[:3, :3], axis=0))


@pytest.mark.parametrize('sform, qform, units', [(2, 0, 'unknown'), (0, 1, 'mm'), (4, 4, 'mm'), (1, 2, 'mm')])
def test_codes_and_units_of_the_source_are_written(tmp_path, sform, qform, units):
  save(tmp_path / 'i.nii.gz', np.ones(SHAPE, np.int16), OBLIQUE, sform, qform, units)
  v = volumes.read_image(tmp_path / 'i.nii.gz')
  volumes.write_label(tmp_path / 'l.nii.gz', np.ones(v.array.shape, bool), v.geometry)
  before, after = nib.load(tmp_path / 'i.nii.gz'), nib.load(tmp_path / 'l.nii.gz')
  np.testing.assert_array_equal(after.affine, before.affine)
  for field in HEADER_FIELDS[:7]:
    np.testing.assert_array_equal(after.header[field], before.header[field], err_msg=field)
  volumes.check_pair(v, volumes.read_label(tmp_path / 'l.nii.gz'))


@pytest.mark.parametrize(
  'dtype, values, expected',
  [
    ('i2', [-1024, 3000], np.int16),
    ('i4', [-1024, 3000], np.int16),
    ('f4', [-5.0, 7.0], np.int16),
    ('f8', [-5.0, 7.5], np.float32),
    ('u2', [0, 40000], np.float32),
    ('i4', [-40000, 0], np.float32),
    ('u1', [0, 255], np.int16),
    ('u8', [0, 9], np.int16),
    ('>i2', [-300, 5], np.int16),
    ('>f4', [0.5, 1], np.float32),
  ],
)
def test_image_types(tmp_path, dtype, values, expected):
  array = np.resize(np.array(values, dtype), SHAPE)
  v = volumes.read_image(save(tmp_path / 'i.nii', array, np.eye(4)))
  assert v.array.dtype == expected
  np.testing.assert_array_equal(v.geometry.to_native(v.array), array)


@pytest.mark.parametrize(
  'dtype, top, expected',
  [
    ('u1', 255, np.uint8),
    ('i2', 255, np.uint8),
    ('f8', 255, np.uint8),
    ('i2', 256, np.uint16),
    ('f4', 300, np.uint16),
    ('u4', 65535, np.uint16),
  ],
)
def test_label_types(tmp_path, dtype, top, expected):
  array = np.zeros(SHAPE, dtype)
  array[1, 1, 1] = top
  v = volumes.read_label(save(tmp_path / 'l.nii', array, np.eye(4)))
  assert v.array.dtype == expected
  assert v.array.max() == top


def test_nifti2_big_endian_and_sha256(tmp_path):
  array = np.arange(60, dtype='>i2').reshape(SHAPE)
  for n, make in enumerate(
    (lambda: nib.Nifti2Image(array, OBLIQUE), lambda: nib.Nifti1Image(array, OBLIQUE, nib.Nifti1Header(endianness='>')))
  ):
    path = tmp_path / f'{n}.nii.gz'
    nib.save(make(), path)
    v = volumes.read_image(path)
    np.testing.assert_array_equal(v.geometry.to_native(v.array), array)
    np.testing.assert_allclose(v.geometry.affine, OBLIQUE, atol=1e-5)
    assert v.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert v.source == str(path)


def test_a_gzip_of_several_members_is_one_file(tmp_path):
  data = save(tmp_path / 'i.nii', np.arange(60, dtype=np.int16).reshape(SHAPE), np.eye(4)).read_bytes()
  (tmp_path / 'j.nii.gz').write_bytes(b''.join(gzip.compress(data[n : n + 100]) for n in range(0, len(data), 100)))
  np.testing.assert_array_equal(
    volumes.read_image(tmp_path / 'j.nii.gz').array, volumes.read_image(tmp_path / 'i.nii').array
  )


def test_equal_label_maps_give_equal_files(tmp_path):
  g = Geometry(shape=SHAPE, affine=OBLIQUE)
  for name in ('a.nii.gz', 'b.nii.gz'):
    volumes.write_label(tmp_path / name, np.ones(g.internal_shape, int), g)
  assert (tmp_path / 'a.nii.gz').read_bytes() == (tmp_path / 'b.nii.gz').read_bytes()


def test_pairs():
  image = volume(np.zeros((5, 4, 3), np.int16))
  volumes.check_pair(image, volume(np.zeros((5, 4, 3), np.uint8)))
  for shape in ((4, 4, 3), (1, 4, 3), (5, 3, 4)):
    with pytest.raises(InputError, match='shape'):
      volumes.check_pair(image, volume(np.zeros(shape, np.uint8)))
  for row, column, by in ((0, 3, 0.5), (2, 2, 0.05), (0, 0, 2.0), (0, 1, 0.1)):
    affine = np.diag([-1.0, -1, 1, 1])
    affine[row, column] += by
    with pytest.raises(InputError, match='affine'):
      volumes.check_pair(image, volume(np.zeros((5, 4, 3), np.uint8), affine))


CT = np.diag([-0.78125, -0.78125, 5.0, 1.0])
CT[:3, 3] = (199.609375, 199.609375, -312.5)
SMALL_TURN = rotation((0, 0, 0.0005))


def moved(**changes):
  """The affine of a CT with another voxel size (mm), origin or direction."""
  affine = CT.copy()
  affine[:3, :3] = changes.get('turn', np.eye(3)) @ CT[:3, :3] * changes.get('size', 1)
  affine[:3, 3] += changes.get('by', 0)
  return affine


@pytest.mark.parametrize(
  'affine, voxels',
  [
    (moved(size=0.7803 / 0.78125), 0.88),  # a rounded voxel size: nothing at one corner, much at the other
    (moved(size=[1, 1, 1.02]), 0.2),
    (moved(by=(0.1, 0, 0)), 0.128),
    (moved(by=(0, 0, 0.6)), 0.12),
    (moved(turn=SMALL_TURN), 0.362),
    (moved(by=(0.005, 0, 0)), 0.0064),  # an origin rounded to 2 decimals
    (moved(by=(0.004, 0.004, 0.02)), 0.0083),
    (moved(by=(0.02, 0, 0)), 0.0256),
    (moved(by=(0, 0, 0.3)), 0.06),
    (moved(size=[1.0001, 1, 1]), 0.05),
    (moved(), 0),
  ],
)
def test_scan_and_label_map_are_compared_at_their_corners(affine, voxels):
  image = volume(np.broadcast_to(np.int16(0), (10, 512, 512)), CT)
  label = volume(np.broadcast_to(np.uint8(0), (10, 512, 512)), affine)
  if voxels > 0.1:
    with pytest.raises(InputError, match=r'by its affine a corner lies [\d.]+ voxels'):
      volumes.check_pair(image, label)
  else:
    notes = volumes.check_pair(image, label)
    assert len(notes) == (voxels > 0.01) and all(' voxels (' in note and 'beside the scan' in note for note in notes)
  assert displacement(image.geometry, label.geometry)[0] == pytest.approx(voxels, rel=0.1, abs=1e-9)


def test_displacement_is_in_voxels_of_the_scan_and_in_mm(tmp_path):
  image, label = (volume(np.zeros((4, 6, 8)), affine) for affine in (CT, moved(by=(3, 0, 4))))
  assert displacement(image.geometry, label.geometry) == pytest.approx((np.hypot(3 / 0.78125, 0.8), 5))
  # however the axes of the files run
  turned = volume(np.zeros((4, 6, 8)), CT @ np.array([[-1, 0, 0, 7], [0, 1, 0, 0], [0, 0, -1, 3], [0, 0, 0, 1]]))
  assert displacement(image.geometry, turned.geometry) == pytest.approx((0, 0), abs=1e-9)
  # a single slice has a thickness too
  thin, thick = (volume(np.zeros((1, 6, 8)), moved(size=[1, 1, s])) for s in (1, 1.5))
  assert displacement(thin.geometry, thick.geometry)[0] == pytest.approx(0.25)


def test_a_pair_may_differ_in_axis_order_if_the_voxels_are_the_same(tmp_path):
  array = np.arange(60, dtype=np.int16).reshape(SHAPE)
  image = nib.Nifti1Image(array, OBLIQUE)
  nib.save(image, tmp_path / 'i.nii.gz')
  nib.save(nib.as_closest_canonical(image), tmp_path / 'l.nii.gz')
  image, label = volumes.read_image(tmp_path / 'i.nii.gz'), volumes.read_label(tmp_path / 'l.nii.gz')
  volumes.check_pair(image, label)
  np.testing.assert_array_equal(image.array, label.array)


@pytest.mark.parametrize('name', ['none.nii.gz', 'none', 'none.h5', 'none/case0001_slice*.npz', 'bad\0name.nii'])
@pytest.mark.parametrize('read', [volumes.read_image, volumes.read_label])
def test_missing_paths(tmp_path, name, read):
  with pytest.raises(InputError) as e:
    read(str(tmp_path / name))
  assert str(tmp_path) in str(e.value)


@pytest.mark.parametrize('name', ['scan.mgz', 'scan.dcm', 'scan.png', 'scan.npy', 'scan'])
def test_other_kinds_of_files(tmp_path, name):
  (tmp_path / name).write_bytes(b'something')
  with pytest.raises(InputError, match='not a supported file format'):
    volumes.read_image(tmp_path / name)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'pipe.nii.gz')
  with pytest.raises(InputError, match='neither a file nor a folder'):
    volumes.read_image(tmp_path / 'pipe.nii.gz')


REAL = os.environ.get('AFW_REAL_DATA')


@pytest.mark.skipif(not REAL, reason='AFW_REAL_DATA is not set (a folder with real scans)')
def test_real_scans_round_trip(tmp_path):
  paths = sorted(Path(REAL).rglob('*.nii.gz'))
  assert len(paths) >= 30
  for path in paths:
    is_label = 'labels' in path.parent.name or 'seg' in path.name
    v = volumes.read_label(path) if is_label else volumes.read_image(path)
    before = nib.load(path)
    assert v.array.dtype == (np.uint8 if is_label else np.int16)
    (volumes.write_label if is_label else volumes.write_image)(tmp_path / 'copy.nii', v.array, v.geometry)
    after = nib.load(tmp_path / 'copy.nii')
    np.testing.assert_array_equal(np.asanyarray(after.dataobj), np.asanyarray(before.dataobj))
    np.testing.assert_array_equal(after.affine, before.affine)
    for field in HEADER_FIELDS:
      np.testing.assert_array_equal(after.header[field], before.header[field], err_msg=f'{path.name} {field}')


@pytest.mark.skipif(not REAL, reason='AFW_REAL_DATA is not set (a folder with real scans)')
def test_real_pairs():
  root = Path(REAL)
  pairs = [(p, p.parents[1] / 'labels' / p.name) for p in sorted((root / 'chaos_mr_t2' / 'images').iterdir())]
  pairs.append((root / 'msd_spleen/imagesTr/spleen_8.nii.gz', root / 'msd_spleen/labelsTr/spleen_8.nii.gz'))
  pairs.append((root / 'totalsegmentator/example_ct_sm.nii.gz', root / 'totalsegmentator/example_seg.nii.gz'))
  for image_path, label_path in pairs:
    image, label = volumes.read_image(image_path), volumes.read_label(label_path)
    volumes.check_pair(image, label)
    if 'spleen' in image_path.name:
      assert (label.array == 1).sum() == 163_456
      assert image.spacing_mm == pytest.approx((7.5, 0.785156, 0.785156))
    if 'chaos_mr' in str(image_path):  # liver and right kidney lie right of the left kidney and the spleen
      x = [np.argwhere(label.array == organ)[:, 2].mean() for organ in (1, 2, 3, 4)]
      assert max(x[:2]) < 128 < min(x[2:])
