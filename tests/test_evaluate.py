"""Evaluation records and checks which split each case belonged to when the network was trained."""

import json
import os
import shutil

import pytest

from afw_jax import atomic_files, evaluate
from afw_jax.config import default_config
from afw_jax.data.selection import Selection
from afw_jax.errors import InputError


def test_cases_of_the_training_are_not_scored_as_unseen(trained, phantoms, demo, run_main, tmp_path):
  """The same scans with another split, behind a finished run: the test cases of its own split are scored."""
  cases = [json.loads(path.read_text(encoding='utf-8')) for path in sorted((trained / 'cases').iterdir())]
  assert [(case['case'], case['split'], case['training_split']) for case in cases] == [
    ('phantom_005', 'test', 'test'), ('phantom_006', 'test', 'test')
  ]  # fmt: skip
  assert cases[0]['settings'] == {
    'checkpoint': 'best', 'mirror_axes': [], 'overlap': 0.5, 'largest_component': False
  }  # fmt: skip

  workdir, data = tmp_path / 'runs' / 'small', tmp_path / 'data'
  shutil.copytree(trained, workdir)
  shutil.copytree(phantoms, data)
  index = json.loads((data / 'dataset.json').read_text(encoding='utf-8'))
  train, test = index['split']['train'], index['split']['test']
  index['split'] |= {'train': [*train[2:], *test], 'test': train[:2]}
  atomic_files.write_json(data / 'dataset.json', index)
  moved = (*demo, f'--config.data.root={data}', f'--config.data.store={tmp_path / "store"}', f'--workdir={workdir}')
  run_main(*moved, '--mode=prepare')
  run_main(*moved, '--mode=evaluate')
  scored = [json.loads(path.read_text(encoding='utf-8')) for path in sorted((workdir / 'cases').iterdir())]
  assert [(case['case'], case['split'], case['training_split']) for case in scored] == [
    (case_id, 'test', 'test') for case_id in test
  ]


@pytest.mark.parametrize(
  'parts, wanted, scored',
  [
    ((), 'test', False),
    ((), 'val', False),
    ((), 'train', True),
    (('val',), 'test', True),
    (('val',), 'val', True),
    (('test',), 'test', True),
    (('test',), 'val', "'val' of .* has no case, but 'test' has"),
    (('val', 'test'), 'test', True),
  ],
)
def test_what_will_be_scored_is_known_before_training(stored, tmp_path, monkeypatch, caplog, parts, wanted, scored):
  config, store_dir = default_config(), stored[-1].partition('=')[2]
  config.eval.split = wanted
  splits = {'train': ['a'], 'val': [], 'test': []} | {part: ['b'] for part in parts}
  monkeypatch.setattr(evaluate.build, 'selection', lambda *_: Selection(splits, (0, 1), {}, [], {}))
  if isinstance(scored, str):
    with pytest.raises(InputError, match=scored):
      evaluate.can_score(config, str(tmp_path), store_dir)
  else:
    assert evaluate.can_score(config, str(tmp_path), store_dir) is scored
  assert ('nothing will be scored' in caplog.text) is (scored is False)


def test_a_run_without_validation_and_test_cases_says_so_and_trains(phantoms, tmp_path, demo, run_main):
  root = tmp_path / 'train [only]'
  shutil.copytree(phantoms, root)
  description = json.loads((root / 'dataset.json').read_text())
  cases = sum(description.pop('split').values(), [])
  split = {'train': cases, 'val': [], 'test': []}
  (root / 'dataset.json').write_text(json.dumps({**description, 'split': split}))
  arguments = (*demo, f'--config.data.root={root}', f'--workdir={tmp_path}/run [1]')
  short = ('--config.train.epochs=1', '--config.train.steps_per_epoch=2')
  done = run_main(*arguments, *short)
  assert done.stderr.index('nothing will be scored') < done.stderr.index('train:')
  assert os.listdir(tmp_path / 'run [1]' / 'checkpoints' / 'last') == ['2']
  again = run_main(
    *arguments, '--config.train.epochs=1', '--config.train.steps_per_epoch=2', '--mode=evaluate', check=2
  )
  assert 'nothing to score' in again.stderr
