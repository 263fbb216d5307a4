"""Pooling the folds of a cross-validation: every case once, by the network that held it out, or an error."""

import json
import os
import pathlib
import shutil

import pytest
from initial_run import make_run, small_run
from tiny_dataset import make

from afw_jax import cross_validation, evaluate, workdir
from afw_jax.data.run_record import check_folds
from afw_jax.errors import InputError
from afw_jax.inference import trained
from afw_jax.report import comparison, report
from afw_jax.report.runs import read_run
from afw_jax.system import atomic_files
from afw_jax.training import checkpoint

CASES = [f'c{i}' for i in range(5)]


@pytest.fixture(scope='module')
def raw(tmp_path_factory):
  return make(tmp_path_factory.mktemp('raw') / 'data', n=5)


@pytest.fixture(scope='module')
def folds(tmp_path_factory, raw):
  """Workdirs of both folds of two."""
  folder = tmp_path_factory.mktemp('runs')
  return [make_run(small_run(raw, **{'data.fold': f'{k}/2'}), folder / f'fold {k}') for k in (1, 2)]


@pytest.fixture(scope='module')
def pooled(folds, tmp_path_factory):
  """The pooled results of both; given in reverse order."""
  output = tmp_path_factory.mktemp('pooled') / 'cv'
  cross_validation.pool(folds[::-1], str(output))
  return output


@pytest.fixture
def evaluated(pooled, monkeypatch):
  """Workdirs of the runs that are evaluated, which takes what was evaluated for `pooled`."""
  seen = []

  def evaluate_quickly(config, folder, store_dir, output=None):
    seen.append(folder)
    meta = trained.read_meta(folder, config.eval.checkpoint)[1]
    for record in scored(pooled):
      if record['case'] in meta['data']['splits']['val']:
        made_by = evaluate.made_by(config, meta, record['content_sha256'])
        path = pathlib.Path(output or folder) / 'cases' / f'{record["case"]}.json'
        atomic_files.write_json(path, {**record, **made_by, 'split': config.eval.split.replace('test', 'val')})
        label = pathlib.Path('predictions') / f'{record["case"]}.nii.gz'
        (path.parent.parent / 'predictions').mkdir(exist_ok=True)
        shutil.copy(pooled / label, path.parent.parent / label)

  monkeypatch.setattr(evaluate, 'evaluate', evaluate_quickly)
  return seen


def scored(folder):
  return [json.loads(path.read_text(encoding='utf-8')) for path in sorted((folder / 'cases').iterdir())]


