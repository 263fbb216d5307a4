import csv
import json
import math
import pathlib
import statistics as stdlib

import pytest
from scored_run import ORGANS, SETTINGS, make_pooled, make_run

from afw_jax.metrics import UNITS
from afw_jax.report import report as report_module
from afw_jax.report.notes import RULES
from afw_jax.report.report import report, summary
from afw_jax.report.runs import read_run
from afw_jax.report.tables import format_table


def text_of(path):
  return pathlib.Path(path).read_text(encoding='utf-8')


def rows_of(path):
  with open(path, encoding='utf-8') as f:
    return list(csv.DictReader(f))


def test_table_numbers_by_hand(tmp_path):
  paths = report(make_run(tmp_path / 'run'))
  liver, gall, mean = rows_of(paths['table'])
  assert [r['organ'] for r in (liver, gall, mean)] == [*ORGANS, 'mean']
  assert {r['convention'] for r in (liver, gall, mean)} == {'strict'}
  assert float(liver['dsc_percent_mean']) == pytest.approx(80)
  assert float(liver['dsc_percent_sd']) == pytest.approx(stdlib.stdev([90, 80, 70]))
  assert float(gall['dsc_percent_mean']) == pytest.approx(25) and gall['dsc_percent_n'] == '2'
  assert float(gall['hd95_pooled_mm_mean']) == pytest.approx((5 + 30) / 2)
  assert float(mean['dsc_percent_mean']) == pytest.approx(stdlib.mean([70, 40, 70]))  # organs first, then cases
  assert float(mean['dsc_percent_sd']) == pytest.approx(stdlib.stdev([70, 40, 70]))
  assert [(r['cases'], r['missed'], r['false_positive'], r['absent']) for r in (liver, gall, mean)] == [
    ('3', '0', '0', '0'), ('3', '1', '0', '1'), ('3', '1', '0', '1')
  ]  # fmt: skip
  low, high = float(liver['dsc_percent_ci95_low']), float(liver['dsc_percent_ci95_high'])
  assert 70 <= low < 80 < high <= 90


def test_scores_csv_keeps_every_digit(tmp_path):
  dsc = {'a': (1 / 3, 0.1 + 0.2), 'b': (2 / 3, None)}
  rows = rows_of(report(make_run(tmp_path / 'run', dsc))['scores'])
  assert [(r['case'], r['organ']) for r in rows] == [(c, o) for c in dsc for o in ORGANS]
  assert [float(r['dsc']) for r in rows[:3]] == [1 / 3, 0.1 + 0.2, 2 / 3] and math.isnan(float(rows[3]['dsc']))
  assert rows[3]['absent'] == '1' and rows[0]['true_ml'] == '1.25' and rows[0]['convention'] == 'strict'


def test_report_names_what_a_reader_needs(tmp_path):
  workdir = make_run(tmp_path / 'run')
  (tmp_path / 'run' / 'pictures').mkdir()
  (tmp_path / 'run' / 'pictures' / 'a.png').write_bytes(b'')
  text = text_of(report(workdir)['report'])
  for said in ('unet with ce_afw on synapse', 'gamma=0.25', 'split `test`', '**strict**', 'HD95 (mm)', 'HD95 max (mm)',
               'gall_bladder', 'Only 3 case(s)', '(../pictures/a.png)', 'within 2.0 mm', '80.00 ± 10.00',
               'Predicted with checkpoint best, mirror_axes []'):  # fmt: skip
    assert said in text, said
  tables = [line.count('|') for line in text.splitlines() if line.startswith('|')]
  assert len(tables) > 8 and 'nan' not in text
  assert '| b | 40.00 |' in text.split('## Lowest cases')[1]


def test_pictures_are_linked_by_the_names_of_their_files(tmp_path):
  workdir = pathlib.Path(make_run(tmp_path / 'a [1]', {'p:q': (0.9, 0.5), 'a b': (0.8, 0.6)}))
  (workdir / 'pictures').mkdir()
  for name in ('p%3Aq', 'a b'):
    (workdir / 'pictures' / f'{name}.png').touch()
  text = pathlib.Path(report(str(workdir))['report']).read_text(encoding='utf-8')
  assert '![p:q](../pictures/p%253Aq.png)' in text and '![a b](../pictures/a%20b.png)' in text


