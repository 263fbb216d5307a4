"""DICOM padding is air in CT and outside every percentile in MR, in whatever form the file names it."""

import numpy as np
import pytest
from dicom_series import COLUMNS, RAW, ROWS, N, refused, write_series, write_slice
from pydicom.dataelem import DataElement
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from afw_jax.data.formats import volumes
from afw_jax.data.formats.dicom_padding import padding_of
from afw_jax.data.sets.window import percentile_window

OUTSIDE = np.zeros((N, ROWS, COLUMNS), bool)
OUTSIDE[:, :2] = OUTSIDE[2, :, 0] = OUTSIDE[4] = True  # at the top, at one side of a slice, and a whole slice
HU = np.where(OUTSIDE, -1000, RAW.astype(int) - 1024)
LIMIT = 'PixelPaddingRangeLimit'


def series(folder, value, padding, *, dtype=np.uint16, offset=0, **options):
  """A series with `value` where it is padded, and PixelPaddingValue `padding`."""
  pixels = np.where(OUTSIDE, value, RAW.astype(int) + offset).astype(dtype)
  return write_series(folder, pixels=pixels, PixelPaddingValue=padding, **options)


@pytest.mark.parametrize(
  'value, padding, options',
  [
    (65535, 65535, {}),
    (0, 0, {}),
    (3000, 3000, {}),
    (63536, 63536, {}),
    (-2000, -2000, {'dtype': np.int16, 'offset': -1024, 'RescaleIntercept': 0}),
    (-32768, -32768, {'dtype': np.int16, 'offset': -1024, 'RescaleIntercept': 0}),
    (7, 5, {LIMIT: 9, 'offset': 10, 'RescaleIntercept': -1034}),
    (7, 9, {LIMIT: 5, 'offset': 10, 'RescaleIntercept': -1034}),
    (4000, 65535, {LIMIT: 3500}),
    (-2000, -3000, {LIMIT: -1500, 'dtype': np.int16, 'offset': -1024, 'RescaleIntercept': 0}),
    # fewer bits than the words have: padding lies beyond them, or has no extension of its sign
    (65535, 65535, {'BitsStored': 12, 'HighBit': 11}),
    (-2000, -2000, {'dtype': np.int16, 'offset': -1024, 'RescaleIntercept': 0, 'BitsStored': 13, 'HighBit': 12}),
    (-30000, -30000, {'dtype': np.int16, 'offset': -1024, 'RescaleIntercept': 0, 'BitsStored': 13, 'HighBit': 12}),
    (6192, -2000, {'dtype': np.int16, 'RescaleIntercept': -1024, 'BitsStored': 13, 'HighBit': 12}),
    (-2000, 6192, {'dtype': np.int16, 'offset': -1024, 'RescaleIntercept': 0, 'BitsStored': 13, 'HighBit': 12}),
  ],
)
@pytest.mark.parametrize('syntax', [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_ct_padding_is_air(tmp_path, value, padding, options, syntax):
  v = volumes.read_image(series(tmp_path / 'd', value, padding, syntax=syntax, **options))
  assert v.array.dtype == np.int16 and (v.array[OUTSIDE] == -1000).all()
  np.testing.assert_array_equal(v.array[~OUTSIDE], np.where(padding == RAW, -1000, HU)[~OUTSIDE])


def test_tissue_inside_the_body_is_no_padding(tmp_path):
  """A padding value of 0 that an export has kept, though its pixels are HU: 0 is water."""
  hu = np.where(OUTSIDE, 0, RAW.astype(int) - 1024).astype(np.int16)
  hu[1, 3, 1:3] = 0  # inside
  v = volumes.read_image(write_series(tmp_path / 'd', pixels=hu, PixelPaddingValue=0, RescaleIntercept=0))
  assert (v.array[OUTSIDE] == -1000).all() and (v.array[1, 3, 1:3] == 0).all()


TYPES = {'US': 63536, 'SS': -2000, 'SL': -2000, 'FD': -2000.0, 'UN': b'\x30\xf8', 'OW': b'\x30\xf8'}


@pytest.mark.parametrize('vr, padding', [*TYPES.items(), *((vr, '-2000') for vr in ('DS', 'IS', 'LO'))])
@pytest.mark.parametrize('signed', [True, False])
def test_every_type_of_the_element(tmp_path, vr, padding, signed):
  dtype = np.int16 if signed else np.uint16
  pixels = np.where(OUTSIDE, -2000, RAW.astype(int)).astype(np.int16).view(dtype)
  folder = write_series(tmp_path / 'd', pixels=pixels)
  for n, path in enumerate(sorted(folder.iterdir())):
    element = DataElement(0x00280120, vr, padding)
    write_slice(path, n, pixels=pixels, _element=element)
  np.testing.assert_array_equal(volumes.read_image(folder).array, HU)


def test_each_slice_by_its_own_element(tmp_path):
  folder = series(tmp_path / 'd', 65535, 65535)
  for n, value in ((1, 0), (3, 40000)):
    pixels = np.where(OUTSIDE, value, np.maximum(RAW, 1)).astype(np.uint16)
    write_slice(folder / f'i{n:04d}.dcm', n, pixels=pixels, PixelPaddingValue=value)
  np.testing.assert_array_equal(volumes.read_image(folder).array, np.maximum(HU, -1023) * ~OUTSIDE - 1000 * OUTSIDE)
  write_slice(folder / 'i0001.dcm', 1)  # and one without: all of it is measured
  np.testing.assert_array_equal(volumes.read_image(folder).array[1], RAW[1].astype(int) - 1024)


@pytest.mark.parametrize('value', [0, 1200, 65535])
def test_mr_padding_is_in_no_percentile(tmp_path, value):
  mr = {'Modality': 'MR', 'RescaleSlope': None, 'RescaleIntercept': None, 'offset': 200}
  v = volumes.read_image(series(tmp_path / 'd', value, value, **mr))
  inside = v.array[~OUTSIDE]
  assert v.array.dtype == np.int16 and (v.array[OUTSIDE] == inside.min()).all()
  np.testing.assert_array_equal(inside, RAW[~OUTSIDE] + 200)
  assert percentile_window(v.array) == percentile_window(inside)


def test_padding_that_cannot_be_read_and_nothing_but_padding(tmp_path):
  everywhere = np.full_like(RAW, 65535)
  refused(write_series(tmp_path / 'd', pixels=everywhere, PixelPaddingValue=65535), 'all its pixels are padding')
  refused(series(tmp_path / 'e', 0, 0, _element=DataElement(0x00280120, 'DS', '1.5')), 'PixelPaddingValue')
  empty = series(tmp_path / 'f', 65535, 0, _element=DataElement(0x00280120, 'US', None))
  assert volumes.read_image(empty).array.max() == 65535 - 1024  # names no value


def test_big_endian_words_and_a_range_across_zero():
  class Fake(dict):
    BitsAllocated, BitsStored, PixelRepresentation = 16, 16, 0
    original_encoding = (False, False)

  pixels = np.array([0, 1, 60000, 65000, 65535], np.uint16)
  found = {'PixelPaddingValue': DataElement(0x00280120, 'UN', b'\xfd\xe8')}
  assert padding_of(Fake(found), pixels).tolist() == [False, False, False, True, False]
  found = {'PixelPaddingValue': DataElement(0x00280120, 'SS', -600), LIMIT: DataElement(0x00280121, 'SS', 0)}
  assert padding_of(Fake(found), pixels).tolist() == [True, False, False, True, True]
