import csv
import json
import math
import pathlib
import statistics as stdlib

import numpy as np
import pytest

from afw_jax.errors import InputError
from afw_jax.metrics import SCORES, score_case
from afw_jax.report import report as report_module
from afw_jax.report.report import compare, format_table, report, summary
from afw_jax.report.runs import read_run
from afw_jax.report.stats import paired, summarise

ORGANS = ('liver', 'gall_bladder')
DSC = {'a': (0.9, 0.5), 'b': (0.8, 0.0), 'c': (0.7, None)}  # None: in neither
CONFIG = {
  'data': {'dataset': 'synapse'}, 'model': {'name': 'unet'},
  'loss': {'name': 'ce_afw', 'ce_afw': {'gamma': 0.25}, 'ce_dice': {'squared': False}},
}  # fmt: skip


def organ_scores(dsc):
  absent, missed = dsc is None, bool(dsc == 0)
  values = {'dsc': dsc, 'hd_mm': 9.0, 'hd95_pooled_mm': 30.0 if missed else 10 * (1 - (dsc or 0)), 'hd95_max_mm': 6.0,
            'assd_mm': 1.5, 'nsd': 0.75}  # fmt: skip
  return {k: math.nan if absent else v for k, v in values.items()} | {
    'missed': missed, 'false_positive': False, 'absent': absent,
    'true_voxels': 0 if absent else 100, 'pred_voxels': 0, 'true_ml': 1.25, 'pred_ml': 0.0,
  }  # fmt: skip


def make_run(folder, dsc=DSC, *, config=CONFIG, **extra):
  (folder / 'cases').mkdir(parents=True)
  (folder / 'config.json').write_text(json.dumps(config))
  for case, values in dsc.items():
    record = {'case': case, 'convention': 'strict', 'spacing_mm': [3, 1, 1], 'nsd_tolerance_mm': 2.0, 'split': 'test'}
    record |= {'scores': {o: organ_scores(v) for o, v in zip(ORGANS, values)}} | extra
    (folder / 'cases' / f'{case}.json').write_text(json.dumps(record))
  return str(folder)


def text_of(path):
  return pathlib.Path(path).read_text()


def rows_of(path):
  with open(path) as f:
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
               'gall_bladder', 'Only 3 case(s)', '(../pictures/a.png)', 'within 2.0 mm', '80.00 ± 10.00'):  # fmt: skip
    assert said in text, said
  tables = [line.count('|') for line in text.splitlines() if line.startswith('|')]
  assert len(tables) > 8 and 'nan' not in text
  assert '| b | 40.00 |' in text.split('## Lowest cases')[1]


def test_split_and_organ_order(tmp_path):
  text = text_of(report(make_run(tmp_path / 'a', split='val', organs=ORGANS[::-1]))['report'])
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


def test_reads_what_score_case_gives_and_null(tmp_path):
  true, pred = np.zeros((4, 6, 6), int), np.zeros((4, 6, 6), int)
  true[1:3, 1:5, 1:5] = pred[1:3, 1:5, 2:5] = 1
  scores = score_case(pred, true, spacing_mm=(3, 1, 1), labels={'liver': 1, 'gall_bladder': 2})
  (tmp_path / 'cases').mkdir()
  (tmp_path / 'config.json').write_text(json.dumps({'loss': 'ce_dice'}))
  record = {'case': 'a', 'convention': 'strict', 'nsd_tolerance_mm': 2.0, 'scores': scores}
  (tmp_path / 'cases' / 'a.json').write_text(json.dumps(record).replace('NaN', 'null'))
  run = read_run(str(tmp_path))
  assert run.loss == 'ce_dice' and run.network == 'not recorded' and run.organs == ('liver', 'gall_bladder')
  assert [run.scores[k][0, 0] for k in SCORES] == [scores['liver'][k] for k in SCORES]
  assert np.isnan(run.scores['dsc'][0, 1]) and run.flags['absent'].tolist() == [[False, True]]
  text = text_of(report(str(tmp_path))['report'])
  assert 'Only 1 case(s)' in text and 'nan' not in text


def test_summary_lists_files_and_says_when_nothing_can_be_drawn(tmp_path, monkeypatch):
  workdir = make_run(tmp_path / 'run')
  records = [{'step': s, 'train/loss': 1 / s, 'weight/liver': 1.0} for s in (1, 2, 3)]
  (tmp_path / 'run' / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records))
  text = '\n'.join(summary(workdir))
  assert 'liver' in text and 'curves.png' in text and 'learned_weights.png' in text and 'report.md' in text
  assert '(curves.png)' in (tmp_path / 'run' / 'report' / 'report.md').read_text()
  monkeypatch.setattr(report_module, '_can_draw', lambda: False)
  assert 'pip install afw_jax[viz]' in summary(workdir)[-1]


