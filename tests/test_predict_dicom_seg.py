"""--mode=predict --format=dicom_seg as a whole: what is written, recorded, kept, made again and refused."""

import json
import shutil
import socket

import dicom_series
import enhanced_dicom
import jax
import jax.numpy as jnp
import numpy as np
import pydicom
import pytest
import tiny_dataset
from initial_run import make_run, small_run

from afw_jax import predict
from afw_jax.data.formats import volumes
from afw_jax.errors import InputError

STUDY = {'StudyInstanceUID': '1.2.3', 'FrameOfReferenceUID': '1.2.3.5', 'PatientID': 'P-17'}
SHAPE = (5, 6, 4)  # of dicom_series


def everything_is_liver(state):
  """A state whose network finds the first organ in every voxel: only its output has biases of one per class."""
  biased = lambda leaf: jnp.array([0.0, 99.0, 0.0]) if leaf.shape == (3,) else leaf
  return state._replace(params=jax.tree.map(biased, state.params))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  root = tmp_path_factory.mktemp('run')
  data = tiny_dataset.make(root / 'data', n=4)
  return make_run(small_run(data), root / 'run', change=everything_is_liver)


@pytest.fixture
def scans(tmp_path):
  """A DICOM series and a NIfTI file."""
  dicom_series.write_series(tmp_path / 'in' / 'ct', **STUDY)
  volumes.write_image(tmp_path / 'in' / 'a.nii.gz', tiny_dataset.scan(1, SHAPE), tiny_dataset.geometry(SHAPE))
  return tmp_path / 'in'


def test_series_get_segmentations_and_nifti_files_an_error(run, scans, tmp_path):
  out = tmp_path / 'out'
  outcome = predict.predict_all(run, scans, out, file_format='dicom_seg', save_probabilities=True)
  assert [row['scan'] for row in outcome.rows] == ['ct'] and 'is not a DICOM series' in str(outcome.failed[0])
  (row,) = outcome.rows
  ds = pydicom.dcmread(out / 'ct.dcm')
  assert [s.SegmentLabel for s in ds.SegmentSequence] == ['liver'] and ds.NumberOfFrames == SHAPE[0]
  assert row['label_ids'] == {'liver': 1} and any('no segment' in note and 'spleen' in note for note in row['notes'])
  (algorithm,) = ds.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
  assert row['checkpoint']['sha256'] in algorithm.AlgorithmParameters
  assert volumes.read_image(out / 'ct_probability_liver.nii.gz').array.min() > 0.9
  # How it was made is beside it, and nothing about the machine and its user.
  content = (out / 'volumes.json').read_text(encoding='utf-8')
  (recorded,) = json.loads(content)['scans']
  assert recorded['format'] == 'dicom_seg' and recorded['environment'].keys() == {'python', 'packages', 'devices'}
  assert recorded['environment']['packages']['jax'] == jax.__version__ and recorded['checkpoint']['step'] == 0
  assert recorded['options']['overlap'] == 0.5 and recorded['statistics']['liver']['voxels'] == np.prod(SHAPE)
  assert recorded['statistics']['liver']['touches_border'] and recorded['intensity_unit'] == 'HU'
  assert recorded['bytes'] == sum(path.stat().st_size for path in (scans / 'ct').iterdir())
  assert socket.gethostname() not in content.replace(str(tmp_path), '') and 'P-17' not in content
  # What is whole is kept, what is torn is made again, as another object.
  before = ds.SOPInstanceUID
  assert predict.predict_all(run, scans, out, file_format='dicom_seg').skipped == 1
  assert pydicom.dcmread(out / 'ct.dcm').SOPInstanceUID == before
  (out / 'ct.dcm').write_bytes((out / 'ct.dcm').read_bytes()[:-9])
  assert predict.predict_all(run, scans, out, file_format='dicom_seg').skipped == 0
  assert pydicom.dcmread(out / 'ct.dcm').SOPInstanceUID != before


def test_multi_frame_files_are_predicted_like_the_series_of_their_slices(run, scans, tmp_path):
  for name, order in (('up', None), ('mixed', (2, 0, 4, 1, 3))):
    enhanced_dicom.write_enhanced(scans / f'{name}.dcm', order=order, **enhanced_dicom.STUDY)
  outcome = predict.predict_all(run, scans, tmp_path / 'nifti')
  assert len(outcome.rows) == 4 and not outcome.failed
  found = {row['scan']: volumes.read_label(row['output']) for row in outcome.rows}
  series = found.pop('ct')
  assert found.pop('a') is not None and len(found) == 2
  for labels in found.values():
    assert labels.geometry.affine == series.geometry.affine
    np.testing.assert_array_equal(labels.array, series.array)
  assert predict.predict_all(run, scans, tmp_path / 'nifti').skipped == 4
  one = predict.predict_all(run, scans / 'mixed.dcm', tmp_path / 'one.dcm', file_format='dicom_seg')
  assert [row['scan'] for row in one.rows] == ['mixed']
  assert pydicom.dcmread(tmp_path / 'one.dcm').NumberOfFrames == SHAPE[0]


def test_one_file_beside_its_slices_is_no_scan_the_next_time(run, scans):
  folder = scans / 'ct'
  for _ in range(2):
    (row,) = predict.predict(run, folder, folder / 'seg.dcm', file_format='dicom_seg')
    assert row['output'] == str(folder / 'seg.dcm') and row['scan'] == 'ct'
  assert pydicom.dcmread(folder / 'seg.dcm').Modality == 'SEG'


@pytest.mark.parametrize('overwrite', [False, True])
def test_no_slice_and_no_object_of_others_is_replaced(run, scans, overwrite):
  before = {path: path.read_bytes() for path in (scans / 'ct').iterdir()}
  with pytest.raises(InputError, match='would overwrite the scan'):
    predict.predict(run, scans / 'ct', scans / 'ct' / 'i0001.dcm', file_format='dicom_seg', overwrite=overwrite)
  assert {path: path.read_bytes() for path in before} == before
  other = scans / 'other.dcm'
  shutil.copy(scans / 'ct' / 'i0001.dcm', other)
  if not overwrite:
    with pytest.raises(InputError, match='is there already'):
      predict.predict(run, scans / 'ct', other, file_format='dicom_seg')
    assert other.read_bytes() == before[scans / 'ct' / 'i0001.dcm']


def test_what_has_no_series_or_another_ending_is_refused_before_the_network_is_loaded(scans, tmp_path):
  shutil.rmtree(scans / 'ct')
  for source, output, said in (
    (scans, tmp_path / 'out', 'is not a DICOM series'),
    (scans / 'a.nii.gz', tmp_path / 'out.dcm', 'is not a DICOM series'),
    (scans, tmp_path / 'x.nii.gz', "ending '.gz' is not that of a label map"),
  ):
    with pytest.raises(InputError, match=said):
      predict.predict_all('no/such/run', source, output, file_format='dicom_seg')
  with pytest.raises(InputError, match="ending '.dcm' is not that of a label map"):
    predict.predict_all('no/such/run', scans, tmp_path / 'x.dcm')
  assert not (tmp_path / 'out').exists()
