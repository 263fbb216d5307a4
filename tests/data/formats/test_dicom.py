"""DICOM series: in the right order, or refused."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_series import RAW, N, refused, write_series, write_slice
from pydicom.uid import (
  ExplicitVRLittleEndian,
  ImplicitVRLittleEndian,
  JPEGBaseline8Bit,
  RLELossless,
)

from afw_jax.data.formats import volumes
from afw_jax.errors import InputError

WIDE = np.zeros((N, 300, 300), np.uint16)


@pytest.mark.parametrize(
  'names', [('a', 'b', 'c', 'd', 'e'), ('5.dcm', '4.dcm', '3.dcm', '2.dcm', '1.dcm'), ('x3', 'x1', 'x5', 'x2', 'x4')]
)
@pytest.mark.parametrize('syntax', [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_slices_are_ordered_by_position(tmp_path, names, syntax):
  v = volumes.read_image(write_series(tmp_path / 'd', names, syntax=syntax))
  assert v.array.dtype == np.int16
  np.testing.assert_array_equal(v.array, RAW.astype(int) - 1024)  # axial: rows run back, columns left, slices up
  assert v.spacing_mm == (2.5, 0.75, 0.5)
  assert v.geometry.slice_files == names
  np.testing.assert_allclose(v.geometry.internal_affine @ (3, 2, 1, 1), (10 - 0.5, 20 - 2 * 0.75, 107.5, 1))


def test_oblique_series_keep_their_place_in_the_patient(tmp_path):
  turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
  row, column, normal = turn[:, 0], turn[:, 1], np.cross(turn[:, 0], turn[:, 1])
  folder = write_series(tmp_path / 'd', orientation=[round(v, 8) for v in (*row, *column)], step=3 * normal)
  v = volumes.read_image(folder)
  marked = volumes.Volume(v.array, v.geometry, '', '')
  (zyx,) = np.argwhere(marked.array == int(RAW[4, 5, 1]) - 1024)[:1]
  lps = np.array([-10, -20, 100]) + 1 * 0.5 * row + 5 * 0.75 * column + 4 * 3 * normal
  np.testing.assert_allclose((v.geometry.internal_affine @ (*zyx, 1))[:3], lps * (-1, -1, 1), atol=1e-4)
  # a label map written on this grid lies on the scan, for nibabel too
  volumes.write_label(tmp_path / 'l.nii.gz', v.array > 0, v.geometry)
  volumes.check_pair(v, volumes.read_label(tmp_path / 'l.nii.gz'))
  np.testing.assert_array_equal(nib.load(tmp_path / 'l.nii.gz').affine, v.geometry.affine)


def test_rescale_and_types(tmp_path):
  v = volumes.read_image(write_series(tmp_path / 'a', RescaleSlope='0.5', RescaleIntercept='-10.25'))
  assert v.array.dtype == np.float32
  np.testing.assert_array_equal(v.array, RAW * 0.5 - 10.25)
  v = volumes.read_image(write_series(tmp_path / 'b', pixels=(RAW.astype(np.int16) - 2000), RescaleIntercept=0))
  np.testing.assert_array_equal(v.array, RAW.astype(int) - 2000)
  v = volumes.read_image(write_series(tmp_path / 'c', pixels=np.full_like(RAW, 65000), RescaleIntercept=0))
  assert v.array.dtype == np.float32 and v.array.max() == 65000
  v = volumes.read_image(write_series(tmp_path / 'd', RescaleSlope=None, RescaleIntercept=None, Modality='MR'))
  np.testing.assert_array_equal(v.array, RAW)
  folder = write_series(tmp_path / 'e')  # each slice by its own scale
  write_slice(folder / 'i0002.dcm', 2, RescaleSlope=2, RescaleIntercept=-5)
  v = volumes.read_image(folder)
  np.testing.assert_array_equal(v.array[2], 2 * RAW[2].astype(int) - 5)
  np.testing.assert_array_equal(v.array[3], RAW[3].astype(int) - 1024)


def test_bits_that_are_not_used(tmp_path):
  twelve = {'BitsStored': 12, 'HighBit': 11, 'RescaleIntercept': 0}
  signed = (RAW % 4096).astype(np.int16) - 2048
  for name, pixels in (('extended', signed), ('plain', signed & 0xFFF)):
    v = volumes.read_image(write_series(tmp_path / name, pixels=pixels, PixelRepresentation=1, **twelve))
    np.testing.assert_array_equal(v.array, signed)
  big = volumes.read_image(write_series(tmp_path / 'eight', pixels=(RAW % 256).astype(np.uint8), RescaleIntercept=0))
  np.testing.assert_array_equal(big.array, RAW % 256)
  padding = np.where(RAW > 2000, 63536, RAW).astype(np.uint16)  # -2000 written as unsigned
  refused(
    write_series(tmp_path / 'padding', pixels=padding, **twelve),
    'the value 63536, beyond the 12 bits of BitsStored: padding',
  )


def test_bits_above_those_stored_are_no_part_of_a_pixel(tmp_path):
  twelve = {'BitsStored': 12, 'HighBit': 11, 'RescaleIntercept': 0}
  overlay = np.random.default_rng(2).integers(0, 16, RAW.shape).astype(np.uint16) << 12
  v = volumes.read_image(write_series(tmp_path / 'unsigned', pixels=RAW | overlay, **twelve))
  np.testing.assert_array_equal(v.array, RAW)
  signed = (RAW % 4096).astype(np.int16) - 2048
  words = ((signed & 0xFFF).astype(np.uint16) | overlay).view(np.int16)
  v = volumes.read_image(write_series(tmp_path / 'signed', pixels=words, PixelRepresentation=1, **twelve))
  np.testing.assert_array_equal(v.array, signed)


@pytest.mark.parametrize('extra', [1, 2, 150])
def test_what_follows_the_pixels_is_passed_over(tmp_path, extra):
  folder = write_series(tmp_path / 'd')
  before = volumes.read_image(folder).array
  write_slice(folder / 'i0002.dcm', 2, PixelData=RAW[2].tobytes() + b'\xff' * extra)
  np.testing.assert_array_equal(volumes.read_image(folder).array, before)


def test_lossless_compression_that_needs_no_library_is_decoded(tmp_path):
  folder = write_series(tmp_path / 'd')
  before = volumes.read_image(folder)
  for path in folder.iterdir():
    ds = pydicom.dcmread(path)
    ds.compress(RLELossless)
    ds.save_as(path)
  np.testing.assert_array_equal(volumes.read_image(folder).array, before.array)


@pytest.mark.parametrize('syntax', ['JPEGLosslessProcess14_1', 'JPEGLSLossless', 'JPEG2000Lossless'])
def test_lossless_compression_is_decoded(tmp_path, syntax):
  gdcm = pytest.importorskip('gdcm')
  folder = write_series(tmp_path / 'd', pixels=np.kron(RAW, np.ones((1, 16, 16), np.uint16)))
  before = volumes.read_image(folder).array
  for path in map(str, folder.iterdir()):
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(path)
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(path)
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_compressed
  np.testing.assert_array_equal(volumes.read_image(folder).array, before)


def test_uneven_names_and_litter_do_not_matter(tmp_path):
  folder = write_series(tmp_path / 'd')
  before = volumes.read_image(folder)
  for name in ('.DS_Store', 'Thumbs.db', 'DICOMDIR', '._i0000.dcm'):
    (folder / name).write_bytes(b'litter')
  after = volumes.read_image(folder)
  np.testing.assert_array_equal(after.array, before.array)
  assert after.sha256 == before.sha256
  (folder / 'i0000.dcm').rename(folder / 'z.dcm')
  assert volumes.read_image(folder).sha256 == before.sha256  # by position, not by name
  write_slice(folder / 'z.dcm', 0, pixels=RAW + 1)
  assert volumes.read_image(folder).sha256 != before.sha256


@pytest.mark.parametrize(
  'n, changes, match',
  [
    (2, {'SeriesInstanceUID': '9.9'}, r'mixes 2 series'),
    (2, {'orientation': (0, 1, 0, 0, 0, -1)}, 'oriented differently'),
    (2, {'PixelSpacing': [0.7, 0.5]}, 'pixel spacings'),
    (2, {'PixelSpacing': [0.75074, 0.5], 'pixels': WIDE}, 'voxels beside its place'),
    (2, {'ImageOrientationPatient': [1, 0.0009, 0, -0.0009, 1, 0], 'pixels': WIDE}, 'voxels beside its place'),
    (2, {'ImagePositionPatient': [-10.06, -20, 105]}, 'voxels beside its place'),
    (2, {'pixels': np.zeros((N, 6, 6), np.uint16)}, r'\(6, 6\) pixels'),
    (2, {'ImagePositionPatient': [-10, -20, 102.5]}, 'same position'),
    (2, {'ImagePositionPatient': [-10, -20, 106]}, 'not evenly spaced'),
    (4, {'ImagePositionPatient': [-10, -20, 112.5]}, 'not evenly spaced'),
    (2, {'ImagePositionPatient': [-10, -25, 105]}, 'not evenly spaced'),
    (2, {'ImagePositionPatient': None}, 'ImagePositionPatient missing'),
    (2, {'PixelData': None}, 'not a slice of a scan'),
    (2, {'PixelSpacing': None}, 'PixelSpacing missing'),
    (2, {'PixelSpacing': [0, 0.5]}, 'invalid'),
    (2, {'PixelSpacing': [0.5]}, 'invalid|damaged'),
    (2, {'ImageOrientationPatient': [1, 0, 0, 1, 0, 0]}, 'perpendicular'),
    (2, {'ImageOrientationPatient': [2, 0, 0, 0, 1, 0]}, 'perpendicular'),
    (2, {'NumberOfFrames': 3}, 'multi-frame'),
    (2, {'PhotometricInterpretation': 'MONOCHROME1'}, 'MONOCHROME1'),
    (2, {'PhotometricInterpretation': 'RGB', 'SamplesPerPixel': 3}, 'RGB'),
    (2, {'RescaleSlope': None, 'RescaleIntercept': None}, 'HU are unknown'),
    (2, {'RescaleIntercept': None}, 'HU are unknown'),
    (2, {'RescaleSlope': 0}, 'rescaling is invalid'),
    (2, {'PixelData': bytes(20)}, 'truncated'),
    (2, {'Rows': 60000, 'Columns': 60000}, 'size'),
    (2, {'BitsStored': 12}, 'pixel format'),
  ],
)
def test_series_that_cannot_be_one_volume(tmp_path, n, changes, match):
  folder = write_series(tmp_path / 'd', pixels=WIDE if changes.get('pixels') is WIDE else RAW)
  write_slice(folder / f'i{n:04d}.dcm', n, **changes)
  refused(folder, match)


def test_a_missing_slice(tmp_path):
  folder = write_series(tmp_path / 'd')
  for n in (1, 2, 3):
    (folder / f'i{n:04d}.dcm').rename(tmp_path / 'away')
    refused(folder, 'not evenly spaced.*missing')
    (tmp_path / 'away').rename(folder / f'i{n:04d}.dcm')
  assert volumes.read_image(folder).array.shape[0] == N


def test_tilted_gantry_single_slice_and_no_slice(tmp_path):
  refused(write_series(tmp_path / 'tilt', step=(0, 0.5, 2.5)), 'sheared')
  refused(write_series(tmp_path / 'one', names=['a.dcm']), 'single slice')
  (tmp_path / 'none').mkdir()
  refused(tmp_path / 'none', 'no DICOM file')
  write_series(tmp_path / 'phases' / 'InPhase')
  refused(tmp_path / 'phases', 'has subfolders')


@pytest.mark.parametrize(
  'data', [b'', b'notes on this scan', b'\0' * 128 + b'DICM', b'\0' * 128 + b'DICM' + b'\xff' * 50]
)
def test_foreign_and_damaged_files_in_the_folder(tmp_path, data):
  folder = write_series(tmp_path / 'd')
  (folder / 'readme.txt').write_bytes(data)
  refused(folder, 'readme.txt')


def test_compression_that_cannot_be_decoded(tmp_path):
  folder = write_series(tmp_path / 'd')
  ds = pydicom.dcmread(folder / 'i0002.dcm')
  ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
  ds.PixelData = pydicom.encaps.encapsulate([b'\xff\xd8 no jpeg \xff\xd9'])
  ds['PixelData'].VR = 'OB'
  ds.save_as(folder / 'i0002.dcm')
  refused(folder, 'JPEG Baseline.*cannot be decoded.*gdcmconv')


def test_random_damage_gives_a_volume_or_an_input_error(tmp_path):
  folder = write_series(tmp_path / 'd')
  whole = (folder / 'i0002.dcm').read_bytes()
  rng = np.random.default_rng(5)
  seen = 0
  for _ in range(300):
    data = bytearray(whole)
    for at in rng.integers(128, len(data), 3):
      data[at] = rng.integers(256)
    (folder / 'i0002.dcm').write_bytes(data[: rng.choice([len(data), rng.integers(len(data))])])
    try:
      volumes.read_image(folder)
    except InputError as e:
      assert str(folder) in str(e)
      seen += 1
  assert seen > 100
