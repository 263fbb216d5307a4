"""Tilted and unevenly spaced DICOM slices on an even grid: exact for linear functions, air where no slice is."""

import dicom_series
import numpy as np
import pytest
import tiny_dataset
from dicom_series import refused
from enhanced_dicom import write_enhanced
from uneven_dicom import AXIAL, OBLIQUE, SHAPE, SPACING, linear, positions, write_linear

from afw_jax.data import store
from afw_jax.data.formats import dicom_seg, volumes
from afw_jax.errors import InputError

EVEN = np.arange(8) * 2.5
UNEVEN = np.array([0, 2.5, 5, 9, 11.5, 14, 16.5, 17.5])


def lps_of(geometry):
  """LPS coordinates (D, H, W, 3) of the voxels of a grid."""
  index = np.moveaxis(np.indices(geometry.internal_shape), 0, -1)
  return (index @ geometry.internal_affine[:3, :3].T + geometry.internal_affine[:3, 3]) * (-1, -1, 1)


def reached(lps, places, orientation):
  """Whether voxels lie between pixels of both slices that they are between (within 0.001 voxels)."""
  row, column = np.reshape(orientation, (2, 3))
  normal = np.cross(row, column)
  along = (places - places[0]) @ normal
  t = (lps - places[0]) @ normal
  inside = np.zeros(t.shape, bool)
  covers = []
  for place in places:
    right, down = (lps - place) @ row / SPACING[1], (lps - place) @ column / SPACING[0]
    covers.append((right > -1e-3) & (right < SHAPE[1] - 1 + 1e-3) & (down > -1e-3) & (down < SHAPE[0] - 1 + 1e-3))
  for k in range(len(places) - 1):
    between = (t >= along[k] - 1e-3) & (t <= along[k + 1] + 1e-3)
    on_one = [np.abs(t - along[n]) < 1e-3 for n in (k, k + 1)]
    both = (covers[k] | on_one[1]) & (covers[k + 1] | on_one[0])
    inside |= between & both
  return inside


@pytest.mark.parametrize('orientation', [AXIAL, OBLIQUE])
@pytest.mark.parametrize(
  'distances, tilt_deg',
  [(EVEN, (15, 0)), (EVEN, (-20, 7)), (UNEVEN, (0, 0)), (UNEVEN, (12, -3)), (EVEN[::-1], (15, 0))],
)
def test_a_linear_function_is_reproduced(tmp_path, distances, tilt_deg, orientation):
  places = positions(distances, orientation, tilt_deg)
  folder = write_linear(tmp_path / 'd', places, orientation)
  refused(folder, 'uneven|evenly spaced|sheared')
  refused(folder, '--resample_dicom interpolates it to an even grid')
  scan = volumes.read_image(folder, resample_dicom=True)
  lps = lps_of(scan.geometry)
  inside = reached(lps, places[np.argsort(distances)], orientation)
  assert inside.mean() > 0.3
  assert np.abs(scan.array - linear(lps))[inside].max() < 1e-4
  # Beyond the last slice it alone counts; elsewhere there is air.
  beyond = (lps - places[distances.argmax()]) @ np.cross(*np.reshape(orientation, (2, 3))) > 1e-3
  assert (scan.array[~inside & ~beyond] == -1000).all() and (~inside & ~beyond).any() == any(tilt_deg)
  assert scan.sha256 == volumes.read_image(folder, resample_dicom=True).sha256


