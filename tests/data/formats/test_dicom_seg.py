"""DICOM segmentations, read back by pydicom alone: masks, places, references, codes, and what is refused."""

import itertools
import sys

import dicom_series
import numpy as np
import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian

from afw_jax.data.formats import dicom_seg, scans, volumes
from afw_jax.errors import InputError
from afw_jax.inference import outputs, statistics

STUDY = {
  'StudyInstanceUID': '1.2.3',
  'FrameOfReferenceUID': '1.2.3.5',
  'PatientID': 'P-17',
  'PatientName': 'Doe^Jane',
  'StudyDate': '20240229',
  'PatientSex': 'F',
}
ORGANS = ('liver', 'left_kidney', 'organ 7')
VALUES = (1000, 2000, 3000)  # pixels as stored that the label map takes for these organs
PIXELS = np.zeros((3, 6, 4), np.uint16)
PIXELS[0, 0, 1:3] = PIXELS[1, 0:2, 1] = 1000
PIXELS[1:3, 4:6, 0] = 2000
PIXELS[2, 5, 3] = 3000
NAMES = tuple(f'i{n:04d}.dcm' for n in range(3))


def series(folder, **options):
  return dicom_series.write_series(folder, NAMES, pixels=options.pop('pixels', PIXELS), **STUDY | options)


def labels_of(scan):
  return sum((scan.array == value - 1024) * np.uint8(c) for c, value in enumerate(VALUES, 1)).astype(np.uint8)


def segmented(folder, path, organs=ORGANS):
  """Writes the segmentation of a series at a path; returns it as pydicom reads it."""
  scan = volumes.read_image(folder)
  dicom_seg.opened(scan, organs=organs, checkpoint='0123456789abcdef' * 4)(str(path), labels_of(scan))
  return pydicom.dcmread(path)


def to_lps(position, orientation, spacing, rows, columns):
  """LPS coordinates of pixels by the formula of the standard (PS3.3, C.7.6.2.1.1)."""
  along_row, down_column = np.array(orientation, float).reshape(2, 3)
  down, along = map(float, spacing)
  return np.array(position, float) + np.outer(columns, along_row) * along + np.outer(rows, down_column) * down


def frames_of(ds):
  """(segment number, mask, functional groups) of each frame; bits are packed over the frames, lowest first."""
  shape = int(ds.NumberOfFrames), int(ds.Rows), int(ds.Columns)
  bits = np.unpackbits(np.frombuffer(ds.PixelData, np.uint8), bitorder='little')[: np.prod(shape)].reshape(shape)
  for mask, groups in zip(bits.astype(bool), ds.PerFrameFunctionalGroupsSequence, strict=True):
    yield groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber, mask, groups


