"""CHAOS masks: on the slices they were drawn on, or refused."""

import os
import shutil
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from dicom_series import COLUMNS, MASKS, ROWS, N, refused, write_masks, write_series
from PIL import Image

from afw_jax.data.formats import volumes

UP = tuple(f'i{n:04d},0000b.dcm' for n in range(N))
DOWN = UP[::-1]
GROUND = tuple(f'liver_GT_{n:03d}.png' for n in range(N))


@pytest.mark.parametrize(
  'dicom_names, mask_names',
  [
    (UP, GROUND),  # names run up with the positions
    (DOWN, GROUND[::-1]),  # names run down: the first mask belongs to the highest slice
    (UP, tuple(f'IMG-0002-{n:05d}.png' for n in range(1, 2 * N, 2))),
    (tuple(f'{n}.dcm' for n in range(8, 8 + N)), tuple(f'm{n}.png' for n in range(98, 98 + N))),  # 9 comes before 10
    (
      ('c.dcm', 'a.dcm', 'e.dcm', 'b.dcm', 'd.dcm'),
      ('c.png', 'a.png', 'e.png', 'b.png', 'd.png'),
    ),  # same names: no doubt
  ],
)
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
  refused(write_masks(tmp_path / 'gap', (*GROUND[:-1], 'liver_GT_005.png')), 'consecutively', read, geometry=g)
  refused(write_masks(tmp_path / 'two', (*GROUND[:-1], 'spleen_GT_004.png')), 'consecutively', read, geometry=g)
  refused(write_masks(tmp_path / 'words', [f'{w}.png' for w in 'abcde']), 'consecutively', read, geometry=g)
  refused(write_masks(tmp_path / 'twice', (*GROUND[:-1], 'liver_GT_03.png')), 'consecutively', read, geometry=g)
  shuffled = volumes.read_image(write_series(tmp_path / 's', ('x3', 'x1', 'x5', 'x2', 'x4'))).geometry
  refused(write_masks(tmp_path / 'g'), 'not named in the order', read, geometry=shuffled)
  refused(tmp_path / 'g', 'has no geometry', read)
  refused(tmp_path / 'g', 'need the DICOM series', read, geometry=volumes.Geometry(shape=g.shape, affine=g.affine))
  (tmp_path / 'empty').mkdir()
  refused(tmp_path / 'empty', 'not a folder of PNG masks', read, geometry=g)
  (tmp_path / 'g' / 'notes.txt').write_text('x')
  refused(tmp_path / 'g', 'notes.txt', read, geometry=g)


@pytest.mark.parametrize(
  'mask',
  [np.zeros((COLUMNS, ROWS), np.uint8), np.zeros((ROWS, COLUMNS, 3), np.uint8), np.zeros((ROWS, COLUMNS), np.uint16)],
)
def test_masks_of_another_size_or_kind(tmp_path, mask):
  g = volumes.read_image(write_series(tmp_path / 'd')).geometry
  folder = write_masks(tmp_path / 'g')
  Image.fromarray(mask).save(folder / GROUND[3])
  refused(folder, r'liver_GT_003.png: it has . x . pixels', volumes.read_label, geometry=g)


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
  refused(folder, 'not a valid PNG', volumes.read_label, geometry=g)


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