def test_compare(tmp_path):
  rng = np.random.default_rng(0)
  base = {f'case{i:02d}': tuple(rng.uniform(0.5, 0.9, 2)) for i in range(14)}
  better = {
    case: tuple(v + 0.05 + 0.01 * rng.random() for v in values) for case, values in base.items() if case != 'case03'
  }
  other = CONFIG | {'loss': {'name': 'ce_dice'}}
  text = compare([make_run(tmp_path / 'one', base, config=other), make_run(tmp_path / 'two', better)])
  assert '13 common case(s) (1 others left out)' in text and '**strict**' in text and 'Only' not in text
  difference = 100 * np.mean([np.mean(better[c]) - np.mean(base[c]) for c in better])
  (row,) = [line for line in text.splitlines() if line.startswith('| ce_afw - ce_dice')]
  assert f'{difference:+.2f} [' in row and '< 0.001' in row and row.endswith('| 13 |')
  mean = 100 * np.mean([base[c][1] for c in better])
  assert f'{mean:.2f}' in text.split('## DSC of each organ')[1]
  same = compare([str(tmp_path / 'one'), str(tmp_path / 'one')])
  assert '+0.00 [+0.00, +0.00] | 1.000' in same


def test_compare_refuses_what_cannot_be_compared(tmp_path):
  one = make_run(tmp_path / 'one')
  with pytest.raises(InputError, match='Name two or more'):
    compare([one])
  with pytest.raises(InputError, match="has convention 'monai'"):
    compare([one, make_run(tmp_path / 'two', convention='monai')])
  with pytest.raises(InputError, match='no case in common'):
    compare([one, make_run(tmp_path / 'three', {'z': (0.5, 0.5)})])
  with pytest.raises(InputError, match="has dataset 'chaos'"):
    compare([one, make_run(tmp_path / 'four', config=CONFIG | {'data': {'dataset': 'chaos'}})])


def spoil(name, change):
  def f(folder):
    path = folder / 'cases' / name
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))

  return f


@pytest.mark.parametrize(
  'harm, said',
  [
    (lambda f: (f / 'config.json').unlink(), 'config.json: does not exist'),
    (lambda f: [p.unlink() for p in (f / 'cases').iterdir()], 'holds no scores. Run --mode=evaluate'),
    (lambda f: (f / 'cases' / 'b.json').write_text('{"case": "b"'), r'b.json: cannot be read'),
    (lambda f: (f / 'cases' / 'b.json').write_bytes(b'\xff\xfe\x00'), r'b.json: cannot be read'),
    (lambda f: (f / 'cases' / 'b.json').write_text('[]'), 'holds no JSON object'),
    (spoil('b.json', lambda r: r.update(convention='monai')), "b.json: has convention 'monai'"),
    (spoil('b.json', lambda r: r.update(nsd_tolerance_mm=1)), 'b.json: has nsd_tolerance_mm 1'),
    (spoil('a.json', lambda r: r.update(convention='own')), "unknown convention 'own'"),
    (spoil('b.json', lambda r: r.update(case='a')), 'holds a case twice'),
    (spoil('b.json', lambda r: r['scores'].pop('liver')), 'b.json: scores'),
    (spoil('b.json', lambda r: r['scores']['liver'].pop('dsc')), 'b.json: lacks scores of liver'),
    (spoil('b.json', lambda r: r.update(organs=['liver', 'spleen'])), 'b.json: lists the organs'),
    (spoil('b.json', lambda r: r.pop('scores')), 'b.json: lacks scores'),
  ],
)
def test_bad_workdir(tmp_path, harm, said):
  workdir = make_run(tmp_path / 'run')
  harm(tmp_path / 'run')
  with pytest.raises(InputError, match=said):
    report(workdir)
  assert not (tmp_path / 'run' / 'report').exists()


def test_summarise():
  s = summarise([1, 2, math.nan, 6])
  assert (s.mean, s.n) == (3, 3) and s.sd == pytest.approx(stdlib.stdev([1, 2, 6])) and 1 <= s.low < 3 < s.high <= 6
  assert summarise([1, 2, 6]) == s
  many = np.random.default_rng(0).random(20)
  assert summarise(many) == summarise(many, seed=0) != summarise(many, seed=1)
  assert summarise([4, 4, 4])[:4] == (4, 0, 4, 4)
  one = summarise([5])
  assert (one.mean, one.n) == (5, 1) and math.isnan(one.sd) and math.isnan(one.low)
  assert summarise([]).n == 0 and math.isnan(summarise([math.nan]).mean)
  assert summarise([1, math.inf]).mean == math.inf
  narrow, wide = summarise([1, 2, 6, 9], level=0.5), summarise([1, 2, 6, 9], level=0.99)
  assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize('n, least, most', [(4, 0.68, 0.88), (25, 0.89, 0.98)])
def test_interval_covers_as_often_as_the_report_says(n, least, most):
  rng = np.random.default_rng(0)
  hits = 0
  for seed in range(300):
    s = summarise(rng.normal(3, 2, n), seed=seed)
    hits += s.low <= 3 <= s.high
  assert least < hits / 300 < most


def test_paired():
  first = np.array([0.5, 0.6, 0.7, 0.8, 0.9, math.nan])
  p = paired(first, first + np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0]))
  assert p.difference == pytest.approx(0.03) and p.n == 5 and 0.01 <= p.low < 0.03 < p.high <= 0.05
  assert p.p == pytest.approx(2 / 2**5) == p.least_p  # every case better: the least p that five cases can give
  back = paired(first + np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0]), first)
  assert back.difference == pytest.approx(-p.difference) and back.p == p.p
  assert paired(first, first)[:4] == (0, 0, 0, 1)
  lone = paired([1], [3])
  assert lone.difference == 2 and math.isnan(lone.p) and lone.n == 1
