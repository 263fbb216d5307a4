"""What is usual in training, kept in checkpoints, and the scans that differ from it."""

import json

import numpy as np
import pytest
from tiny_dataset import SMALL, geometry, make, prepare_and_select, scan

from afw_jax.data import usual
from afw_jax.data.formats import volumes
from afw_jax.data.sets import intensities

SPLIT = {'train': ['c0', 'c1', 'c2', 'c3'], 'val': ['c4'], 'test': []}
CROPPED = {**SMALL, 'size': (24, 24), 'spacing_mm': (None, None, None), 'fit': 'crop_pad'}


@pytest.fixture
def odd(tmp_path):
  """Five cases; in the last one the body is 220 HU brighter, which shows only beside the others."""
  root = make(tmp_path / 'raw', n=5, split=SPLIT)
  for i in range(5):
    body = np.clip(scan(i), -150, 250)
    body[:, :4], body[:, -4:] = -1000, -1000
    if i == 4:
      body[:, 4:-4] += 220
    volumes.write_image(root / 'images' / f'c{i}.nii.gz', body, geometry(axes=('RAS', 'LPS', 'LAS', 'RPI')[i % 4]))
  return prepare_and_select('folder', root, tmp_path / 's', **CROPPED)


def test_a_case_unlike_the_training_cases_is_noted_when_preparing(odd):
  index, selection = odd
  notes = usual.notes_on_training(index, selection)
  assert [note.split(':')[0] for note in notes] == ['c4'] and 'unlike that of the training scans' in notes[0]
  assert not any('unlike' in note for note in selection.notes)


def test_a_training_case_is_compared_with_the_others(odd):
  index, selection = odd
  everything = type(selection)(
    **{**vars(selection), 'splits': {'train': [f'c{i}' for i in range(5)], 'val': [], 'test': []}}
  )
  assert [note.split(':')[0] for note in usual.notes_on_training(index, everything)] == ['c4']


def test_too_few_cases_say_nothing(odd):
  index, selection = odd
  few = type(selection)(**{**vars(selection), 'splits': {**SPLIT, 'train': ['c0', 'c1']}})
  assert usual.notes_on_training(index, few) == []


def test_the_record_is_json_and_old_ones_lack_it(odd):
  index, selection = odd
  record = {'options': index['options'], 'usual': usual.usual_of_training(index, selection)}
  assert json.loads(json.dumps(record)) == record
  described, window = index['cases']['c4']['intensities'], selection.windows['c4']
  assert 'unlike' in usual.notes_on(described, window, record)[0]
  old = {'options': index['options']}
  assert usual.notes_on(described, window, old) == [] and usual.overhang_of(old) is None
  constant = intensities.describe(np.zeros((3, 4, 5), np.int16), True)
  assert usual.notes_on(constant, window, old) == ['every voxel of the scan has the value 0']


def test_cases_of_which_an_organ_is_cut_off_do_not_say_how_far_bodies_reach(odd):
  index, selection = odd
  reached = usual.usual_of_training(index, selection)['position']
  assert all(index['cases'][i]['cut_off'] for i in selection.ids) and reached == [[[[0.0, 0.0]], 0.0]] * 3
  for case_id in ('c0', 'c1'):
    index['cases'][case_id]['cut_off'] = {}
    index['cases'][case_id]['overhang'] = [[0, 0, 0], [0.04, 0.04, 0], [int(case_id[1]) / 10, 0.1, 0.2]]
  assert usual.usual_of_training(index, selection)['position'] == [
    [[[0, 0]], 0],
    [[[0.04, 0.04]], 0],
    [[[0, 0.1], [0.1, 0.1]], 0.2],
  ]
