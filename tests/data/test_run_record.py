"""A run keeps the split of its checkpoint, and notices data that is not what it was trained on."""

import json

import pytest
from store_index import CHAOS, index

from afw_jax.data.run_record import changed_cases, data_record, differences, recorded_selection, trained_part
from afw_jax.data.selection import SelectionOptions, select
from afw_jax.errors import InputError

KEYS = ('organs', 'options', 'splits')


def record_of(store_index, **options):
  """As a checkpoint has it, through JSON."""
  return json.loads(json.dumps(data_record(store_index, select(store_index, SelectionOptions(**options)))))


def test_a_run_keeps_its_cases_when_others_are_added():
  before = index(prepared=CHAOS[:12], listed=CHAOS[:12])
  chosen, record = select(before, SelectionOptions(window='percentile')), record_of(before, window='percentile')
  grown = index()
  assert select(grown, SelectionOptions(window='percentile')).splits != chosen.splits
  again = recorded_selection(grown, record)
  assert again.splits == chosen.splits and again.windows == chosen.windows and again.window == 'percentile'
  assert again.contents == chosen.contents
  assert not differences(record, data_record(grown, again), KEYS)


@pytest.mark.parametrize('left', [[], CHAOS[1:]], ids=['none', 'all but one'])
def test_a_store_without_the_cases_of_a_run_is_refused(left):
  record = record_of(index())
  with pytest.raises(InputError, match='lacks .* of the 20 cases that this run has begun with .case_01.*=prepare'):
    recorded_selection(index(prepared=left), record)


def test_no_recorded_selection():
  record = record_of(index())
  assert recorded_selection(index(), {**record, 'splits': None}) is None  # imported weights
  assert recorded_selection({**index(), 'name': 'other'}, record) is None


def test_records_are_compared_without_the_format_of_the_store():
  record = record_of(index())
  assert list(record) == [
    'name', 'modality', 'organs', 'output_ids', 'window', 'options', 'splits', 'fold', 'scans', 'contents'
  ]  # fmt: skip
  assert record['window'] == [50, 350] == record['options']['window']
  older = {**record, 'options': {'format': 1, **record['options']}}
  assert differences(older, record, KEYS) == {}
  other = record_of(index(), window='transunet', seed=1)
  assert set(differences(record, other, KEYS)) == {'options', 'splits'}
  assert differences({**record, 'splits': None}, other, ('splits',)) == {}


def test_cases_of_other_content_are_named():
  record = record_of(index())
  train, val = record['splits']['train'][0], record['splits']['val'][0]
  changed = index(**{i: dict(content_sha256='new') for i in (train, val)})
  now = record_of(changed)
  assert changed_cases(record, record_of(index()), ('train', 'val', 'test')) == []
  assert changed_cases(record, now, ('train', 'val')) == sorted([train, val])
  assert changed_cases(record, now, ('val', 'test')) == [val]
  older = {key: value for key, value in record.items() if key != 'contents'}
  assert changed_cases(older, now, ('train', 'val')) == []  # it does not say


def test_the_part_of_a_case_is_known_by_its_id_and_by_its_scan():
  record = record_of(index())
  train, val = record['splits']['train'][0], record['splits']['val'][0]
  assert [trained_part(record, index(), i) for i in (train, val)] == ['train', 'val']
  scan = index()['cases'][train]['voxels_sha256']
  renamed = index(case_30=dict(voxels_sha256=scan), case_29=dict(voxels_sha256='never seen'))
  record['splits'] = {
    part: [i for i in ids if i not in ('case_29', 'case_30')] for part, ids in record['splits'].items()
  }
  record['scans'] = {i: digest for i, digest in record['scans'].items() if i not in ('case_29', 'case_30')}
  assert trained_part(record, renamed, 'case_30') == 'train'  # the same scan under a new name
  assert trained_part(record, renamed, 'case_29') == 'none'
  assert trained_part({**record, 'splits': None}, renamed, 'case_30') is None
  older = {key: value for key, value in record.items() if key != 'scans'}
  assert trained_part(older, renamed, 'case_30') == 'none'


def test_a_training_scan_in_the_place_of_a_test_scan_is_recognised():
  record = record_of(index(), fractions=(2, 1, 1))
  train, test = record['splits']['train'][0], record['splits']['test'][0]
  scan = index()['cases'][train]['voxels_sha256']
  swapped = index(**{test: dict(voxels_sha256=scan)})
  assert trained_part(record, swapped, test) == 'train'
  with pytest.raises(InputError, match='is the same scan as'):
    recorded_selection(swapped, record)


def test_a_run_keeps_its_fold():
  record = record_of(index(), fold='2/4')
  assert record['fold'] == '2/4' and recorded_selection(index(), record).fold == '2/4'
  assert record_of(index())['fold'] == ''
  del record['fold']  # a version without folds
  assert recorded_selection(index(), record).fold == ''
