"""Scans of two channels from their files to a label map: prepared, trained, predicted, exported."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import two_channels
from initial_run import make_run, small_run
from marks import SLOW

from afw_jax import export_model, import_run, predict
from afw_jax.data import store
from afw_jax.data.formats import volumes
from afw_jax.errors import InputError
from afw_jax.model_file import archive
from afw_jax.report import runs
from afw_jax.report.page import sources


@pytest.fixture(scope='module')
def root(phantoms, tmp_path_factory):
  return two_channels.make(phantoms, tmp_path_factory.mktemp('channels') / 'data')


@pytest.fixture(scope='module')
def run(root, demo, run_main, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('channels') / 'run'
  run_main(*demo, f'--config.data.root={root}', '--config.train.epochs=1', f'--workdir={workdir}')
  return workdir


@pytest.fixture(scope='module')
def new(root):
  return sorted((root / 'imagesTs').glob('*_0000.nii.gz'))[0]


def test_the_store_and_the_checkpoint(run, root):
  folder = str(next((run.parent / 'stores').iterdir()))
  index = store.read_index(folder)
  assert index['options']['channels'] == [['CT', 'CT'], ['PET', 'MR']] and index['modality'] == 'CT'
  case = store.read_case(folder, 'phantom_000')
  image = case.arrays['image']
  assert image.shape == (*case.arrays['label'].shape, 2) and image.dtype == np.float32
  assert image[..., 0].min() < -700 and image[..., 1].min() > -0.5 and image[..., 1].max() < 9
  assert case.meta['source']['others'] == [str(root / 'images' / 'phantom_000_0001.nii.gz')]
  trained = predict.load(run)
  assert trained.meta['data']['window'] == [[-150, 350], 'percentile'] and len(trained.channels) == 2
  assert {'cases', 'report', 'pictures'} <= set(os.listdir(run))


def test_prediction_takes_all_files_of_a_scan(run, root, new, run_main, tmp_path):
  run_main('--mode=predict', f'--workdir={run}', f'--input={root}/imagesTs', f'--output={tmp_path}/out')
  name = new.name.removesuffix('_0000.nii.gz')
  row = json.loads((tmp_path / 'out' / 'volumes.json').read_text(encoding='utf-8'))['scans'][0]
  second = new.with_name(f'{name}_0001.nii.gz')
  assert (row['scan'], row['source'], row['others']) == (name, str(new), [str(second)])
  found = volumes.read_label(tmp_path / 'out' / f'{name}.nii.gz')
  trained = predict.load(run)
  scan = volumes.read_channels([new, second])
  labels, _ = predict.predict_volume(trained, scan)
  np.testing.assert_array_equal(trained.file_ids(labels), found.array)
  organ = next(organ for organ in trained.organs if row['volume_ml'][organ])  # is measured in the CT
  mean = scan.array[labels == trained.labels[organ], 0].astype(float).mean()
  assert row['intensity_unit'] == 'HU' and abs(row['statistics'][organ]['mean'] - mean) < 0.001
  done = run_main('--mode=predict', f'--workdir={run}', f'--input={second}', f'--output={tmp_path}/out/{name}.nii.gz')
  assert 'label map already' in done.stderr
  with pytest.raises(InputError, match='has 1 channel, and the network takes 2'):
    predict.predict_volume(trained, volumes.read_image(new))


def test_the_page_of_the_label_maps_shows_the_first_channel(run, root, new, tmp_path):
  predict.predict(run, root / 'imagesTs', tmp_path / 'out')
  scene = sources.of_predictions(str(tmp_path / 'out')).load(0, True)
  np.testing.assert_array_equal(scene.image, volumes.read_image(new).array)
  of_run = sources.of_run(runs.read_run(str(run))).load(0, True)
  assert of_run.in_hu and of_run.window == (-150, 350) and of_run.image.ndim == 3 and not of_run.note


@pytest.fixture(scope='module')
def volumes_run(root, tmp_path_factory):
  """A 3D network that was not trained; its patches are larger than the scans along one axis, smaller along others."""
  more = {'model.name': 'unet3d', 'model.size': 'testing', 'data.size': (), 'data.spacing_mm': (9.0, 8.0, 8.0)}
  more |= {'train.patch_size': (16, 16, 16), 'data.window': '-100,200; percentile'}
  return make_run(small_run(root, **more), tmp_path_factory.mktemp('channels') / 'volumes')


def test_a_model_file_of_networks_of_two_channels(run, volumes_run, root, new, tmp_path):
  path, said = export_model.export_model([str(run), volumes_run], str(tmp_path / 'model.zip'))
  assert '100' in said
  meta = archive.read_meta(path)
  assert meta['channels'] == ['CT', 'PET']
  card = archive.read(path, meta, 'README.md').decode()
  assert 'python model.zip scan_0000.nii.gz scan_0001.nii.gz labels.nii.gz' in card and '| channels | CT, PET |' in card
  second = new.with_name(new.name.replace('_0000', '_0001'))
  expected, _ = predict.predict_volume(predict.load_all([run, volumes_run]), volumes.read_channels([new, second]))
  call = lambda *scans: subprocess.run(
    [sys.executable, path, *map(str, scans), f'{tmp_path}/labels.nii.gz'], capture_output=True, text=True
  )
  done = call(new)
  assert done.returncode == 2 and 'takes 2 file(s) of a scan (CT PET), and 1 are given' in done.stderr
  done = call(new, second)
  assert done.returncode == 0, done.stderr
  found = volumes.read_label(tmp_path / 'labels.nii.gz').array
  np.testing.assert_array_equal(found, predict.load(run).file_ids(expected))
  (row,) = predict.predict([path], new, tmp_path / 'again.nii.gz')
  np.testing.assert_array_equal(volumes.read_label(row['output']).array, found)
  workdirs = import_run.import_model(path, str(tmp_path / 'imported'))
  assert [len(predict.load(workdir, which='last').channels) for workdir in workdirs] == [2, 2]


def test_a_run_goes_on_and_starts_no_run_of_one_channel(run, root, trained, demo, run_main, tmp_path):
  arguments = (*demo, f'--config.data.root={root}')
  done = run_main(*arguments, '--config.train.epochs=1', f'--workdir={run}')
  assert 'training is finished already (8 steps)' in done.stderr  # its scans and its state are found to be the same
  done = run_main(*arguments, f'--config.model.init_from={trained}', f'--workdir={tmp_path}/other', check=2)
  assert 'its scans have 1 channel(s), and those of this run 2' in done.stderr
  done = run_main(
    '--mode=predict', f'--workdir={run},{trained}', f'--input={root}/imagesTs', f'--output={tmp_path}/o', check=2
  )
  assert 'list of channels' in done.stderr


@SLOW
def test_volumes_are_trained_on_crops(root, demo, run_main, tmp_path):
  volumes = ('--config.model.name=unet3d', '--config.model.size=testing', '--config.data.size=()')
  volumes += ('--config.data.spacing_mm=(9.0,8.0,8.0)', '--config.train.patch_size=(16,16,16)')
  volumes += ('--config.augment.name=volume', '--config.train.batch_size=2', '--config.train.steps_per_epoch=2')
  more = ('--config.train.epochs=1', f'--config.data.root={root}', f'--workdir={tmp_path}/run')
  run_main(*demo, *volumes, *more, '--config.data.window=-100,200;percentile')
  assert predict.load(tmp_path / 'run').meta['data']['window'] == [[-100, 200], 'percentile']
  assert len(list((tmp_path / 'run' / 'cases').iterdir())) == 2
