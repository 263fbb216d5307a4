"""Evaluation records and checks which split each case belonged to when the network was trained."""

import json
import shutil

from afw_jax.system import atomic_files


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

  scans = {case_id: tmp_path / 'data' / 'images' / f'{case_id}.nii.gz' for case_id in index['split']['test']}
  known = next(iter(scans))
  index |= {'name': 'another data set', 'split': {**index['split'], 'test': ['renamed']}}
  atomic_files.write_json(data / 'dataset.json', index)
  for kind in ('images', 'labels'):
    (data / kind / f'{known}.nii.gz').rename(data / kind / 'renamed.nii.gz')
  other = (*moved, f'--config.data.store={tmp_path / "other"}')
  run_main(*other, '--mode=prepare')
  said = run_main(*other, '--mode=evaluate', check=2).stderr
  assert "case renamed would be scored as 'test', but its scan was in 'train'" in said
