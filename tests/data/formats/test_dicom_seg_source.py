"""DICOM segmentations of enhanced multi-frame files, read back by pydicom: masks, places and referenced frames."""

import numpy as np
import pydicom
import pytest
from enhanced_dicom import STUDY, frame_position, write_enhanced
from pydicom.uid import EnhancedCTImageStorage, EnhancedMRImageStorage

from afw_jax.data.formats import dicom_seg, volumes
from afw_jax.errors import InputError

OBLIQUE = (0.8, 0.6, 0, -0.48, 0.64, 0.6)
PIXELS = np.zeros((3, 6, 4), np.uint16)
PIXELS[0, 0, 1:3] = PIXELS[1, 0:2, 1] = 1000
PIXELS[1:3, 4:6, 0] = 2000
VALUES = {'liver': 1000, 'spleen': 2000}


def opened(scan):
  return dicom_seg.opened(scan, organs=tuple(VALUES), checkpoint='0123456789abcdef' * 4)


def labels_of(scan, intercept=-1024):
  return sum((scan.array - intercept == value) * c for c, value in enumerate(VALUES.values(), 1)).astype(np.uint8)


@pytest.mark.parametrize('shared', [True, False])
@pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize('orientation', [(1, 0, 0, 0, 1, 0), OBLIQUE])
def test_each_mask_refers_to_its_frame(tmp_path, orientation, order, shared):
  step = -2.5 * np.cross(orientation[:3], orientation[3:])
  at = {'orientation': orientation, 'step': step, 'order': order, 'shared': shared}
  path = write_enhanced(tmp_path / 'ct.dcm', pixels=PIXELS, **STUDY, **at)
  scan, source = volumes.read_image(path), pydicom.dcmread(path)
  opened(scan)(str(tmp_path / 'seg.dcm'), labels_of(scan))
  made = pydicom.dcmread(tmp_path / 'seg.dcm')
  shape = int(made.NumberOfFrames), 6, 4
  bits = np.unpackbits(np.frombuffer(made.PixelData, np.uint8), bitorder='little')[: np.prod(shape)].reshape(shape)
  names, seen = {s.SegmentNumber: s.SegmentLabel for s in made.SegmentSequence}, set()
  for mask, groups in zip(bits, made.PerFrameFunctionalGroupsSequence, strict=True):
    name = names[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
    image = groups.DerivationImageSequence[0].SourceImageSequence[0]
    assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert image.ReferencedSOPClassUID == EnhancedCTImageStorage
    number = int(image.ReferencedFrameNumber)
    np.testing.assert_array_equal(mask, source.pixel_array[number - 1] == VALUES[name])
    assert groups.PlanePositionSequence[0].ImagePositionPatient == frame_position(source, number)
    seen.add((name, order[number - 1]))
  assert seen == {('liver', 0), ('liver', 1), ('spleen', 1), ('spleen', 2)}
  common = made.SharedFunctionalGroupsSequence[0]
  assert common.PlaneOrientationSequence[0].ImageOrientationPatient == list(orientation)
  assert common.PixelMeasuresSequence[0].PixelSpacing == [0.75, 0.5]
  assert common.PixelMeasuresSequence[0].SpacingBetweenSlices == pytest.approx(2.5)
  assert (made.PatientID, made.StudyInstanceUID) == ('P-17', '1.2.3')


def test_magnetic_resonance(tmp_path):
  about = {'Modality': 'MR', 'SOPClassUID': EnhancedMRImageStorage, 'slope': None}
  scan = volumes.read_image(write_enhanced(tmp_path / 'mr.dcm', pixels=PIXELS, **STUDY, **about))
  opened(scan)(str(tmp_path / 'seg.dcm'), labels_of(scan, 0))
  assert pydicom.dcmread(tmp_path / 'seg.dcm').NumberOfFrames == 4


def test_a_file_that_cannot_be_referred_to(tmp_path):
  scan = volumes.read_image(write_enhanced(tmp_path / 'ct.dcm', pixels=PIXELS))
  with pytest.raises(InputError, match='ct.dcm: has no StudyInstanceUID, FrameOfReferenceUID'):
    opened(scan)
