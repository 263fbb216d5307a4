import json

import numpy as np
import pytest
from scored_run import make_pooled, make_run

from afw_jax.errors import InputError
from afw_jax.metrics import SCORES, UNITS, score_case
from afw_jax.report.report import report
from afw_jax.report.runs import check_unseen, read_run
from afw_jax.system import atomic_files

LABELS = {'found': 1, 'missed': 2, 'false': 3, 'absent': 4}


def pair():
  """(prediction, truth) with one organ found, one missed, one predicted where there is none, and one in neither."""
  true, pred = np.zeros((4, 8, 8), int), np.zeros((4, 8, 8), int)
  true[1:3, 1:5, 1:5] = pred[1:3, 1:5, 2:5] = 1
  true[0, 6:, :2] = 2
  pred[0, 6:, 6:] = 3
  return pred, true


@pytest.mark.parametrize('convention', UNITS)
def test_reads_the_scores_that_were_written(tmp_path, convention):
  scores = score_case(*pair(), spacing_mm=(3, 1, 1), labels=LABELS, convention=convention)
  atomic_files.write_json(tmp_path / 'config.json', {'loss': 'ce_dice'})
  record = {'case': 'a', 'convention': convention, 'nsd_tolerance_mm': 2.0, 'organs': list(LABELS), 'scores': scores}
  atomic_files.write_json(tmp_path / 'cases' / 'a.json', record)
  text = (tmp_path / 'cases' / 'a.json').read_text(encoding='utf-8')
  assert ('null' in text) == (convention in ('strict', 'monai')) and 'NaN' not in text and 'Infinity' not in text
  run = read_run(str(tmp_path))
  for name in SCORES:  # nan and infinity, which are null in the file, come back
    np.testing.assert_array_equal(run.scores[name][0], [scores[organ][name] for organ in LABELS], name)
  assert run.flags['absent'].tolist() == [[False, False, False, True]]
  assert run.flags['missed'].tolist() == [[False, True, False, False]]
  assert run.loss == 'ce_dice' and run.network == run.split == 'not recorded' and run.training_splits == (None,)


@pytest.mark.parametrize('given, shown', [
  ({'gamma': 1.0, 'learned_weights': False}, {'gamma': 1.0, 'learned_weights': False}),  # of an earlier version
  ({'weights': 'learned', 'learned_weights': False}, {'weights': 'equal'}),
  ({'weights': 'entropic', 'learned_weights': True}, {'weights': 'entropic'}),
])  # fmt: skip
def test_options_of_the_loss_do_not_contradict_each_other(tmp_path, given, shown):
  workdir = make_run(tmp_path / 'run')
  atomic_files.write_json(tmp_path / 'run' / 'config.json', {'loss': {'name': 'ce_afw', 'ce_afw': given}})
  assert read_run(workdir).loss_options == shown


def test_report_of_null_scores(tmp_path):
  text = (tmp_path / report(make_run(tmp_path / 'run', {'a': (None, None)}))['report']).read_text(encoding='utf-8')
  assert 'Only 1 case(s)' in text and 'nan' not in text and 'None' not in text


@pytest.mark.parametrize('used, split, refused', [
  ('train', 'train', False), ('train', 'val', True), ('train', 'test', True), ('val', 'val', False),
  ('val', 'test', True), ('val', 'train', True), ('test', 'test', False), ('test', 'val', False),
  ('none', 'test', False), (None, 'test', False),
])  # fmt: skip
def test_a_case_used_in_training_is_not_scored_as_unseen(tmp_path, used, split, refused):
  workdir = make_run(tmp_path / 'run', {'a': (0.5, 0.5)}, split=split, training_split=used)
  if not refused:
    check_unseen(workdir, split, {'a': used})
    assert read_run(workdir).training_splits == (used,)
    return
  for call in (lambda: check_unseen(workdir, split, {'b': 'test', 'a': used}), lambda: read_run(workdir)):
    with pytest.raises(InputError, match=f"case a would be scored as '{split}', but its scan was in '{used}'"):
      call()


