"""From scans to scores through the command line, on small phantoms."""

import csv
import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest

from afw_jax import predict
from afw_jax.data.formats import volumes
from afw_jax.training import checkpoint, metric_writer

ORGANS = ('aorta', 'gallbladder', 'left_kidney', 'right_kidney', 'liver', 'pancreas', 'spleen', 'stomach')


def test_a_run_leaves_what_the_readme_says(trained):
  for name in (
    'config.json',
    'environment.json',
    'splits.json',
    'metrics.jsonl',
    'checkpoints/last/24',
    'report/report.md',
    'report/scores.csv',
    'report/table.tex',
    'report/curves.png',
    'report/learned_weights.png',
    'report/gamma.png',
  ):
    assert (trained / name).exists(), name
  assert len(list((trained / 'cases').glob('*.json'))) == len(list((trained / 'predictions').glob('*.nii.gz'))) == 2
  assert list((trained / 'pictures').glob('*.png')) and list((trained / 'tensorboard').glob('events*'))
  assert len(list((trained / 'checkpoints' / 'best').iterdir())) == 1


def test_the_split_is_written_down(trained, phantoms):
  splits = json.loads((trained / 'splits.json').read_text(encoding='utf-8'))
  assert splits == json.loads((phantoms / 'dataset.json').read_text(encoding='utf-8'))['split']
  assert splits == checkpoint.read_meta(str(trained / 'checkpoints' / 'last'))['data']['splits']


def test_metrics_have_every_step_once(trained):
  records = metric_writer.read_metrics(str(trained))
  steps = [r['step'] for r in records if 'train/loss' in r]
  assert steps == list(range(1, 25))
  assert [r['step'] for r in records if 'val/dsc' in r] == [8, 16, 24]
  first = records[0]
  assert {f'{key}/{c}' for key in ('weight', 'pull') for c in ('background', *ORGANS)} <= set(first)
  assert first['data_wait_s'] >= 0
  rate = json.loads((trained / 'config.json').read_text(encoding='utf-8'))['optimizer']['learning_rate']
  assert first['train/lr'] == pytest.approx(rate) and records[-2]['train/loss'] < first['train/loss']


def test_predictions_lie_on_the_scans_grid(trained, phantoms):
  for path in (trained / 'predictions').glob('*.nii.gz'):
    image, label = nib.load(phantoms / 'images' / path.name), nib.load(path)
    assert label.shape == image.shape and label.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(label.affine, image.affine)
    assert set(np.unique(label.dataobj)) <= set(range(9))


def test_scores_are_those_of_the_written_label_maps(trained, phantoms):
  for path in (trained / 'cases').glob('*.json'):
    record = json.loads(path.read_text(encoding='utf-8'))
    pred = np.asarray(nib.load(trained / 'predictions' / f'{record["case"]}.nii.gz').dataobj)
    true = np.asarray(nib.load(phantoms / 'labels' / f'{record["case"]}.nii.gz').dataobj)
    for c, organ in enumerate(ORGANS, 1):
      a, b = pred == c, true == c
      assert record['scores'][organ]['dsc'] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-9)
    assert record['convention'] == 'strict'


def test_again_goes_on_at_once_and_changes_nothing(trained, demo, run_main):
  before = sorted((p.name, p.read_text(encoding='utf-8')) for p in (trained / 'cases').glob('*.json'))
  done = run_main(*demo, f'--workdir={trained}')
  assert 'finished already' in done.stderr
  assert sorted((p.name, p.read_text(encoding='utf-8')) for p in (trained / 'cases').glob('*.json')) == before


def test_predict_on_a_new_scan(trained, phantoms, run_main, tmp_path):
  done = run_main(
    '--mode=predict',
    f'--workdir={trained}',
    f'--input={phantoms}/imagesTs',
    f'--output={tmp_path}/out',
    '--probabilities',
    '--mirror_axes=0,1',
    '--largest_component',
  )
  scan = nib.load(phantoms / 'imagesTs' / 'new_000.nii.gz')
  label = nib.load(tmp_path / 'out' / 'new_000.nii.gz')
  assert label.shape == scan.shape and np.array_equal(label.affine, scan.affine)
  voxel_ml = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
  with open(tmp_path / 'out' / 'volumes.csv', encoding='utf-8') as f:
    row = next(csv.DictReader(f))
  for c, organ in enumerate(ORGANS, 1):
    assert float(row[f'{organ}_ml']) == pytest.approx((np.asarray(label.dataobj) == c).sum() * voxel_ml, abs=2e-3)
  assert 'mL' in done.stdout and 'liver' in done.stdout
  probabilities = sum(nib.load(tmp_path / 'out' / f'new_000_probability_{o}.nii.gz').get_fdata() for o in ORGANS)
  assert probabilities.shape == scan.shape and probabilities.min() >= 0 and probabilities.max() <= 1.01


def test_the_python_call_does_the_same(trained, phantoms, run_main, tmp_path):
  run_main(
    '--mode=predict',
    f'--workdir={trained}',
    f'--input={phantoms}/imagesTs/new_000.nii.gz',
    f'--output={tmp_path}/one.nii.gz',
  )
  network = predict.load(str(trained))
  scan = volumes.read_image(phantoms / 'imagesTs' / 'new_000.nii.gz')
  labels, probabilities = predict.predict_volume(network, scan, keep_probabilities=True)
  assert network.labels == {organ: c for c, organ in enumerate(ORGANS, 1)} and probabilities.shape == (*labels.shape, 9)
  np.testing.assert_array_equal(labels, volumes.read_label(tmp_path / 'one.nii.gz').array)


def test_paths_in_the_home_folder(trained, phantoms, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(trained.parent))
  (trained.parent / 'scans').symlink_to(phantoms / 'imagesTs')
  rows = predict.predict(f'~/{trained.name}', '~/scans', '~/out')
  assert (trained.parent / 'out' / 'new_000.nii.gz').exists() and not os.path.exists('~')
  assert [row['output'] for row in rows] == [f'{trained.parent}/out/new_000.nii.gz']
  assert predict.load(f'~/{trained.name}').organs == ORGANS


def test_evaluate_again_under_another_convention(trained, demo, run_main):
  run_main(
    *demo,
    f'--workdir={trained}',
    '--mode=evaluate',
    '--config.eval.convention=transunet',
    '--config.eval.checkpoint=last',
  )
  assert 'transunet' in (trained / 'report' / 'report.md').read_text(encoding='utf-8')
  run_main(*demo, f'--workdir={trained}', '--mode=evaluate')


def test_two_runs_are_compared_on_the_same_cases(trained, run_main, tmp_path):
  shutil.copytree(trained, tmp_path / 'other')
  done = run_main('--mode=compare', f'--workdir={trained},{tmp_path}/other', f'--output={tmp_path}/compare.md')
  text = (tmp_path / 'compare.md').read_text(encoding='utf-8')
  assert text.strip() == done.stdout.strip() and '2 common case(s)' in text and 'Wilcoxon' in text and '+0.00' in text
