"""A run on labels with "ignore" and regions: what counts nowhere, and what is scored as a union of classes."""

import json
import math
import shutil

import nibabel as nib
import numpy as np
import pytest

from afw_jax import metrics
from afw_jax.data import store
from afw_jax.data.formats import volumes
from afw_jax.data.sets.spec import IGNORED
from afw_jax.report import runs
from afw_jax.report.page import sources

ID = 99


@pytest.fixture(scope='module')
def partly_labelled(phantoms, tmp_path_factory):
  """The phantoms, of which a third of the slices has not been labelled; the kidneys are also a region."""
  folder = tmp_path_factory.mktemp('partly') / 'data'
  shutil.copytree(phantoms, folder)
  index = json.loads((folder / 'dataset.json').read_text(encoding='utf-8'))
  more = {'kidneys': [index['labels'][f'{side}_kidney'] for side in ('left', 'right')], 'ignore': ID}
  described = json.dumps({**index, 'labels': {**index['labels'], **more}})
  (folder / 'dataset.json').write_text(described, encoding='utf-8')
  for path in (folder / 'labels').iterdir():
    found = nib.load(path)
    ids = np.asarray(found.dataobj).copy()
    ids[:, :, -(ids.shape[2] // 3) :] = ID
    nib.save(nib.Nifti1Image(ids, found.affine, found.header), path)
  return folder


@pytest.fixture(scope='module')
def run(partly_labelled, demo, run_main, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('ignored') / 'run'
  run_main(*demo, f'--config.data.root={partly_labelled}', '--config.train.epochs=1', f'--workdir={workdir}')
  return workdir


def test_the_store_marks_them(run):
  folder = next((run.parent / 'stores').iterdir())
  index = store.read_index(str(folder))
  assert index['options']['unlabelled_id'] == ID and not {'ignore', 'kidneys'} & set(index['organs'])
  case = store.read_case(str(folder), 'phantom_000')
  for name in ('label', 'native_label'):
    depth = case.arrays[name].shape[0]
    ignored = [(plane == IGNORED).all() for plane in case.arrays[name]]
    assert ignored == [z >= depth - depth // 3 for z in range(depth)]
  assert case.arrays['foreground'][:, 0].max() < IGNORED


def test_they_count_in_no_score(run, partly_labelled):
  paths = sorted((run / 'cases').glob('*.json'))
  assert len(paths) == 2
  for path in paths:
    record = json.loads(path.read_text(encoding='utf-8'))
    files = [
      nib.load(folder / f'{record["case"]}.nii.gz') for folder in (run / 'predictions', partly_labelled / 'labels')
    ]
    pred, true = (np.asarray(file.dataobj) for file in files)
    assert ID in true and ID not in pred
    labels = {organ: c for c, organ in enumerate(record['classes'], 1)}
    labels['kidneys'] = (labels['left_kidney'], labels['right_kidney'])
    assert set(labels) == set(record['organs']) and record['organs'][-1] == 'kidneys'
    expected = metrics.score_case(
      np.where(true == ID, 0, pred),
      np.where(true == ID, 0, true),
      spacing_mm=files[0].header.get_zooms(),
      labels=labels,
    )
    for organ in labels:
      found = {name: math.nan if value is None else value for name, value in record['scores'][organ].items()}
      assert found == pytest.approx(expected[organ], nan_ok=True), organ


def test_the_viewer_shows_them_as_background(run, partly_labelled):
  source = sources.of_run(runs.read_run(str(run)))
  assert len(source.organs) == 8 and 'kidneys' not in source.organs  # classes are drawn, regions are scored
  ids = volumes.read_label(partly_labelled / 'labels' / f'{source.names[0]}.nii.gz').array
  np.testing.assert_array_equal(source.load(0, True).masks['truth'], np.where(ids == ID, 0, ids))
  assert 0 < source.load(0, False).masks['truth'].max() < IGNORED