def spoil(name, change):
  def f(folder):
    path = folder / 'cases' / name
    record = json.loads(path.read_text(encoding='utf-8'))
    change(record)
    path.write_text(json.dumps(record), encoding='utf-8')

  return f


def write(content):
  return lambda folder: (folder / 'cases' / 'b.json').write_bytes(content)


@pytest.mark.parametrize(
  'harm, said',
  [
    (lambda f: (f / 'config.json').unlink(), 'config.json: does not exist'),
    (lambda f: [p.unlink() for p in (f / 'cases').iterdir()], 'contains no scores. Run --mode=evaluate'),
    (write(b'{"case": "b"'), r'b.json: is damaged'),
    (write(b'\xff\xfe\x00'), r'b.json: is damaged'),
    (write(b'[]'), 'b.json: is not a JSON object'),
    (spoil('b.json', lambda r: r.update(convention='monai')), "b.json: has convention 'monai'"),
    (spoil('b.json', lambda r: r.update(nsd_tolerance_mm=1)), 'b.json: has nsd_tolerance_mm 1'),
    (spoil('b.json', lambda r: r.update(split='val')), "b.json: has split 'val'"),
    (spoil('b.json', lambda r: r.update(checkpoint_step=7)), 'b.json: has checkpoint_step 7'),
    (spoil('b.json', lambda r: r['settings'].update(checkpoint='last')), 'b.json: has settings'),
    (spoil('a.json', lambda r: r.update(convention='own')), f"'own' is unknown.*one of {', '.join(UNITS)}"),
    (spoil('b.json', lambda r: r.update(case='a')), 'contains a case twice'),
    (spoil('b.json', lambda r: r['scores'].pop('liver')), 'b.json: .*scores'),
    (spoil('b.json', lambda r: r['scores']['liver'].pop('dsc')), 'b.json: lacks scores of liver'),
    (spoil('b.json', lambda r: r['scores']['liver'].update(missed=None)), 'missed of liver is None'),
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


def test_pooled_folds(tmp_path):
  run = read_run(make_pooled(tmp_path / 'cv'))
  assert run.folds == ('1/2', '2/2') and run.cases == ('a', 'b', 'c') and run.unfinished == ()
  assert read_run(make_pooled(tmp_path / 'late', unfinished=('2/2',))).unfinished == ('2/2',)
  assert read_run(make_run(tmp_path / 'one', fold='2/5')).folds == ('2/5',)
  assert read_run(make_run(tmp_path / 'none', fold='')).folds == () == read_run(make_run(tmp_path / 'older')).folds


@pytest.mark.parametrize('harm, said', [
  (lambda f: (f / 'cases' / 'b.json').unlink(), 'are not the scores that were pooled: b are missing'),
  (lambda f: make_run(f, {'d': (0.5, 0.5)}, split='val', training_split='val', fold='2/2', checkpoint_step=101),
   'are not the scores that were pooled: d are missing or not among them'),
  (spoil('b.json', lambda r: r.update(fold='1/2', checkpoint_step=100)), 'are not the scores that were pooled: b'),
  (spoil('c.json', lambda r: r.update(checkpoint_step=7)), "c.json: has checkpoint_step 7, .*a.json has 100"),
  (spoil('b.json', lambda r: r.update(convention='monai')), "b.json: has convention 'monai'"),
  (lambda f: (f / 'folds.json').write_text('{"folds": []}'), 'folds.json: is not a list of folds'),
  (lambda f: (f / 'folds.json').write_text('{"folds'), 'folds.json: is damaged'),
  (lambda f: (f / 'folds.json').unlink(), "b.json: has fold '2/2', .*a.json has '1/2'"),
])  # fmt: skip
def test_pooled_folds_that_are_not_whole(tmp_path, harm, said):
  workdir = make_pooled(tmp_path / 'cv')
  harm(tmp_path / 'cv')
  with pytest.raises(InputError, match=said):
    read_run(workdir)
