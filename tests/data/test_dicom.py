"""DICOM series and the CHAOS masks drawn on them: in the right order, or refused."""

import os
import shutil
import time
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
  CTImageStorage,
  ExplicitVRLittleEndian,
  ImplicitVRLittleEndian,
  JPEGBaseline8Bit,
  RLELossless,
  generate_uid,
)

from afw_jax.data import volumes
from afw_jax.errors import InputError

N, ROWS, COLUMNS = 5, 6, 4
SERIES = '1.2.3.4'
RAW = np.random.default_rng(0).integers(0, 3000, (N, ROWS, COLUMNS)).astype(np.uint16)  # by position, lowest first
GREYS = np.array([0, 63, 126, 189, 252], np.uint8)
MASKS = GREYS[np.random.default_rng(1).integers(0, 5, (N, ROWS, COLUMNS))]


def write_slice(path, n, *, pixels=RAW, orientation=(1, 0, 0, 0, 1, 0), step=(0, 0, 2.5), syntax=ExplicitVRLittleEndian,
                **changes):
  """The file of slice n (by position); a change to None removes the element."""
  meta = FileMetaDataset()
  meta.TransferSyntaxUID = syntax
  meta.MediaStorageSOPClassUID = CTImageStorage
  meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path), str(n)])
  ds = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
  array = pixels[n]
  ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CTImageStorage, meta.MediaStorageSOPInstanceUID, 'CT'
  ds.SeriesInstanceUID, ds.InstanceNumber = SERIES, n + 1
  ds.SliceThickness = 9  # not the spacing: it must not be used
  ds.Rows, ds.Columns = array.shape
  ds.PixelSpacing = [0.75, 0.5]  # between rows, between columns
  ds.ImageOrientationPatient = list(orientation)
  ds.ImagePositionPatient = [round(float(v), 6) for v in np.array([-10, -20, 100.0]) + n * np.array(step)]
  ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, 'MONOCHROME2'
  ds.BitsAllocated = ds.BitsStored = array.dtype.itemsize * 8
  ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(array.dtype.kind == 'i')
  ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
  ds.PixelData = array.tobytes()
  for name, value in changes.items():
    if value is None:
      delattr(ds, name)
    else:
      setattr(ds, name, value)
  ds.save_as(path, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)


def write_series(folder, names=tuple(f'i{n:04d}.dcm' for n in range(N)), **options):
  folder.mkdir(parents=True, exist_ok=True)
  for n, name in enumerate(names):
    write_slice(folder / name, n, **options)
  return folder


def write_masks(folder, names=tuple(f'liver_GT_{n:03d}.png' for n in range(N)), masks=MASKS):
  folder.mkdir(parents=True, exist_ok=True)
  for name, mask in zip(names, masks):
    Image.fromarray(mask).save(folder / name)
  return folder


def refused(folder, match, read=volumes.read_image, **options):
  with pytest.raises(InputError, match=match) as e:
    read(folder, **options)
  assert str(folder) in str(e.value)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('names', [('a', 'b', 'c', 'd', 'e'), ('5.dcm', '4.dcm', '3.dcm', '2.dcm', '1.dcm'),
                                   ('x3', 'x1', 'x5', 'x2', 'x4')])
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
  refused(write_series(tmp_path / 'padding', pixels=padding, **twelve), 'exceed the 12 bits')


def test_lossless_compression_that_needs_no_library_is_decoded(tmp_path):
  folder = write_series(tmp_path / 'd')
  before = volumes.read_image(folder)
  for path in folder.iterdir():
    ds = pydicom.dcmread(path)
    ds.compress(RLELossless)
    ds.save_as(path)
  np.testing.assert_array_equal(volumes.read_image(folder).array, before.array)


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


