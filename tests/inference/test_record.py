"""volumes.json and volumes.csv: rows of many starts and processes, other tables, other class lists."""

import csv
import json
import subprocess
import sys

import pytest
from conftest import environment

from afw_jax.data.formats.dicom_series import PassedOver
from afw_jax.errors import InputError
from afw_jax.inference import record, statistics


def row(name, **volume_ml):
  made_by = {'workdir': 'runs/x', 'step': 1, 'sha256': 'x'}
  return {'scan': name, 'output': f'{name}.nii.gz', 'volume_ml': volume_ml or {'liver': 1.5}, 'checkpoint': made_by}


def add(folder, *rows):
  for one in rows:
    with record.locked(str(folder)):
      record.add(str(folder), one)


def rows_of(folder):
  with open(folder / 'volumes.csv', encoding='utf-8') as file:
    return list(csv.DictReader(file))


def test_a_row_takes_the_place_of_its_own_only(tmp_path):
  add(tmp_path, row('b'), row('a'), row('b', liver=2.5))
  assert [(r['scan'], r['liver_ml']) for r in rows_of(tmp_path)] == [('a', '1.5'), ('b', '2.5')]


def test_rows_belong_to_label_maps_not_to_names(tmp_path):
  add(tmp_path, row('scan'), {**row('scan'), 'output': 'p2.nii.gz'})
  assert [r['label_map'] for r in rows_of(tmp_path)] == ['p2.nii.gz', 'scan.nii.gz']


def test_networks_with_other_organs_keep_their_columns(tmp_path):
  add(tmp_path, row('a', liver=1, spleen=2), row('b', kidney=3, liver=4))
  assert list(rows_of(tmp_path)[0])[:4] == ['scan', 'liver_ml', 'spleen_ml', 'kidney_ml']
  assert [(r['liver_ml'], r['spleen_ml'], r['kidney_ml']) for r in rows_of(tmp_path)] == [
    ('1', '2', ''),
    ('4', '', '3'),
  ]


def test_statistics_are_behind_the_columns_of_before_and_empty_in_older_rows(tmp_path):
  found = statistics.OrganStatistics(3, 0.5, 40.25, 2.0, ((1, 2), (3, 4), (5, 6)), (-1.0, 2.0, 3.0), True, 2)
  absent = statistics.OrganStatistics().to_json()
  of_a = {'liver': found.to_json(), 'spleen': absent}
  add(tmp_path, {**row('a', liver=0.5, spleen=0), 'statistics': of_a, 'intensity_unit': 'HU'}, row('b', liver=1))
  a, b = rows_of(tmp_path)
  assert list(a)[:6] == ['scan', 'liver_ml', 'spleen_ml', 'label_map', 'checkpoint', 'intensity_unit']
  assert (a['liver_mean'], a['liver_x_mm'], a['liver_k_last'], a['intensity_unit']) == ('40.25', '-1.0', '6', 'HU')
  assert (a['liver_touches_border'], a['liver_components'], a['spleen_components']) == ('1', '2', '0')
  assert a['spleen_mean'] == b['liver_mean'] == b['intensity_unit'] == ''
  record.check(str(tmp_path))  # its own columns are not those of another table


def test_processes_at_the_same_time_lose_no_row(tmp_path):
  code = (
    'import sys; sys.path[:0] = ["tests/inference", "tests"]; import pathlib, test_record as t\n'
    'for i in range(8): t.add(pathlib.Path(sys.argv[1]), t.row(f"{sys.argv[2]}{i}"))'
  )
  run = lambda name: subprocess.Popen([sys.executable, '-c', code, str(tmp_path), name], env=environment())
  processes = [run(name) for name in 'abcd']
  assert [p.wait(timeout=120) for p in processes] == [0] * 4
  assert sorted(r['scan'] for r in rows_of(tmp_path)) == sorted(f'{n}{i}' for n in 'abcd' for i in range(8))
  assert len(json.loads((tmp_path / 'volumes.json').read_text(encoding='utf-8'))['scans']) == 32


def test_tables_of_an_older_version_are_added_to(tmp_path):
  old = {'unit': 'mL', 'scans': [{'scan': 'a', 'output': 'some/where/a.nii.gz', 'volume_ml': {'liver': 1.0}}]}
  (tmp_path / 'volumes.json').write_text(json.dumps(old), encoding='utf-8')
  (tmp_path / 'volumes.csv').write_text('scan,liver_ml\na,1.0\n', encoding='utf-8')
  record.check(str(tmp_path))
  add(tmp_path, row('b'))
  assert [(r['scan'], r['label_map']) for r in rows_of(tmp_path)] == [('a', 'a.nii.gz'), ('b', 'b.nii.gz')]


@pytest.mark.parametrize(
  'name, text',
  [
    ('volumes.csv', 'patient;age\n1;50\n'),
    ('volumes.csv', 'scan,liver_ml,age\na,1,50\n'),
    ('volumes.csv', '\ufeffscan,liver_ml\na,1\n'),  # without its volumes.json
    ('volumes.json', '[1, 2]'),
    ('volumes.json', '{"scans": [1]}'),
    ('volumes.json', '{"unit": "mL", "sca'),
  ],
)
def test_other_tables_are_not_destroyed(tmp_path, name, text):
  if 'age' in text:
    (tmp_path / 'volumes.json').write_text('{"unit": "mL", "scans": []}', encoding='utf-8')
  (tmp_path / name).write_text(text, encoding='utf-8')
  with pytest.raises(InputError, match=name):
    record.check(str(tmp_path))
  assert (tmp_path / name).read_text(encoding='utf-8') == text
  assert record.files_below(str(tmp_path)) == set()  # in a folder of scans it is a file like any other


def test_the_rest_is_noted_for_its_own_source(tmp_path):
  failure = {'scan': 'b', 'output': 'b.nii.gz', 'source': '/in/b.nii.gz', 'problem': 'torn'}
  record.note_rest('/in', str(tmp_path), [failure], [PassedOver('/in/x.mha', 'is not read')])
  record.note_rest('/in2', str(tmp_path), [], [PassedOver('/in2/y.mha', 'is not read')])
  content = record.read(str(tmp_path))
  assert content['failed'] == [failure] and [p['path'] for p in content['passed_over']] == ['/in/x.mha', '/in2/y.mha']
  add(tmp_path, row('b'))
  record.note_rest('/in', str(tmp_path), [], [])
  content = record.read(str(tmp_path))
  assert content['failed'] == [] and [p['path'] for p in content['passed_over']] == ['/in2/y.mha']
