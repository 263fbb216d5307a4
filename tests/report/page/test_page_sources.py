"""The scans of a run as the viewer shows them: whole from their files, or from the store."""

import shutil

import numpy as np
import pytest
from tiny_dataset import geometry, label_map, scan
from viewed_run import CASE, SHAPE, make_viewed

from afw_jax.data.formats import volumes
from afw_jax.errors import InputError
from afw_jax.inference import record
from afw_jax.report.page import sources
from afw_jax.report.runs import read_run
from afw_jax.system import atomic_files


@pytest.fixture
def workdir(tmp_path):
  return make_viewed(tmp_path)


def test_cases_are_ranked_and_whole_scans_are_those_of_the_files(workdir, tmp_path):
  run = read_run(str(workdir))
  source = sources.of_run(run)
  assert source.names == (CASE, 'c2', 'c0') and source.captions[0] == 'mean DSC 40.00 %'
  assert source.chosen == {0: 'lowest', 1: 'median', 2: 'highest'}
  for place, name in enumerate(source.names):  # in files of three orientations
    scene, scan = source.load(place, True), volumes.read_image(tmp_path / 'scans' / 'images' / f'{name}.nii.gz')
    np.testing.assert_array_equal(scene.image, scan.array)
    np.testing.assert_array_equal(scene.affine, scan.geometry.internal_affine)
    truth = volumes.read_label(tmp_path / 'scans' / 'labels' / f'{name}.nii.gz').array
    np.testing.assert_array_equal(np.array([0, 1, 7])[scene.masks['truth']], truth)
    np.testing.assert_array_equal(scene.masks['prediction'], np.roll(scene.masks['truth'], 3, 2))
    assert scene.note == '' and scene.in_hu and scene.has_mm


def test_without_its_file_a_scan_is_that_of_the_store(workdir, tmp_path):
  source = sources.of_run(read_run(str(workdir)))
  whole = source.load(0, True)
  (tmp_path / 'scans' / 'images' / f'{CASE}.nii.gz').unlink()
  changed = volumes.read_image(tmp_path / 'scans' / 'images' / 'c2.nii.gz')
  volumes.write_image(tmp_path / 'scans' / 'images' / 'c2.nii.gz', changed.array + 1, changed.geometry)
  for place, said in ((0, 'no such file'), (1, 'has changed')):
    scene = source.load(place, True)
    assert scene.image.shape == (SHAPE[0], 32, 36) and 'working grid' in scene.note and said in scene.note
  scene = source.load(0, True)
  # The middle of an organ is at the same place of the patient on either grid.
  middle = lambda one: one.affine @ [*np.argwhere(one.masks['truth'] == 1).mean(0), 1]
  np.testing.assert_allclose(middle(scene), middle(whole), atol=1.0)


def test_another_store_beside_the_run_with_the_same_content_serves(workdir):
  run = read_run(str(workdir))
  (store,) = (workdir.parent / 'stores').iterdir()
  store.rename(store.with_name('moved'))
  assert sources.of_run(run).load(0, False).image.shape == (SHAPE[0], 32, 36)
  with pytest.raises(InputError, match='does not hold the cases as they were scored'):
    sources.of_run(run._replace(contents=('0' * 64, *run.contents[1:])))
  shutil.rmtree(workdir.parent / 'stores')
  with pytest.raises(InputError, match='there is no prepared store'):
    sources.of_run(run)


def test_dicom_segmentations_are_left_to_dicom_viewers(tmp_path):
  row = {'scan': 'a', 'output': 'a.dcm', 'volume_ml': {'liver': 1.0}, 'sha256': '0' * 64, 'format': 'dicom_seg'}
  atomic_files.write_json(tmp_path / record.JSON, {'unit': 'mL', 'organs': ['liver'], 'scans': [row]})
  with pytest.raises(InputError, match='names no label map that a page can show.*DICOM viewer'):
    sources.of_predictions(str(tmp_path))


def test_folders_without_predictions_are_refused(tmp_path):
  with pytest.raises(InputError, match='names no label map'):
    sources.of_predictions(str(tmp_path))


def test_more_organs_of_several_networks_than_a_byte_counts(tmp_path):
  volumes.write_image(tmp_path / 's.nii.gz', scan(0), geometry())
  labels = (label_map(0) > 0).astype(np.uint16) * 300
  volumes.write_label(tmp_path / 'l.nii.gz', labels, geometry())
  many = {f'organ {i}': 0.0 for i in range(299)}
  source = str(tmp_path / 's.nii.gz')
  row = {'scan': 's', 'output': 'l.nii.gz', 'source': source, 'sha256': volumes.read_image(source).sha256}
  rows = [{**row, 'label_ids': {'last': 300}, 'volume_ml': {**many, 'last': 1.0}}]
  atomic_files.write_json(tmp_path / 'volumes.json', {'unit': 'mL', 'organs': [*many, 'last'], 'scans': rows})
  scene = sources.of_predictions(str(tmp_path)).load(0, True)
  assert set(np.unique(scene.masks['prediction'])) == {0, 300}
