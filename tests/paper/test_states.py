"""How far a run is, read from the folder of a real one."""

import json
import shutil

import ml_collections
import pytest
from scored_run import make_run

from afw_jax.paper import states
from afw_jax.paper.runs import Run


@pytest.fixture
def run(trained, tmp_path):
  """A finished run, in a copy that may be damaged."""
  folder = shutil.copytree(trained, tmp_path / 'run')
  config = ml_collections.ConfigDict(json.loads((folder / 'config.json').read_text(encoding='utf-8')))
  return folder, Run('run', str(folder), 'demo', 'demo', config)


@pytest.mark.parametrize('key, value', [
  ('eval.convention', 'monai'), ('eval.nsd_tolerance_mm', 1.0), ('eval.checkpoint', 'last'), ('eval.overlap', 0.25),
  ('eval.split', 'val'), ('eval.largest_component', True),
])  # fmt: skip
def test_scores_made_in_another_way_are_made_again(run, key, value):
  _, it = run
  assert states.is_done(it)
  it.config.update_from_flattened_dict({key: value})
  assert states.is_trained(it) and not states.is_done(it)


def test_what_is_missing_or_damaged_is_not_done(run):
  folder, it = run
  cases = sorted((folder / 'cases').iterdir())
  text = cases[0].read_text(encoding='utf-8')
  cases[0].write_text('{', encoding='utf-8')
  assert not states.is_done(it)
  cases[0].write_text(text, encoding='utf-8')
  assert states.is_done(it)
  cases[1].unlink()
  assert states.is_trained(it) and not states.is_done(it)
  (newest, *_) = sorted((folder / 'checkpoints' / 'last').iterdir(), key=lambda path: -int(path.name))
  shutil.rmtree(newest)  # the one before it is not that of the last step
  assert not states.is_trained(it)
  shutil.rmtree(folder / 'checkpoints')
  assert not states.is_trained(it)


def test_data_that_are_not_there(run, tmp_path):
  _, it = run
  assert states.problem_of(it) is None
  it.config.data.root = str(tmp_path / 'gone')
  assert '--config.demo.data.root=' in str(states.problem_of(it))
  it.config.data.store = str(tmp_path)  # prepared scans are enough
  assert states.problem_of(it) is None


def test_a_split_that_there_is_not_is_left_to_the_run_to_name(tmp_path, monkeypatch):
  make_run(tmp_path)
  (tmp_path / 'splits.json').write_text('{"train": [], "val": [], "test": ["a", "b", "c"]}', encoding='utf-8')
  monkeypatch.setattr(states, 'is_trained', lambda run: True)
  config = ml_collections.ConfigDict({'eval': {'split': 'tset'}})
  assert not states.is_done(Run('run', str(tmp_path), 'demo', 'demo', config))
