"""Prediction by several runs: the average of a 2D and a 3D network, its record, and runs that cannot be used."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from initial_run import make_run, small_run
from marks import SLOW
from tiny_dataset import make, scan

from afw_jax import predict
from afw_jax.data.formats import volumes
from afw_jax.errors import InputError

THREE_D = {
  'model.name': 'unet3d',
  'model.size': 'testing',
  'data.size': (8, 32, 32),
  'data.spacing_mm': (2.0, 2.0, 2.0),
}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return make(tmp_path_factory.mktemp('raw') / 'data', n=4)


@pytest.fixture(scope='module')
def runs(tmp_path_factory, root):
  """Workdirs of two 2D networks and one in 3D, whose data set names its organs in another order."""
  folder = tmp_path_factory.mktemp('runs')
  turned = make(folder / 'turned', n=4, labels={'background': 0, 'spleen': 1, 'liver': 7})
  return [
    make_run(small_run(root), folder / 'a'),
    make_run(small_run(root, seed=1), folder / 'b'),
    make_run(small_run(turned, **THREE_D), folder / 'c'),
  ]


def probabilities(folder, organ):
  return volumes.read_image(folder / f'c0_probability_{organ}.nii.gz').array


@SLOW
def test_the_average_of_slices_and_volumes(runs, root, tmp_path):
  source = root / 'images' / 'c0.nii.gz'
  for name in ('a', 'c'):
    predict.predict(runs['abc'.index(name)], source, tmp_path / name, save_probabilities=True)
  (row,) = predict.predict([runs[0], pathlib.Path(runs[2])], source, tmp_path / 'both', save_probabilities=True)
  for organ in ('liver', 'spleen'):
    mean = (probabilities(tmp_path / 'a', organ) + probabilities(tmp_path / 'c', organ)) / 2
    np.testing.assert_allclose(probabilities(tmp_path / 'both', organ), mean, atol=1e-3)
  assert row['label_ids'] == {'liver': 1, 'spleen': 7} and list(row['volume_ml']) == ['liver', 'spleen']
  content = json.loads((tmp_path / 'both' / 'volumes.json').read_text(encoding='utf-8'))['scans'][0]['checkpoint']
  assert [made['workdir'] for made in content['average_of']] == [runs[0], runs[2]]
  table = (tmp_path / 'both' / 'volumes.csv').read_text(encoding='utf-8')
  assert f'{runs[0]} step 0 + {runs[2]} step 0' in table

  assert predict.predict_all([runs[0], runs[2]], source, tmp_path / 'both').skipped == 1
  assert predict.predict_all([runs[0], runs[1]], source, tmp_path / 'both').skipped == 0  # other networks
  networks = predict.load_all([runs[0], runs[2]])
  assert networks[0].organs == networks[1].organs[::-1]  # of the third, the classes are in another order
  image = volumes.read_image(source)
  labels, shares = predict.predict_volume(networks, image, keep_probabilities=True)
  assert labels.shape == image.array.shape and shares.shape == (*labels.shape, 3)
  assert predict.scan_notes(networks, image) == row['notes']


def test_each_network_is_compiled_once_for_all_scans(runs, root, tmp_path):
  networks = predict.load_all(runs[:2])
  image = volumes.read_image(root / 'images' / 'c0.nii.gz')
  for seed in range(3):
    predict.predict_volume(networks, dataclasses.replace(image, array=scan(seed)))
  assert networks[0].predict_step is networks[1].predict_step and networks[0].predict_step._cache_size() == 1


@pytest.mark.parametrize('harm, said', [
  (lambda folder: 'nowhere', 'nowhere: there is no checkpoint in it'),
  (lambda folder: folder, 'is given twice'),
])  # fmt: skip
def test_a_run_that_cannot_be_used_is_named_before_anything_is_written(runs, root, tmp_path, harm, said):
  with pytest.raises(InputError, match=said):
    predict.predict([runs[0], harm(runs[0])], root / 'images', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_a_damaged_run_is_named(runs, root, tmp_path):
  shutil.copytree(runs[1], tmp_path / 'damaged')
  for path in (tmp_path / 'damaged' / 'checkpoints' / 'last' / '0' / 'model').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(InputError, match='damaged/checkpoints/last/0'):
    predict.predict([runs[0], tmp_path / 'damaged'], root / 'images', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