@pytest.mark.parametrize('n, changes, match', [
  (2, {'SeriesInstanceUID': '9.9'}, r'mixes 2 series'),
  (2, {'orientation': (0, 1, 0, 0, 0, -1)}, 'oriented differently'),
  (2, {'PixelSpacing': [0.7, 0.5]}, 'pixel spacings'),
  (2, {'pixels': np.zeros((N, 6, 6), np.uint16)}, r'\(6, 6\) pixels'),
  (2, {'ImagePositionPatient': [-10, -20, 102.5]}, 'same place'),
  (2, {'ImagePositionPatient': [-10, -20, 106]}, 'not evenly spaced'),
  (4, {'ImagePositionPatient': [-10, -20, 112.5]}, 'not evenly spaced'),
  (2, {'ImagePositionPatient': [-10, -25, 105]}, 'not evenly spaced'),
  (2, {'ImagePositionPatient': None}, 'ImagePositionPatient missing'),
  (2, {'PixelData': None}, 'no slice of a scan'),
  (2, {'PixelSpacing': None}, 'PixelSpacing missing'),
  (2, {'PixelSpacing': [0, 0.5]}, 'invalid'),
  (2, {'PixelSpacing': [0.5]}, 'invalid|damaged'),
  (2, {'ImageOrientationPatient': [1, 0, 0, 1, 0, 0]}, 'perpendicular'),
  (2, {'ImageOrientationPatient': [2, 0, 0, 0, 1, 0]}, 'perpendicular'),
  (2, {'NumberOfFrames': 3}, 'multi-frame'),
  (2, {'PhotometricInterpretation': 'MONOCHROME1'}, 'MONOCHROME1'),
  (2, {'PhotometricInterpretation': 'RGB', 'SamplesPerPixel': 3}, 'RGB'),
  (2, {'RescaleSlope': None, 'RescaleIntercept': None}, 'off by 1024'),
  (2, {'RescaleIntercept': None}, 'off by 1024'),
  (2, {'RescaleSlope': 0}, 'rescaling is invalid'),
  (2, {'PixelData': bytes(20)}, 'truncated'),
  (2, {'PixelData': bytes(200)}, 'truncated or damaged'),
  (2, {'Rows': 60000, 'Columns': 60000}, 'size'),
  (2, {'BitsStored': 10, 'HighBit': 9}, 'exceed the 10 bits'),
  (2, {'BitsStored': 12}, 'pixel format'),
])
def test_series_that_cannot_be_one_volume(tmp_path, n, changes, match):
  folder = write_series(tmp_path / 'd')
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
  refused(tmp_path / 'phases', 'holds folders')


@pytest.mark.parametrize('data', [b'', b'notes on this scan', b'\0' * 128 + b'DICM', b'\0' * 128 + b'DICM' + b'\xff' * 50])
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
    (folder / 'i0002.dcm').write_bytes(data[:rng.choice([len(data), rng.integers(len(data))])])
    try:
      volumes.read_image(folder)
    except InputError as e:
      assert str(folder) in str(e)
      seen += 1
  assert seen > 100


UP = tuple(f'i{n:04d},0000b.dcm' for n in range(N))
DOWN = UP[::-1]
GROUND = tuple(f'liver_GT_{n:03d}.png' for n in range(N))


@pytest.mark.parametrize('dicom_names, mask_names', [
  (UP, GROUND),  # names run up with the positions
  (DOWN, GROUND[::-1]),  # names run down: the first mask belongs to the highest slice
  (UP, tuple(f'IMG-0002-{n:05d}.png' for n in range(1, 2 * N, 2))),
  (tuple(f'{n}.dcm' for n in range(8, 8 + N)), tuple(f'm{n}.png' for n in range(98, 98 + N))),  # 9 comes before 10
  (('c.dcm', 'a.dcm', 'e.dcm', 'b.dcm', 'd.dcm'), ('c.png', 'a.png', 'e.png', 'b.png', 'd.png')),  # same names: no doubt
])
def test_masks_lie_on_the_slices_they_were_drawn_on(tmp_path, dicom_names, mask_names):
  scan = volumes.read_image(write_series(tmp_path / 'DICOM_anon', dicom_names))
  label = volumes.read_label(write_masks(tmp_path / 'Ground', mask_names), geometry=scan.geometry)
  assert label.array.dtype == np.uint8
  np.testing.assert_array_equal(label.array, MASKS)
  volumes.check_pair(scan, label)
  assert label.source == str(tmp_path / 'Ground')


def test_t1dual_masks_serve_both_phases(tmp_path):
  mask_names = [f'IMG-0004-{n:05d}.png' for n in range(2, 2 * N + 2, 2)][::-1]
  write_masks(tmp_path / 'Ground', mask_names)
  for phase, first in (('InPhase', 2), ('OutPhase', 1)):
    names = [f'IMG-0004-{n:05d}.dcm' for n in range(first, first + 2 * N, 2)][::-1]
    scan = volumes.read_image(write_series(tmp_path / phase, names))
    np.testing.assert_array_equal(volumes.read_label(tmp_path / 'Ground', geometry=scan.geometry).array, MASKS)


def test_black_and_white_masks_are_0_and_255(tmp_path):
  scan = volumes.read_image(write_series(tmp_path / 'd'))
  label = volumes.read_label(write_masks(tmp_path / 'g', masks=MASKS > 0), geometry=scan.geometry)
  np.testing.assert_array_equal(label.array, 255 * (MASKS > 0))