def check_against_sources(ds, folder):
  """Every frame is the mask of the slice that it refers to, and each segment is where its organ is in the slices."""
  sources = {s.SOPInstanceUID: s for s in (pydicom.dcmread(path) for path in folder.iterdir())}
  shared = ds.SharedFunctionalGroupsSequence[0]
  orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
  spacing = shared.PixelMeasuresSequence[0].PixelSpacing
  names = {s.SegmentNumber: s.SegmentLabel for s in ds.SegmentSequence}
  places, seen = {name: [] for name in names.values()}, set()
  for number, mask, groups in frames_of(ds):
    source = sources[groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
    value = VALUES[ORGANS.index(names[number])]
    np.testing.assert_array_equal(mask, source.pixel_array == value)
    position = groups.PlanePositionSequence[0].ImagePositionPatient
    assert position == source.ImagePositionPatient
    places[names[number]].append(to_lps(position, orientation, spacing, *np.nonzero(mask)))
    seen.add((names[number], source.SOPInstanceUID))
  for organ, value in zip(ORGANS, VALUES):
    wanted = []
    for uid, source in sources.items():
      rows, columns = np.nonzero(source.pixel_array == value)
      assert ((organ, uid) in seen) == bool(len(rows))
      at = source.ImagePositionPatient, source.ImageOrientationPatient, source.PixelSpacing
      wanted.append(to_lps(*at, rows, columns))
    found, wanted = np.concatenate(places[organ]).mean(0), np.concatenate(wanted).mean(0)
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    yield organ, found


AXES = [tuple(sign * np.eye(3)[axis]) for axis in range(3) for sign in (1, -1)]
ORIENTATIONS = [(*row, *column) for row, column in itertools.product(AXES, AXES) if not np.dot(row, column)]
OBLIQUE = (0.8, 0.6, 0, -0.48, 0.64, 0.6)


def test_every_orientation_and_order_of_slices(tmp_path):
  assert len(ORIENTATIONS) == 24
  for n, orientation in enumerate([*ORIENTATIONS, OBLIQUE, OBLIQUE]):
    # Of two orientations one has file names against the order of its slices.
    step = (-1) ** n * 2.5 * np.cross(orientation[:3], orientation[3:])
    folder = series(tmp_path / str(n), orientation=orientation, step=step)
    ds = segmented(folder, tmp_path / f'{n}.dcm')
    centroids = dict(check_against_sources(ds, folder))
    scan = volumes.read_image(folder)
    for organ, found in statistics.of_organs(labels_of(scan), scan.array, scan.geometry, ORGANS).items():
      np.testing.assert_allclose(np.array(found.centroid_ras_mm) * (-1, -1, 1), centroids[organ], atol=1e-3)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """(folder of a series, its segmentation)."""
  root = tmp_path_factory.mktemp('seg')
  folder = series(root / 'ct', SeriesNumber=4)
  return folder, segmented(folder, root / 'seg.dcm')


def test_patient_and_study_are_those_of_the_series_and_the_object_is_new(written):
  folder, ds = written
  source = pydicom.dcmread(next(folder.iterdir()))
  for name in STUDY:
    assert ds[name].value == source[name].value
  assert ds.Modality == 'SEG' and ds.SOPClassUID.name == 'Segmentation Storage'
  assert ds.SeriesInstanceUID != source.SeriesInstanceUID and ds.SeriesNumber == 1004
  again = segmented(folder, folder.parent / 'again.dcm')
  for name in ('SOPInstanceUID', 'SeriesInstanceUID'):
    assert ds[name].value != again[name].value and ds[name].value.startswith('2.25.')
  references = ds.ReferencedSeriesSequence[0]
  assert references.SeriesInstanceUID == source.SeriesInstanceUID
  assert {r.ReferencedSOPInstanceUID for r in references.ReferencedInstanceSequence} == {
    pydicom.dcmread(path).SOPInstanceUID for path in folder.iterdir()
  }
  measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
  assert measures.PixelSpacing == [0.75, 0.5] and measures.SpacingBetweenSlices == 2.5


def test_segments_are_coded_and_name_the_network(written):
  liver, kidney, other = written[1].SegmentSequence
  kind = lambda segment: segment.SegmentedPropertyTypeCodeSequence[0]
  assert (liver.SegmentLabel, kind(liver).CodeValue, kind(liver).CodingSchemeDesignator) == ('liver', '10200004', 'SCT')
  assert kind(kidney).CodeValue == '64033007'
  assert kind(kidney).SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == 'Left'
  assert (kind(other).CodeMeaning, kind(other).CodingSchemeDesignator) == ('organ 7', '99AFWJAX')
  assert {s.SegmentAlgorithmType for s in (liver, kidney, other)} == {'AUTOMATIC'}
  parameters = liver.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
  assert '0123456789abcdef' * 4 in str(parameters)
  assert written[1].CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == '99AFWJAX'


def test_an_organ_that_was_not_found_has_no_segment_and_the_others_no_gap(tmp_path):
  folder = series(tmp_path / 'ct', pixels=np.where(PIXELS == 1000, 0, PIXELS).astype(np.uint16))
  ds = segmented(folder, tmp_path / 'seg.dcm')
  assert [(s.SegmentNumber, s.SegmentLabel) for s in ds.SegmentSequence] == [(1, 'left_kidney'), (2, 'organ 7')]
  assert {number: int(mask.sum()) for number, mask, _ in frames_of(ds)} == {1: 2, 2: 1}


def test_nothing_found_is_an_error_and_leaves_no_file(tmp_path):
  folder = series(tmp_path / 'ct', pixels=PIXELS * np.uint16(0) + np.uint16(7))
  with pytest.raises(InputError, match='nothing was found'):
    segmented(folder, tmp_path / 'seg.dcm')
  assert not (tmp_path / 'seg.dcm').exists()


@pytest.mark.parametrize('syntax', [ImplicitVRLittleEndian, 'no preamble'])
def test_how_the_series_is_encoded_does_not_matter(tmp_path, syntax):
  if syntax == 'no preamble':
    folder = series(tmp_path / 'ct')
    for path in folder.iterdir():
      path.write_bytes(path.read_bytes()[132:])
  else:
    folder = series(tmp_path / 'ct', syntax=syntax)
  ds = segmented(folder, tmp_path / 'seg.dcm')
  assert ds.PatientName == 'Doe^Jane' and sum(mask.sum() for _, mask, _ in frames_of(ds)) == 9


@pytest.mark.parametrize(
  'charset, name',
  [('ISO_IR 100', 'Müller^Jürgen'), (['', 'ISO 2022 IR 87'], 'Yamada^Tarou=山田^太郎'), ('ISO_IR 192', 'Łęcki^Żaneta')],
)
def test_names_in_other_character_sets(tmp_path, charset, name):
  folder = series(tmp_path / 'ct', SpecificCharacterSet=charset, PatientName=name, StudyDescription=name.split('=')[0])
  scan = volumes.read_image(folder)
  path = tmp_path / 'seg.dcm'
  dicom_seg.opened(scan, organs=('Leber ä', '肝', 'x'), checkpoint='0')(str(path), labels_of(scan))
  ds = pydicom.dcmread(path)
  ds.decode()
  assert str(ds.PatientName) == name and ds.StudyDescription == name.split('=')[0]
  assert [s.SegmentLabel for s in ds.SegmentSequence] == ['Leber ä', '肝', 'x']


def test_what_a_study_leaves_open_or_fills_in_wrongly_does_not_stop_a_segmentation(tmp_path):
  lacking = dict.fromkeys(('PatientID', 'PatientName', 'StudyDate', 'PatientSex'))
  folder = series(tmp_path / 'lacking', **{k: '' for k in lacking}, SliceThickness='')
  ds = segmented(folder, tmp_path / 'lacking.dcm')
  assert not ds.PatientID and not ds.StudyDate and 'AccessionNumber' in ds
  with pydicom.config.disable_value_validation():
    folder = series(
      tmp_path / 'wrong',
      PatientSex='W',
      StudyDate='29.2.2024',
      StudyTime='noon',
      PatientBirthDate='XX',
      PatientAge='old',
      PatientWeight='70',
    )
  for path in folder.iterdir():  # a weight that is not a number
    raw = path.read_bytes()
    raw = raw.replace(b'\x10\x00\x30\x10DS\x02\x0070', b'\x10\x00\x30\x10DS\x02\x00x7')
    assert raw != path.read_bytes()
    path.write_bytes(raw)
  ds = segmented(folder, tmp_path / 'wrong.dcm')
  assert ds.PatientID == 'P-17' and len(list(check_against_sources(ds, folder))) == 3


def test_names_with_backslashes_and_the_largest_number_of_a_series(tmp_path):
  names = (
    'PatientName',
    'PatientID',
    'StudyID',
    'AccessionNumber',
    'ReferringPhysicianName',
    'PatientSex',
    'StudyDate',
  )
  with pydicom.config.disable_value_validation():
    folder = series(tmp_path / 'ct', SeriesNumber=2**31 - 1, **dict.fromkeys(names, ['a', 'b']))
  ds = segmented(folder, tmp_path / 'seg.dcm')
  assert not any(ds[name].value for name in names) and ds.SeriesNumber == 1000


def test_orientations_that_differ_in_their_last_digits(tmp_path):
  folder = series(tmp_path / 'ct')
  path = sorted(folder.iterdir())[1]
  ds = pydicom.dcmread(path)
  ds.ImageOrientationPatient = [1, 1e-5, 0, -1e-5, 1, 0]
  ds.save_as(path)
  assert len(list(check_against_sources(segmented(folder, tmp_path / 'seg.dcm'), folder))) == 3


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'FrameOfReferenceUID': None}, 'has no FrameOfReferenceUID'),
    ({'StudyInstanceUID': ''}, 'has no StudyInstanceUID'),
    ({'SOPInstanceUID': '1.2.3.9'}, 'same SOPInstanceUID'),
  ],
)
def test_series_that_cannot_be_referred_to_are_refused(tmp_path, changes, said):
  folder = series(tmp_path / 'ct')
  for path in folder.iterdir():
    ds = pydicom.dcmread(path)
    for name, value in changes.items():
      if value is None:
        delattr(ds, name)
      else:
        setattr(ds, name, value)
    ds.save_as(path)
  with pytest.raises(InputError, match=said) as error:
    dicom_seg.opened(volumes.read_image(folder), organs=ORGANS, checkpoint='0')
  assert '--format=dicom_seg' in error.value.cure


