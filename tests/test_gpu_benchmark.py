"""benchmarks/gpu.py: every path once in tiny sizes; and its processes, which outlive what fails in them."""

import importlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, environment
from golden_weights import FOLDER
from marks import SLOW

sys.path.append(str(ROOT / 'benchmarks'))
import gpu  # noqa: E402
from gpu_parts import correct, processes  # noqa: E402
from gpu_parts.item import Item, Side, Work  # noqa: E402

from afw_jax import models  # noqa: E402

FAST = ('compile', 'correct', 'repeat', 'speed', 'predict', 'profile', 'variants')


def dry(out, *arguments):
  """Runs the command; returns its records and what it said."""
  command = [sys.executable, 'benchmarks/gpu.py', '--dry', '--out', str(out), *arguments]
  variables = environment(PYTHONUNBUFFERED='1')
  done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads((out / 'results.json').read_text(encoding='utf-8')), done.stdout


def check_own_sides(records):
  """The sides of this package have no failure, and no golden value is missed."""
  for part, items in records.items():
    for name, record in items.items():
      found = record['sides']['ours']
      assert 'failed' not in json.dumps(found), (part, name, found)
      assert found.get('right', True) and found.get('same', True), (part, name, found)


@SLOW
def test_dry_run_of_every_part_but_the_real_training_and_what_is_done_is_not_done_again(tmp_path):
  arguments = ('--inline', '--quick', '--networks', 'unet', '--parts', *FAST)
  records, said = dry(tmp_path, *arguments)
  check_own_sides(records)
  assert set(records) == set(FAST) and 'left out' not in said
  text = (tmp_path / 'table.md').read_text(encoding='utf-8')
  assert all(f'## {gpu.module(part).TITLE}' in text for part in FAST)
  again, said = dry(tmp_path, *arguments, '--minutes', '0.01')
  assert again == records and 'left out' not in said
  more, said = dry(tmp_path, *arguments, '--minutes', '0.01', '--networks', 'unetpp')
  assert more == records and 'speed: unetpp bfloat16: left out' in said


@SLOW
def test_dry_run_of_every_part_and_network_in_processes(tmp_path):
  records, said = dry(tmp_path, '--minutes', '14', '--together', '2')
  check_own_sides(records)
  assert set(records) == set(gpu.PARTS) and 'left out' not in said
  assert records['pipeline']['killed and resumed']['sides']['ours']['was_resumed']


@pytest.fixture
def measure(tmp_path):
  """Measures sides in processes: sides -> what `processes.measure` returns."""

  def run(limit_s=60, rounds=0, **sides):
    sides = {name: Side(f'misbehaving:{function}', options, limit_s) for name, (function, options) in sides.items()}
    runner = processes.Runner(Work(dry=True), tmp_path, tmp_path / 'cache')
    return processes.measure(Item('part', 'name', sides, rounds=rounds), runner, limit_s)['sides']

  return run


def test_a_side_that_fails_is_a_reason_in_one_line_and_the_others_are_measured(measure):
  found = measure(
    works=('works', {'name': 'a'}), fails=('fails', {}), aborts=('aborts', {}), exits=('exits', {}), gone=('gone', {})
  )
  assert found['works'] == {'name': 'a'}
  assert found['fails'] == {'failed': 'ValueError: RESOURCE_EXHAUSTED: out of memory'}
  assert found['aborts']['failed'].startswith('killed by signal 6: ')
  assert found['exits']['failed'].startswith('ended with exit code 3: ')
  assert found['gone']['failed'].startswith('AttributeError')


def test_a_side_that_hangs_is_ended_at_its_limit(measure):
  begun = time.monotonic()
  assert measure(limit_s=1.5, hangs=('hangs', {})) == {'hangs': {'failed': 'took longer than its limit of time'}}
  assert time.monotonic() - begun < 20


def test_sides_take_turns_and_one_that_dies_in_a_round_leaves_the_others_theirs(measure):
  turns = {'a': ('takes_turns', {'seconds': 1}), 'b': ('takes_turns', {'seconds': 2, 'dies_in_round': 1})}
  found = measure(rounds=3, **turns)
  assert found['a'] == {'ready': True, 'rounds': [1, 1, 1], 'done': 3}
  assert found['b']['ready'] and found['b']['failed'].startswith('killed by signal 6')


def test_failures_are_tried_again_and_a_broken_off_run_leaves_whole_results(tmp_path):
  item, results = Item('speed', 'unet bfloat16', {}), gpu.Results(tmp_path)
  assert not gpu.whole(results.get(item))
  results.put(item, {'seconds': 1, 'sides': {'ours': {'failed': 'out of memory'}}})
  assert not gpu.whole(gpu.Results(tmp_path).get(item))
  assert 'unet bfloat16, ours: failed: out of memory' in (tmp_path / 'table.md').read_text(encoding='utf-8')


@pytest.mark.parametrize('work', [Work(), Work(quick=True), Work(dry=True), Work(dry=True, quick=True)])
def test_items_have_functions_that_exist_and_names_that_are_unique(work, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: True)  # the peers too, where PyTorch is not installed
  for part in gpu.PARTS:
    items = gpu.module(part).items(work)
    assert items and len({item.name for item in items}) == len(items)
    for item in items:
      json.dumps([side.options for side in item.sides.values()])
      for side in item.sides.values():
        module, name = side.function.split(':')
        inspect.signature(getattr(importlib.import_module(module), name)).bind(**side.options)


def test_every_network_is_measured_and_every_golden_file_of_a_network_is_used():
  names = {item.name.split(' ')[0] for item in gpu.module('speed').items(Work())}
  assert names == set(models.MODELS)
  assert set(correct.GOLDEN) == {path.stem for path in FOLDER.glob('*.npz')} - {'losses', 'metrics'}
  for golden, (_, classes, _, _) in correct.GOLDEN.items():
    with np.load(FOLDER / f'{golden}.npz') as file:
      assert {key for key in file.files if re.fullmatch(r'eval(_\d)?', key)}
    meta = json.loads((FOLDER / f'{golden}.json').read_text(encoding='utf-8'))
    assert {shape['shape'][-1] for key, shape in meta['outputs'].items() if key.startswith('eval')} == {classes}


def test_a_gpu_is_asked_for_and_a_dry_run_stays_on_the_cpu(tmp_path):
  item = Item('part', 'name', {}, flags='--one', cache=False)
  full = processes.environment(item, Work(), tmp_path)
  assert full['JAX_PLATFORMS'] == 'cuda,cpu' and '--one' in full['XLA_FLAGS']
  assert 'JAX_COMPILATION_CACHE_DIR' not in full
  assert processes.environment(item, Work(dry=True), tmp_path)['JAX_PLATFORMS'] == 'cpu'
  assert os.environ.get('JAX_PLATFORMS') in (None, 'cpu')