@pytest.mark.parametrize('distances, tilt_deg', [(EVEN, (15, -10)), (UNEVEN, (0, 0)), (UNEVEN, (12, -3))])
def test_the_grid(tmp_path, distances, tilt_deg):
  places = positions(distances, OBLIQUE, tilt_deg)
  scan = volumes.read_image(write_linear(tmp_path / 'd', places, OBLIQUE), resample_dicom=True)
  affine = np.array(scan.geometry.affine)
  cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
  np.testing.assert_allclose(cosines.T @ cosines, np.eye(3), atol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), (0.5, 0.75, 2.5), atol=1e-6)
  row, column = np.reshape(OBLIQUE, (2, 3))
  np.testing.assert_allclose(cosines.T[:2] * (-1, -1, 1), (row, column), atol=1e-6)
  # The pixels of every slice are in it, and it is no larger than that takes.
  corners = np.array([[i, j] for i in (0, SHAPE[1] - 1) for j in (0, SHAPE[0] - 1)])
  ras = np.array([p + c[0] * 0.5 * row + c[1] * 0.75 * column for p in places for c in corners]) * (-1, -1, 1)
  index = (ras - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
  np.testing.assert_allclose(index.min(0), 0, atol=1e-4)
  beyond = np.array(scan.geometry.shape) - 1 - index.max(0)
  assert (beyond > (-1e-4, -1e-4, -0.5)).all() and (beyond < (1, 1, 0.501)).all()
  assert f'of {" x ".join(map(str, scan.geometry.shape))} voxels, 2.5 mm between slices' in scan.resampled
  assert ('1 to 4 mm apart' in scan.resampled) == (distances is UNEVEN)


def test_uneven_slices_are_interpolated_along_the_normal_alone(tmp_path):
  folder, raw = tmp_path / 'd', np.random.default_rng(1).integers(0, 3000, (6, 5, 4)).astype(np.uint16)
  z = np.array([0, 2, 4, 7, 9, 10.5])
  folder.mkdir()
  for n, at in enumerate(z):
    dicom_series.write_slice(folder / f'{n}', n, pixels=raw, ImagePositionPatient=[-10, -20, 100 + at])
  scan = volumes.read_image(folder, resample_dicom=True)
  assert scan.spacing_mm == (2, 0.75, 0.5) and scan.array.shape == (6, 5, 4) and scan.array.dtype == np.float32
  wanted = np.apply_along_axis(lambda values: np.interp(np.arange(6) * 2, z, values), 0, raw - 1024.0)
  np.testing.assert_allclose(scan.array, wanted, atol=1e-3)


def test_the_lowest_value_is_outside_magnetic_resonance(tmp_path):
  places = positions(EVEN, tilt_deg=(30, 0))
  scan = volumes.read_image(write_linear(tmp_path / 'd', places, Modality='MR'), resample_dicom=True)
  lowest = min(linear(p + np.array([i * 0.5, j * 0.75, 0])) for p in places for i in (0, 11) for j in (0, 13))
  assert scan.array.min() == pytest.approx(lowest, abs=1e-4)


def test_frames_of_a_multi_frame_file(tmp_path):
  pixels = np.random.default_rng(2).integers(0, 3000, (5, 6, 4)).astype(np.uint16)
  series = dicom_series.write_series(tmp_path / 'series', pixels=pixels, step=(0.2, 0.6, 2.5))
  one = write_enhanced(tmp_path / 'one' / 'ct.dcm', pixels=pixels, step=(0.2, 0.6, 2.5), order=(3, 1, 0, 4, 2))
  a, b = (volumes.read_image(path, resample_dicom=True) for path in (series, one))
  np.testing.assert_array_equal(a.array, b.array)
  assert a.geometry == b.geometry and a.resampled == b.resampled and '14.2 degrees' in a.resampled
  assert volumes.read_image(one.parent, resample_dicom=True).geometry == a.geometry


def test_even_series_are_left_as_they_are(tmp_path):
  folder = dicom_series.write_series(tmp_path / 'd')
  plain, asked = volumes.read_image(folder), volumes.read_image(folder, resample_dicom=True)
  np.testing.assert_array_equal(plain.array, asked.array)
  assert plain.array.dtype == asked.array.dtype and plain.geometry == asked.geometry and asked.resampled == ''


@pytest.mark.parametrize(
  'changes, match',
  [
    ({'ImagePositionPatient': [-10, -20, 102.5]}, 'same position'),
    ({'SeriesInstanceUID': '9.9'}, 'mixes 2 series'),
    ({'orientation': (0, 1, 0, 0, 0, -1)}, 'oriented differently'),
    ({'PixelSpacing': [0.7, 0.5]}, 'pixel spacings'),
    ({'PixelSpacing': [0.75074, 0.5], 'pixels': np.zeros((5, 300, 300), np.uint16)}, 'voxels beside its place'),
    ({'ImagePositionPatient': [-10, -20, 9e4]}, 'size .* is not that of one 3D volume'),
    ({'ImagePositionPatient': [5e4, -20, 106]}, 'size .* is not that of one 3D volume'),
    ({'ImagePositionPatient': [-10, -20, 1e9]}, r'its slices lie 1e\+06 m apart'),
    ({'ImagePositionPatient': ['1e150', '-1e150', 106]}, 'm apart'),
  ],
)
def test_what_stays_refused(tmp_path, changes, match):
  pixels = changes.get('pixels', dicom_series.RAW)
  folder = dicom_series.write_series(tmp_path / 'd', pixels=pixels, step=(0, 0.6, 2.5))
  dicom_series.write_slice(folder / 'i0002.dcm', 2, **{'step': (0, 0.6, 2.5), 'pixels': pixels} | changes)
  refused(folder, match, resample_dicom=True)


def test_segmentations_and_png_masks_need_the_slices_themselves(tmp_path):
  scan = volumes.read_image(write_linear(tmp_path / 'd', positions(UNEVEN)), resample_dicom=True)
  with pytest.raises(InputError, match='was resampled to an even grid.*without --format=dicom_seg'):
    dicom_seg.opened(scan, organs=('liver',), checkpoint='')
  masks = dicom_series.write_masks(tmp_path / 'masks')
  refused(masks, 'nor with one that --resample_dicom', read=volumes.read_label, geometry=scan.geometry)


def test_preparing_a_data_set(tmp_path):
  """Labels lie on the new grid; what is in the store needs the option no more."""
  raw = tiny_dataset.make(tmp_path / 'raw', n=4)
  (raw / 'images' / 'c0.nii.gz').unlink()
  folder = write_linear(raw / 'images' / 'c0', positions(UNEVEN, tilt_deg=(10, 0)))
  scan = volumes.read_image(folder, resample_dicom=True)
  volumes.write_label(raw / 'labels' / 'c0.nii.gz', (scan.array > 0).astype(np.uint8), scan.geometry)
  prepared = lambda **more: tiny_dataset.prepare_store('folder', raw, tmp_path / 'store', **tiny_dataset.SMALL, **more)
  with pytest.raises(InputError, match='images/c0: its slices are not evenly spaced.*--resample_dicom'):
    prepared()
  index = prepared(resample_dicom=True)
  assert any('were interpolated to an even grid' in note for note in index['cases']['c0']['notes'])
  assert not any('interpolated' in note for note in index['cases']['c1']['notes'])
  assert prepared() == prepared(verify=False) == index
  native = store.read_case(tmp_path / 'store', 'c0').arrays['native_label']
  np.testing.assert_array_equal(native, scan.array > 0)
