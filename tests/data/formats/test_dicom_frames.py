"""Enhanced multi-frame DICOM: the same volume as the series of its slices, or refused."""

import dicom_series
import numpy as np
import pydicom
import pytest
from dicom_series import RAW, N, refused
from enhanced_dicom import AXIAL, STUDY, enhanced, item, write_enhanced
from pydicom.uid import (
  EnhancedMRImageStorage,
  LegacyConvertedEnhancedCTImageStorage,
  LegacyConvertedEnhancedMRImageStorage,
  MRImageStorage,
  RLELossless,
  generate_uid,
)

from afw_jax.data.formats import scans, volumes
from afw_jax.data.preparation.load_case import load_and_validate
from afw_jax.data.sets.folder import read_folder_spec
from afw_jax.data.sets.layouts import find_cases
from afw_jax.errors import InputError

OBLIQUE = (0.8, 0.6, 0, -0.48, 0.64, 0.6)
CORONAL = (1, 0, 0, 0, 0, -1)


def same(one, other):
  assert one.array.dtype == other.array.dtype
  np.testing.assert_array_equal(one.array, other.array)
  assert one.geometry.affine == other.geometry.affine


@pytest.mark.parametrize('shared', [True, False])
@pytest.mark.parametrize('order', [None, (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
@pytest.mark.parametrize('orientation', [AXIAL, CORONAL, OBLIQUE])
def test_a_file_is_the_volume_of_its_slices_in_any_order(tmp_path, orientation, order, shared):
  at = {'orientation': orientation, 'step': -3 * np.cross(orientation[:3], orientation[3:])}
  series = volumes.read_image(dicom_series.write_series(tmp_path / 'series', **at))
  path = write_enhanced(tmp_path / 'one' / 'ct.dcm', order=order, shared=shared, **at)
  for place in (path.parent, path):
    scan = volumes.read_image(place)
    same(scan, series)
    assert scan.geometry.slice_files == ('ct.dcm',) and scan.sha256 == volumes.read_image(path.parent).sha256
  assert scan.sha256 != series.sha256


@pytest.mark.parametrize('orientation', [AXIAL, CORONAL, OBLIQUE])
def test_simple_itk_has_the_same_geometry(tmp_path, orientation):
  sitk = pytest.importorskip('SimpleITK')
  step = 2.5 * np.cross(orientation[:3], orientation[3:])
  path = write_enhanced(tmp_path / 'ct.dcm', orientation=orientation, step=step, **STUDY)
  image, scan = sitk.ReadImage(str(path)), volumes.read_image(path)
  matrix = np.diag([-1, -1, 1]) @ np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
  affine = np.array(scan.geometry.affine)
  np.testing.assert_allclose(affine[:3, :3], matrix, atol=1e-6)
  np.testing.assert_allclose(affine[:3, 3], np.array(image.GetOrigin()) * (-1, -1, 1), atol=1e-6)
  native = scan.geometry.to_native(scan.array).transpose(2, 1, 0)
  np.testing.assert_array_equal(native, sitk.GetArrayFromImage(image))


@pytest.mark.parametrize('kind', ['CT', 'MR'])
def test_legacy_series_that_highdicom_converts(tmp_path, kind):
  legacy = pytest.importorskip('highdicom.legacy')
  about = {'Manufacturer': 'x', 'SeriesNumber': 1, 'BurnedInAnnotation': 'NO', **STUDY}
  about |= {'ImageType': ['ORIGINAL', 'PRIMARY', 'AXIAL'], 'PixelPaddingValue': int(RAW[0, 0, 0])}
  if kind == 'MR':
    about |= {'SOPClassUID': MRImageStorage, 'Modality': 'MR', 'RescaleSlope': None, 'RescaleIntercept': None}
  folder = dicom_series.write_series(tmp_path / 'series', **about)
  slices = [pydicom.dcmread(path) for path in folder.iterdir()]
  convert = getattr(legacy, f'LegacyConvertedEnhanced{kind}Image')
  made = convert(slices, generate_uid(), 2, generate_uid(), 1)
  assert made.SOPClassUID in (LegacyConvertedEnhancedCTImageStorage, LegacyConvertedEnhancedMRImageStorage)
  (tmp_path / 'one').mkdir()
  made.save_as(tmp_path / 'one' / 'made.dcm')
  series = volumes.read_image(folder)
  same(volumes.read_image(tmp_path / 'one'), series)
  assert series.array.dtype == np.int16 and (kind == 'MR' or series.array.flat[0] == -1000)


def test_each_frame_has_its_own_scale(tmp_path):
  scan = volumes.read_image(write_enhanced(tmp_path / 'ct.dcm', order=(1, 0, 2, 4, 3), slope=(1, 2, 3, 4, 5)))
  np.testing.assert_array_equal(scan.array, RAW.astype(int) * np.reshape((1, 2, 3, 4, 5), (5, 1, 1)) - 1024)
  path = write_enhanced(tmp_path / 'mr.dcm', slope=None, Modality='MR', SOPClassUID=EnhancedMRImageStorage)
  np.testing.assert_array_equal(volumes.read_image(path).array, RAW)


def test_compressed_frames(tmp_path):
  ds = enhanced(tmp_path / 'ct.dcm', order=(2, 0, 4, 1, 3))
  ds.compress(RLELossless)
  ds.save_as(tmp_path / 'ct.dcm')
  np.testing.assert_array_equal(volumes.read_image(tmp_path / 'ct.dcm').array, RAW.astype(int) - 1024)


def frame(ds, n):
  return ds.PerFrameFunctionalGroupsSequence[n]


@pytest.mark.parametrize(
  'change, match',
  [
    (lambda ds: frame(ds, 2).pop('PlanePositionSequence'), r'frame 3 has no ImagePositionPatient'),
    (lambda ds: setattr(frame(ds, 2), 'PlanePositionSequence', []), r'frame 3 has no ImagePositionPatient'),
    (lambda ds: frame(ds, 2).PlanePositionSequence[0].clear(), r'frame 3 has no ImagePositionPatient'),
    (lambda ds: setattr(ds, 'NumberOfFrames', 7), r'NumberOfFrames is 7, but .* describes 5 frames'),
    (lambda ds: setattr(ds, 'NumberOfFrames', 3), r'NumberOfFrames is 3, but .* describes 5 frames'),
    (lambda ds: delattr(ds, 'NumberOfFrames'), r'NumberOfFrames is 0'),
    (lambda ds: delattr(ds, 'PerFrameFunctionalGroupsSequence'), r'describes 0 frames'),
    (lambda ds: delattr(ds, 'SharedFunctionalGroupsSequence'), r'frame 1 has no ImageOrientationPatient'),
    (lambda ds: setattr(ds, 'PixelData', ds.PixelData[:-96]), r'bytes of pixels instead of 240: truncated'),
    (lambda ds: setattr(frame(ds, 1).FrameContentSequence[0], 'StackID', '2'), r'of 2 stacks \(StackID 1, 2\)'),
    (lambda ds: setattr(frame(ds, 1).FrameContentSequence[0], 'TemporalPositionIndex', 2), r'2 temporal positions'),
    (lambda ds: setattr(ds, 'ConcatenationUID', '1.9'), r'concatenation'),
    (lambda ds: ds.SharedFunctionalGroupsSequence[0].pop('PixelValueTransformationSequence'), r'HU are unknown'),
    (lambda ds: move(ds, 2, (-10, -20, 102.5)), r'frame 2 of ct.dcm and frame 3 of ct.dcm have the same position'),
    (lambda ds: move(ds, 2, (-10, -20, 106)), r'not evenly spaced: .* frame 3 of ct.dcm'),
    (lambda ds: move(ds, 2, (-10, -20)), r'content is damaged'),
    (lambda ds: move(ds, 2, (-10, -20, float('nan'))), r'in frame 3 its position, orientation or pixel spacing'),
    (lambda ds: turn(ds, 2, CORONAL), r'oriented differently'),
    (lambda ds: turn(ds, 2, (1, 0, 0, 1, 0, 0)), r'in frame 3 the directions'),
    (lambda ds: setattr(ds, 'PhotometricInterpretation', 'RGB'), r'RGB'),
    (lambda ds: setattr(ds, 'SOPClassUID', '1.2.840.10008.5.1.4.1.1.130'), r'not enhanced CT or MR'),
  ],
)
def test_frames_that_cannot_be_one_volume(tmp_path, change, match):
  ds = enhanced(tmp_path / 'ct.dcm')
  change(ds)
  ds.save_as(tmp_path / 'ct.dcm')
  refused(tmp_path, match)


def move(ds, n, position):
  frame(ds, n).PlanePositionSequence[0] = item(ImagePositionPatient=list(position))


def turn(ds, n, orientation):
  frame(ds, n).PlaneOrientationSequence = [item(ImageOrientationPatient=list(orientation))]


def test_a_tilted_stack_and_a_single_frame(tmp_path):
  refused(write_enhanced(tmp_path / 'tilt' / 'ct.dcm', step=(0, 0.5, 2.5)).parent, 'sheared')
  refused(write_enhanced(tmp_path / 'one' / 'ct.dcm', order=[0]).parent, 'single slice')


def test_random_damage_gives_a_volume_or_an_input_error(tmp_path):
  path = write_enhanced(tmp_path / 'ct.dcm')
  whole, rng, seen = path.read_bytes(), np.random.default_rng(5), 0
  for _ in range(200):
    data = bytearray(whole)
    for at in rng.integers(128, len(data), 3):
      data[at] = rng.integers(256)
    path.write_bytes(data[: rng.choice([len(data), rng.integers(len(data))])])
    try:
      volumes.read_image(tmp_path)
    except InputError as e:
      assert str(tmp_path) in str(e)
      seen += 1
  assert seen > 50


def test_multi_frame_files_beside_slices(tmp_path):
  """Of one folder and one series, as some archives store them: each multi-frame file is a scan of its own."""
  dicom_series.write_series(tmp_path / 'd')
  write_enhanced(tmp_path / 'd' / 'phase1.dcm')
  write_enhanced(tmp_path / 'd' / 'phase2.dcm', pixels=RAW + 1)
  localiser = ['ORIGINAL', 'PRIMARY', 'LOCALIZER', 'NONE']
  write_enhanced(tmp_path / 'd' / 'plan.dcm', ImageType=localiser)
  write_enhanced(tmp_path / 'd' / 'single.dcm', order=[0])
  found = scans.find_scans(tmp_path / 'd')
  assert sorted(scan.files for scan in found.scans) == [
    tuple(f'i{n:04d}.dcm' for n in range(N)),
    ('phase1.dcm',),
    ('phase2.dcm',),
  ]
  assert len({scan.name for scan in found.scans}) == 3
  assert [p.reason for p in found.passed_over] == ['is a localiser', 'is a series of one slice']
  read = {scan.files[0]: volumes.read_image(scan.path, scan.files).array for scan in found.scans}
  np.testing.assert_array_equal(read['i0000.dcm'], read['phase1.dcm'])
  np.testing.assert_array_equal(read['phase2.dcm'], read['phase1.dcm'] + 1)
  refused(tmp_path / 'd', 'phase1.dcm, a multi-frame file, which is a scan of its own, beside 8 other files')


def test_a_damaged_file_is_no_part_of_a_multi_frame_scan(tmp_path):
  write_enhanced(tmp_path / 'ct1.dcm')
  (tmp_path / 'ct2.dcm').write_bytes(bytes(128) + b'DICM' + b'\xff' * 50)
  found = scans.find_scans(tmp_path)
  assert [scan.files for scan in found.scans] == [('ct1.dcm',)]
  assert [p.reason for p in found.passed_over] == ['is a damaged DICOM file']


@pytest.mark.parametrize('name', ['ct.dcm', 'IM0001', 'v1.2.840'])
def test_the_file_itself_can_be_given(tmp_path, monkeypatch, name):
  path = write_enhanced(tmp_path / name)
  monkeypatch.chdir(tmp_path)
  for given in (path, name):
    (scan,) = scans.find_scans(given).scans
    assert scan.name == name.removesuffix('.dcm') and scan.files == (name,)
    np.testing.assert_array_equal(volumes.read_image(scan.path, scan.files).array, RAW.astype(int) - 1024)


def test_a_data_set_of_them(tmp_path):
  (tmp_path / 'labelsTr').mkdir(parents=True)
  scan = volumes.read_image(write_enhanced(tmp_path / 'imagesTr' / 'case_1' / 'ct.dcm'))
  wanted = (scan.array > 0).astype(np.uint8)
  volumes.write_label(tmp_path / 'labelsTr' / 'case_1.nii.gz', wanted, scan.geometry)
  description = '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}'
  (tmp_path / 'dataset.json').write_text(description)
  spec = read_folder_spec(str(tmp_path))
  (case,) = find_cases(spec, tmp_path)
  loaded = load_and_validate(case, spec)
  assert not loaded.problems
  np.testing.assert_array_equal(loaded.classes, wanted)


def test_png_masks_need_slices(tmp_path):
  geometry = volumes.read_image(write_enhanced(tmp_path / 'ct.dcm')).geometry
  masks = dicom_series.write_masks(tmp_path / 'masks')
  refused(masks, 'cannot be matched with the frames', read=volumes.read_label, geometry=geometry)