def test_a_slice_of_another_study_is_refused(tmp_path):
  folder = series(tmp_path / 'ct')
  dicom_series.write_slice(folder / 'i0002.dcm', 2, pixels=PIXELS, **STUDY | {'StudyInstanceUID': '1.2.99'})
  with pytest.raises(InputError, match='another StudyInstanceUID'):
    dicom_seg.opened(volumes.read_image(folder), organs=ORGANS, checkpoint='0')


def test_other_formats_and_a_missing_package_are_refused_before_anything_is_computed(tmp_path, monkeypatch):
  found = [scans.Scan('a', 'a.nii.gz')]
  with pytest.raises(InputError, match='is not a DICOM series'):
    dicom_seg.check_possible('a.nii.gz', found)
  monkeypatch.setitem(sys.modules, 'highdicom', None)
  with pytest.raises(InputError, match='highdicom') as error:
    dicom_seg.check_possible('ct', [scans.Scan('a', 'ct', ('1.dcm', '2.dcm'))])
  assert "pip install 'afw_jax[dicom]'" in error.value.cure


def test_torn_and_other_files_are_not_whole(written, tmp_path):
  path = written[0].parent / 'seg.dcm'
  assert dicom_seg.is_whole(str(path)) and outputs._readable(str(path))
  whole = path.read_bytes()
  for n, content in enumerate([whole[:-2], whole[: len(whole) // 2], whole[:200], b'', b'text']):
    (tmp_path / f'{n}.dcm').write_bytes(content)
    assert not dicom_seg.is_whole(str(tmp_path / f'{n}.dcm')), n
  assert dicom_seg.is_whole(str(next(written[0].iterdir())))  # a slice is not to be lost either
  assert not dicom_seg.is_whole(str(tmp_path / 'none.dcm'))