def test_split_and_organ_order(tmp_path):
  text = text_of(report(make_run(tmp_path / 'a', split='val', training_split='val', organs=ORGANS[::-1]))['report'])
  assert 'Validation split' in text and text.index('| gall_bladder') < text.index('| liver')
  assert 'Validation split' not in text_of(report(make_run(tmp_path / 'b'))['report'])


def test_tex_has_equal_columns_and_escapes(tmp_path):
  text = text_of(report(make_run(tmp_path / 'run'))['tex'])
  rows = [line for line in text.splitlines() if line.endswith(r'\\')]
  assert len(rows) == 1 + len(ORGANS) + 1 and {row.count('&') for row in rows} == {5}
  assert r'gall\_bladder' in text and 'gall_bladder' not in text and 'strict' in text
  assert text.count('{') == text.count('}') and 'lrrrrr' in text and "``strict''" in text


def test_twice_the_same_bytes(tmp_path):
  workdir = make_run(tmp_path / 'run')
  first = {k: pathlib.Path(p).read_bytes() for k, p in report(workdir).items()}
  assert {k: pathlib.Path(p).read_bytes() for k, p in report(workdir).items()} == first


def test_voxels_are_not_called_millimetres(tmp_path):
  for name, extra in (('a', {'convention': 'transunet'}), ('b', {'has_mm': False})):
    workdir = make_run(tmp_path / name, **extra)
    paths = report(workdir)
    text = text_of(paths['report'])
    assert 'HD95 (voxels)' in text and '(mm)' not in text
    assert 'hd95_pooled_voxels' in rows_of(paths['scores'])[0] and 'HD95 voxels' in format_table(read_run(workdir))


def test_plain_table(tmp_path):
  lines = format_table(read_run(make_run(tmp_path / 'run'))).splitlines()
  assert 'strict' in lines[0] and '3 case(s)' in lines[0]
  assert lines[3].split()[:2] == ['liver', '80.00'] and lines[-1].split()[:2] == ['mean', '60.00']
  assert lines[4].split()[-2:] == ['1', '0'] and max(map(len, lines)) <= 120


def test_summary_lists_files_and_says_when_nothing_can_be_drawn(tmp_path, monkeypatch):
  workdir = make_run(tmp_path / 'run')
  records = [{'step': s, 'train/loss': 1 / s, 'weight/liver': 1.0} for s in (1, 2, 3)]
  (tmp_path / 'run' / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records), encoding='utf-8')
  text = '\n'.join(summary(workdir))
  assert 'liver' in text and 'curves.png' in text and 'learned_weights.png' in text and 'report.md' in text
  assert '(curves.png)' in text_of(tmp_path / 'run' / 'report' / 'report.md')
  monkeypatch.setattr(report_module, '_can_draw', lambda: False)
  assert 'pip install afw_jax[viz]' in summary(workdir)[-1]


def test_every_convention_is_explained():
  assert set(RULES) == set(UNITS)


def test_the_report_says_which_fold_or_folds(tmp_path):
  text = lambda workdir: open(report(workdir)['report'], encoding='utf-8').read()  # noqa: SIM115
  val = {'split': 'val', 'training_split': 'val'}
  one = make_run(tmp_path / 'one', fold='2/5', **val)
  assert '**Fold 2 of 5.**' in text(one) and 'split val, fold 2 of 5, metric' in summary(one)[1]
  assert '(val split, fold 2 of 5): mean' in (tmp_path / 'one' / 'report' / 'table.tex').read_text(encoding='utf-8')
  pooled = make_pooled(tmp_path / 'cv', unfinished=('1/2',))
  assert '**Pooled over 2 folds.**' in text(pooled) and '**Not finished: fold 1/2.**' in text(pooled)
  assert 'split val, 2 folds pooled, metric' in summary(pooled)[1]
  assert 'It also chose the checkpoint' in text(one)
  last = make_run(tmp_path / 'last', settings={**SETTINGS, 'checkpoint': 'last'}, **val)
  assert 'which these cases did not choose' in text(last) and 'It also chose' not in text(last)
  assert 'old 2' not in text(make_run(tmp_path / 'none', **val))