def files_below(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_every_case_is_scored_once_by_the_network_that_held_it_out(folds, pooled):
  records = scored(pooled)
  assert [record['case'] for record in records] == CASES
  metas = {k: checkpoint.read_meta(f'{folder}/checkpoints/last') for k, folder in enumerate(folds, 1)}
  for record in records:
    meta = metas[int(record['fold'][0])]
    assert record['case'] in meta['data']['splits']['val'] and record['split'] == record['training_split'] == 'val'
    assert record['checkpoint_sha256'] == checkpoint.digest(meta)
    assert (pooled / 'predictions' / f'{record["case"]}.nii.gz').exists()
  assert {path.stem for path in (pooled / 'pictures').iterdir()} < set(CASES)
  assert {path.name for path in pooled.iterdir()} == {
    *evaluate.RESULTS, 'config.json', 'environment.json', 'folds.json', '.lock'
  }  # fmt: skip
  for folder in folds:  # the runs stay as they were
    assert not os.path.exists(f'{folder}/cases')


def test_pooled_scores_are_reported_and_compared_like_those_of_a_run(pooled):
  text = report.report(str(pooled))['report']
  with open(text, encoding='utf-8') as file:
    text = file.read()
  assert '**Pooled over 2 folds.**' in text and '5 case(s) of split `val`' in text and 'Not finished' not in text
  assert read_run(str(pooled)).folds == ('1/2', '2/2')
  text = comparison.compare([str(pooled), str(pooled)])
  assert '5 common case(s)' in text and '**Pooled over 2 folds.**' in text


def test_what_is_current_is_not_evaluated_again(folds, pooled, evaluated, tmp_path):
  output = tmp_path / 'cv'
  shutil.copytree(pooled, output)
  cross_validation.pool(folds, str(output))
  assert not evaluated and scored(output) == scored(pooled)
  path = output / 'cases' / f'{next(r["case"] for r in scored(output) if r["fold"] == "2/2")}.json'
  path.write_text('{"torn', encoding='utf-8')
  cross_validation.pool(folds, str(output))
  assert evaluated == [folds[1]] and scored(output) == scored(pooled)
  config = small_run(workdir.read_config(folds[0])['data']['root'], **{'eval.convention': 'monai'})
  cross_validation.pool(folds, str(output), config)
  assert evaluated[1:] == folds and {r['convention'] for r in scored(output)} == {'monai'}


def test_the_results_of_a_run_itself_are_used_where_they_are_of_its_held_out_cases(folds, pooled, evaluated, tmp_path):
  for folder in folds:
    shutil.copytree(folder, tmp_path / os.path.basename(folder))
  copies = [str(tmp_path / f'fold {k}') for k in (1, 2)]
  own = [workdir.recorded_config(folder) for folder in copies]
  stores = [workdir.store_path(config, folds[0]) for config in own]
  evaluate.evaluate(own[0], copies[0], stores[0])
  own[1].eval.split = 'train'
  evaluate.evaluate(own[1], copies[1], stores[1])
  before = files_below(tmp_path / 'fold 2')
  evaluated.clear()
  for config, folder in zip(own, copies):
    shutil.copytree(stores[0], workdir.store_path(config, folder), dirs_exist_ok=True)
  cross_validation.pool(copies, str(tmp_path / 'cv'))
  assert evaluated == [copies[1]] and scored(tmp_path / 'cv') == scored(pooled)
  assert files_below(tmp_path / 'fold 2') == before


def test_after_an_interruption_the_folds_that_were_evaluated_are_kept(folds, pooled, evaluated, tmp_path, monkeypatch):
  output, real = tmp_path / 'cv', evaluate.evaluate

  def interrupted(config, folder, *rest):
    if folder == folds[1]:
      raise KeyboardInterrupt
    real(config, folder, *rest)

  with monkeypatch.context() as patch:
    patch.setattr(evaluate, 'evaluate', interrupted)
    with pytest.raises(KeyboardInterrupt):
      cross_validation.pool(folds, str(output))
  assert not (output / 'cases').exists() and not (output / 'config.json').exists()
  evaluated.clear()
  cross_validation.pool(folds, str(output))
  assert evaluated == [folds[1]] and scored(output) == scored(pooled)


def test_a_checkpoint_that_changes_meanwhile_is_noticed(folds, tmp_path, monkeypatch):
  monkeypatch.setattr(evaluate, 'evaluate', lambda *arguments: None)
  with pytest.raises(InputError, match='fold 1: got another checkpoint while it was evaluated'):
    cross_validation.pool(folds, str(tmp_path / 'cv'))


def test_a_fold_that_is_not_trained_to_its_end_is_named(folds, evaluated, tmp_path, monkeypatch, caplog):
  real = trained.read_meta
  change = lambda folder, meta: meta | {'total_steps': 7 if str(folder) == folds[1] else 0}
  monkeypatch.setattr(trained, 'read_meta', lambda workdir, which: ('', change(workdir, real(workdir, which)[1])))
  cross_validation.pool(folds, str(tmp_path / 'cv'))
  assert 'fold 2/2 is not trained to its end: 0 of 7 steps' in caplog.text and 'fold 1/2 is' not in caplog.text
  report.report(str(tmp_path / 'cv'))
  assert '**Not finished: fold 2/2.**' in (tmp_path / 'cv' / 'report' / 'report.md').read_text(encoding='utf-8')


def test_only_a_folder_of_pooled_results_is_replaced(folds, tmp_path):
  (tmp_path / 'cases').mkdir()
  (tmp_path / 'cases' / 'mine.txt').write_text('mine')
  before = files_below(tmp_path)
  for output, said in ((tmp_path, r'holds other files \(cases\)'), (folds[0], 'holds other files .*config.json')):
    with pytest.raises(InputError, match=said):
      cross_validation.pool(folds, str(output))
  with pytest.raises(InputError, match='is no folder that can be used'):
    cross_validation.pool(folds, str(tmp_path / 'cases' / 'mine.txt'))
  assert files_below(tmp_path) == before


def test_nothing_is_trained_among_pooled_results(pooled):
  with (
    pytest.raises(InputError, match='holds the pooled scores of a cross-validation'),
    workdir.claimed(str(pooled), workdir.recorded_config(str(pooled))),
  ):
    pass


def described(fold, parts='abcdef', **changes):
  """(config of a run, the entry 'data' of its checkpoint) of a fold of six cases."""
  config = small_run('raw', **{'data.fold': fold, **changes})
  number, count = map(int, fold.split('/')) if fold else (1, 6)
  val = list(parts[number - 1 :: count])
  splits = {'train': sorted(set(parts) - set(val)), 'val': val, 'test': ['t']}
  contents = {case: f'content of {case}' for case in (*parts, 't')}
  kept = {'name': 'x', 'organs': ['liver'], 'output_ids': {'liver': 1}, 'options': {'size': [32, 32]}}
  return config, {**kept, 'splits': splits, 'fold': fold, 'contents': contents}


def data(**changes):
  return lambda config, record: record.update(changes)


def splits(**changes):
  return lambda config, record: record['splits'].update(changes)


def config(**changes):
  changes = {key.replace('__', '.'): value for key, value in changes.items()}
  return lambda config, record: config.update_from_flattened_dict(changes)


@pytest.mark.parametrize('names, harm, said', [
  (['1/3', '3/3'], None, r'--workdir: the fold\(s\) 2/3 are missing, only 1/3, 3/3 are given'),
  (['2/3'], None, r'the fold\(s\) 1/3, 3/3 are missing, only 2/3 are given'),
  (['1/2', '2/2', '1/2'], None, 'run 2: holds out fold 1/2, and so does .*run 0. Give each fold once'),
  (['1/2', '2/3'], None, 'run 1: holds out fold 2/3, .*run 0 1/2: they are of other cross-validations'),
  (['1/2', ''], None, 'run 1: is not the run of a fold'),
  (['1/2', '2/2'], config(data__split_seed=1), 'run 1: has another config than .*run 0: data.split_seed is 1, there 0'),
  (['1/2', '2/2'], config(loss__name='ce_dice'), "run 1: has another config .*loss.name is 'ce_dice', there 'ce_afw'"),
  (['1/2', '2/2'], config(eval__convention='monai'), "run 1: has eval.convention 'monai', .*run 0 has 'strict'"),
  (['1/2', '2/2'], config(eval__checkpoint='last'), "run 1: has eval.checkpoint 'last', .*run 0 has 'best'"),
  (['1/2', '2/2'], config(eval__split='train'), "eval.split: is 'train', but the held-out cases are pooled"),
  (['1/2', '2/2'], data(organs=['spleen']), r"run 1: was trained with organs \['spleen'\], .*run 0 with \['liver'\]"),
  (['1/2', '2/2'], data(options={'size': [8, 8]}), 'run 1: was trained with options'),
  (['1/2', '2/2'], data(fold='1/2'), 'run 1: its checkpoint was not trained with the fold 2/2 of its config.json'),
  (['1/2', '2/2'], data(splits=None), 'run 1: its checkpoint was not trained with the fold 2/2'),  # imported weights
  (['1/2', '2/2'], splits(train=['a', 'c', 'g']), 'run 1: has other cases than .*run 0: e, g. Train all folds on'),
  (['1/2', '2/2'], splits(val=['b', 'c', 'd', 'f']), 'run 1: holds out case c, and so does .*run 0'),
  (['1/2', '2/2'], splits(val=['b', 'd'], train=['a', 'c', 'e', 'f']), '--workdir: no fold holds out f'),
  (['1/2', '2/2'], splits(test=['t', 'u']), 'run 1: has other cases than .*run 0: u'),
])  # fmt: skip
def test_folds_that_cannot_be_pooled_are_refused(tmp_path, monkeypatch, names, harm, said):
  metas = {}
  for i, name in enumerate(names):
    made, record = described(name)
    if harm and i == 1:
      harm(made, record)
    atomic_files.write_json(tmp_path / f'run {i}' / 'config.json', json.loads(made.to_json_best_effort()))
    metas[str(tmp_path / f'run {i}')] = {'data': record, 'step': 5, 'total_steps': 5}
  monkeypatch.setattr(trained, 'read_meta', lambda workdir, which: ('', metas[workdir]))
  with pytest.raises(InputError, match=said):
    cross_validation.pool(list(metas), str(tmp_path / 'cv'))
  assert not (tmp_path / 'cv').exists()


def test_other_scans_of_a_case_are_refused():
  records = {name: described(name)[1] for name in ('1/2', '2/2')}
  records['2/2']['contents']['c'] = 'corrected'
  with pytest.raises(InputError, match='2/2: was trained with other scans or labels of c than 1/2'):
    check_folds(records)


def test_a_run_that_is_not_there_or_untrained_is_named(folds, tmp_path):
  with pytest.raises(InputError, match='nowhere: is not the workdir of a run'):
    cross_validation.pool([folds[0], str(tmp_path / 'nowhere')], str(tmp_path / 'cv'))
  shutil.copytree(folds[1], tmp_path / 'untrained', ignore=shutil.ignore_patterns('checkpoints'))
  with pytest.raises(InputError, match='untrained: there is no checkpoint in it'):
    cross_validation.pool([folds[0], str(tmp_path / 'untrained')], str(tmp_path / 'cv'))
