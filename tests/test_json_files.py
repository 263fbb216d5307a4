"""Every JSON file that a run writes is JSON for any reader: no NaN and no Infinity, UTF-8."""

import json
import math
import shutil

import nibabel as nib
import numpy as np
import pytest

from afw_jax.report import runs

ORGAN = 'gallbladder'


@pytest.fixture(scope='module')
def folder(phantoms, demo, run_main, tmp_path_factory):
  """A folder with a run on scans that partly lack an organ, its store, and predictions."""
  folder = tmp_path_factory.mktemp('json')
  shutil.copytree(phantoms, folder / 'data')
  description = json.loads((folder / 'data' / 'dataset.json').read_text(encoding='utf-8'))
  for part in ('val', 'test'):
    for case in description['split'][part]:
      path = folder / 'data' / 'labels' / f'{case}.nii.gz'
      label = nib.load(path)
      classes = np.asarray(label.dataobj).copy()
      classes[classes == description['labels'][ORGAN]] = 0
      nib.save(nib.Nifti1Image(classes, label.affine, label.header), path)
  workdir = folder / 'runs' / 'small'
  run_main(
    *demo,
    f'--config.data.root={folder}/data',
    f'--workdir={workdir}',
    '--config.train.epochs=1',
    '--config.train.steps_per_epoch=2',
    '--config.eval.convention=monai',
  )
  run_main('--mode=predict', f'--workdir={workdir}', f'--input={folder}/data/imagesTs', f'--output={folder}/predicted')
  return folder


def strict(text):
  return json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))


def test_strict_readers_take_every_file(folder):
  read = set()
  for path in folder.rglob('*'):
    if path.suffix == '.jsonl':
      for line in path.read_text(encoding='utf-8').splitlines():
        strict(line)
    elif path.suffix == '.json' or path.name.lower().strip('_') in ('metadata', 'checkpoint_metadata'):
      strict(path.read_text(encoding='utf-8'))
    else:
      continue
    read.add(path.name)
  assert {
    'config.json',
    'environment.json',
    'metrics.jsonl',
    'volumes.json',
    'case.json',
    'dataset.json',
    'metadata',
  } <= read


def test_scores_without_a_value_are_null_and_read_as_nan(folder):
  cases = sorted((folder / 'runs' / 'small' / 'cases').glob('*.json'))
  assert [strict(path.read_text(encoding='utf-8'))['scores'][ORGAN]['dsc'] for path in cases] == [None, None]
  run = runs.read_run(str(folder / 'runs' / 'small'))
  assert np.isnan(run.scores['dsc'][:, run.organs.index(ORGAN)]).all() and math.isfinite(np.nanmean(run.scores['dsc']))