def test_masks_whose_order_or_number_is_in_doubt(tmp_path):
  read = volumes.read_label
  g = volumes.read_image(write_series(tmp_path / 'd')).geometry
  refused(write_masks(tmp_path / 'few', GROUND[:-1]), '4 masks for 5', read, geometry=g)
  folder = write_masks(tmp_path / 'many')
  Image.fromarray(MASKS[0]).save(folder / 'liver_GT_005.png')
  refused(folder, '6 masks for 5', read, geometry=g)
  refused(write_masks(tmp_path / 'gap', (*GROUND[:-1], 'liver_GT_005.png')), 'one by one', read, geometry=g)
  refused(write_masks(tmp_path / 'two', (*GROUND[:-1], 'spleen_GT_004.png')), 'one by one', read, geometry=g)
  refused(write_masks(tmp_path / 'words', [f'{w}.png' for w in 'abcde']), 'one by one', read, geometry=g)
  refused(write_masks(tmp_path / 'twice', (*GROUND[:-1], 'liver_GT_03.png')), 'one by one', read, geometry=g)
  shuffled = volumes.read_image(write_series(tmp_path / 's', ('x3', 'x1', 'x5', 'x2', 'x4'))).geometry
  refused(write_masks(tmp_path / 'g'), 'not named in the order', read, geometry=shuffled)
  refused(tmp_path / 'g', 'no geometry of its own', read)
  refused(tmp_path / 'g', 'need the DICOM series', read, geometry=volumes.Geometry(shape=g.shape, affine=g.affine))
  (tmp_path / 'empty').mkdir()
  refused(tmp_path / 'empty', 'no folder of PNG masks', read, geometry=g)
  (tmp_path / 'g' / 'notes.txt').write_text('x')
  refused(tmp_path / 'g', 'notes.txt', read, geometry=g)


@pytest.mark.parametrize('mask', [np.zeros((COLUMNS, ROWS), np.uint8), np.zeros((ROWS, COLUMNS, 3), np.uint8),
                                  np.zeros((ROWS, COLUMNS), np.uint16)])
def test_masks_of_another_size_or_kind(tmp_path, mask):
  g = volumes.read_image(write_series(tmp_path / 'd')).geometry
  folder = write_masks(tmp_path / 'g')
  Image.fromarray(mask).save(folder / GROUND[3])
  refused(folder, r'liver_GT_003.png: it is . x . pixels', volumes.read_label, geometry=g)


def test_damaged_masks(tmp_path):
  g = volumes.read_image(write_series(tmp_path / 'd')).geometry
  folder = write_masks(tmp_path / 'g')
  whole = (folder / GROUND[3]).read_bytes()
  for n in range(0, len(whole) - 12, 3):  # the last 12 bytes only say that it is the end
    (folder / GROUND[3]).write_bytes(whole[:n])
    refused(folder, GROUND[3], volumes.read_label, geometry=g)
  for bit in range((len(whole) - 12) * 8):
    data = bytearray(whole)
    data[bit // 8] ^= 1 << bit % 8
    (folder / GROUND[3]).write_bytes(data)
    refused(folder, GROUND[3], volumes.read_label, geometry=g)
  (folder / GROUND[3]).write_bytes(zlib.compress(b'no image'))
  refused(folder, 'no sound PNG|not a sound PNG', volumes.read_label, geometry=g)


REAL = os.environ.get('AFW_REAL_DATA')


@pytest.mark.skipif(not REAL, reason='AFW_REAL_DATA is not set (a folder with real scans)')
def test_the_chaos_ct(tmp_path):
  case = Path(REAL) / 'chaos_ct' / '1'
  start = time.perf_counter()
  scan = volumes.read_image(case / 'DICOM_anon')
  seconds = time.perf_counter() - start
  label = volumes.read_label(case / 'Ground', geometry=scan.geometry)
  volumes.check_pair(scan, label)
  assert scan.array.shape == (78, 512, 512) and scan.array.dtype == np.int16
  assert scan.spacing_mm == pytest.approx((2, 0.7265625, 0.7265625))  # SliceThickness says 3.2
  assert set(np.unique(label.array)) == {0, 255}
  liver = label.array == 255
  assert liver.sum() == 1_342_595
  assert scan.array[liver].mean() == pytest.approx(141, abs=0.5)
  assert np.argwhere(liver)[:, 2].mean() < 256  # the liver is on the right
  assert seconds < 10  # about 0.3 s on an idle machine

  shutil.copytree(case / 'DICOM_anon', tmp_path / 'd')
  (tmp_path / 'd' / 'i0040,0000b.dcm').unlink()
  refused(tmp_path / 'd', 'i0041,0000b.dcm and i0039,0000b.dcm.*missing')
