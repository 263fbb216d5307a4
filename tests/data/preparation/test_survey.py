"""The survey of a data set: the problems and notes of a preparation, and measures, with nothing written."""

import logging
import shutil

import numpy as np
import pytest
from changing_data import config, prepare_run
from tiny_dataset import SHAPE, SMALL, damage, geometry, label_map, make, prepare_store, scan

from afw_jax.config import build
from afw_jax.data.formats import volumes
from afw_jax.data.preparation import survey
from afw_jax.errors import InputError, InputErrors


def survey_of(root, **changes):
  run = config(root, **changes)
  stored, selected = build.store_options(run.data), build.selection_options(run.data)
  return survey.survey(stored, str(root), selected, workers=0, progress=False)


def prepared_problems(root, folder):
  with pytest.raises((InputError, InputErrors)) as e:
    prepare_store('folder', root, folder, **SMALL)
  return [str(p) for p in getattr(e.value, 'errors', [e.value])]


def test_the_problems_are_those_of_a_preparation(tmp_path):
  root = make(tmp_path / 'raw', n=8)
  damage(root)
  for kind in ('images', 'labels'):
    shutil.copy(root / kind / 'c5.nii.gz', root / kind / 'd.nii.gz')
  before = sorted(tmp_path.rglob('*'))
  found = survey_of(root)
  assert sorted(tmp_path.rglob('*')) == before
  assert [str(p) for p in found.problems] == prepared_problems(root, tmp_path / 's')
  assert len(found.problems) == 6 and sorted(found.cases) == ['c5', 'c6', 'c7', 'd']


def test_cases_that_cannot_be_listed(tmp_path):
  root = make(tmp_path / 'raw')
  for path in ('labels/c1.nii.gz', 'images/c2.nii.gz'):
    (root / path).unlink()
  with pytest.raises(InputErrors, match='c1.nii.gz: has no label file') as e:
    survey_of(root)
  assert [str(p) for p in e.value.errors] == prepared_problems(root, tmp_path / 's')


def test_a_file_that_cannot_be_read_and_a_worker_that_was_given_up(tmp_path, monkeypatch):
  root = make(tmp_path / 'raw')
  real = survey.sources.digests

  def digests(case):
    if case.id == 'c1':
      raise InputError(case.image, 'cannot be read (Permission denied)', 'Check the file and its permissions')
    return real(case)

  monkeypatch.setattr(survey.sources, 'digests', digests)
  lost = InputError('c2', 'the process that read it was killed 3 times', 'Probably too little memory')
  run = lambda function, jobs, **_: [
    {'id': 'c2', 'problems': [lost]} if job['id'] == 'c2' else function(job) for job in reversed(jobs)
  ]
  monkeypatch.setattr(survey.worker_pool, 'run_jobs', run)
  found = survey_of(root)
  assert 'Permission denied' in str(found.problems[0]) and found.problems[1] == lost and len(found.problems) == 2
  assert list(found.cases) == ['c0', 'c3']


def test_the_notes_are_those_of_a_preparation(tmp_path, caplog):
  caplog.set_level(logging.INFO, 'afw_jax')
  root = make(tmp_path / 'raw', n=6, numTraining=9)
  grid = volumes.read_image(root / 'images' / 'c2.nii.gz').geometry
  volumes.write_image(root / 'images' / 'c2.nii.gz', np.abs(scan(2)) + 700, grid)  # no HU
  changes = {'size': (24, 24), 'fit': 'crop_pad', 'num_cases': 5}  # which cuts organs off
  prepare_run(config(root, **changes), tmp_path / 'run')
  said = [r.getMessage() for r in caplog.records]
  found = survey_of(root, **changes)
  assert found.notes and found.notes == [text for text in said if not text.startswith(('prepared cases', 'preparing'))]
  assert {'cuts off', 'numTraining'} <= {w for w in ('cuts off', 'numTraining') if any(w in n for n in found.notes)}


@pytest.mark.parametrize('axes', ['RAS', 'LPS', 'PIR', 'SAL'])
def test_swapped_kidneys_in_any_orientation(tmp_path, axes):
  """The internal x axis points to the left of the patient."""
  root = make(tmp_path / 'raw', n=0, labels={'background': 0, 'left_kidney': 2, 'right_kidney': 1})
  grid = geometry()
  order = {'R': 0, 'L': 0, 'A': 1, 'P': 1, 'S': 2, 'I': 2}
  columns = np.array(grid.affine)[:3, :3]
  turned = np.eye(4)
  for i, axis in enumerate(axes):
    turned[:3, i] = columns[:, order[axis]] * (1 if axis in 'RAS' else -1)
  shape = tuple(SHAPE[::-1][order[axis]] for axis in axes)
  turned = type(grid)(shape=shape, affine=turned.tolist())
  for i in range(2):
    label = np.zeros(SHAPE, np.uint8)
    left, right = (slice(30, 40), slice(5, 15)) if i == 0 else (slice(5, 15), slice(30, 40))
    label[2:4, 10:20, left], label[2:4, 10:20, right] = 2, 1
    volumes.write_image(root / 'images' / f'c{i}.nii.gz', scan(i), turned)
    volumes.write_label(root / 'labels' / f'c{i}.nii.gz', label, turned)
  found = survey_of(root)
  assert found.problems == []
  assert found.standing_out == [
    "c1: left_kidney lies 31 mm towards the patient's right of right_kidney: are they swapped?"
  ]


def test_an_outlier_and_a_label_map_of_another_scan(tmp_path):
  root = make(tmp_path / 'raw', n=5)
  small = np.where(label_map(3) == 1, 0, label_map(3))
  small[2, 10:12, 10:12] = 1
  volumes.write_label(root / 'labels' / 'c3.nii.gz', small, geometry(axes='RPI'))
  volumes.write_label(root / 'labels' / 'c4.nii.gz', label_map(0), geometry())
  found = survey_of(root)
  assert found.problems == [] and len(found.standing_out) == 2
  assert found.standing_out[0].startswith('c3: liver has 0.022 mL')  # four voxels of 3 x 1.5 x 1.25 mm
  assert found.standing_out[1].startswith('c4: its label map is that of c0, voxel by voxel')
