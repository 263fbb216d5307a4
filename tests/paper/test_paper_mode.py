"""--mode=paper through the command line, on phantoms: killed and resumed, and everything in the slow set."""

import csv
import json
import os
import re
import signal
import subprocess
import time

import pytest
from conftest import ROOT, command, environment
from marks import SLOW

from afw_jax.paper import tables
from afw_jax.paper.runs import distinct, members
from configs import paper as config_file


def paper(workdir, variant, *more):
  return command('--mode=paper', f'--config=configs/paper.py:{variant}', f'--workdir={workdir}', *more)


def listing(folder):
  return {str(path.relative_to(folder)) for path in folder.rglob('*')}


@pytest.fixture(scope='module')
def interrupted(tmp_path_factory):
  """(workdir, what was said) of a start that was ended while its first of two runs trained."""
  workdir = tmp_path_factory.mktemp('paper') / 'w'
  process = subprocess.Popen(
    paper(workdir, 'table1,phantom', '--shard=0/2'), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
  )
  limit = time.time() + 120
  log = workdir / 'synapse-unet-focal_dice-seed0' / 'run.log'
  while not (log.exists() and re.search('train: .*0/8', log.read_text(encoding='utf-8'))):
    assert process.poll() is None and time.time() < limit
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  said, _ = process.communicate(timeout=120)
  return workdir, process.returncode, said


@pytest.fixture(scope='module')
def resumed(interrupted, run_main):
  workdir, _, _ = interrupted
  return workdir, run_main(*paper(workdir, 'table1,phantom', '--shard=0/2')[3:])


def test_a_signal_ends_the_run_and_says_how_to_go_on(interrupted):
  workdir, code, said = interrupted
  assert code == 143 and 'interrupted: 0 of 2 runs are done; the same command goes on from here' in said
  assert os.listdir(workdir / 'synapse-unet-focal_dice-seed0' / 'checkpoints' / 'last')  # it has saved
  assert not (workdir / 'synapse-unet-ce_dice-seed0').exists()


def test_the_same_command_goes_on_and_collects(resumed):
  workdir, done = resumed
  log = (workdir / 'synapse-unet-focal_dice-seed0' / 'run.log').read_text(encoding='utf-8')
  assert re.search(r'resumed from step \d of 8', log) and log.count('python -m afw_jax.main') == 2
  assert '1 of 2 runs done, 1 running, 0 left, about' in done.stdout
  text = (workdir / 'tables' / 'table1.md').read_text(encoding='utf-8')
  assert (
    text.count('1 of 1') == 2 == text.count('0 of 1') and '2 of 4 runs.' in text and '3 cases of split test' in text
  )
  assert {p.suffix for p in (workdir / 'tables').glob('table1.*')} == {'.md', '.html', '.csv', '.tex', '.png'}


def test_each_run_has_the_config_that_it_was_planned_with(resumed):
  workdir, _ = resumed
  config = config_file.get_config('table1,phantom')
  runs = distinct(members(tables.build(config), config, str(workdir), (0,)))[::2]
  for run in runs:
    written = json.loads((workdir / run.name / 'config.json').read_text(encoding='utf-8'))
    planned = json.loads(run.config.to_json_best_effort())
    planned['runtime']['compilation_cache'] = os.path.expanduser(planned['runtime']['compilation_cache'])
    assert written == planned


def test_dry_run_names_what_is_missing_and_writes_nothing(resumed, run_main):
  workdir, _ = resumed
  times = lambda: {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
  before = times()
  dry = run_main(*paper(workdir, 'table1,phantom', '--dry_run')[3:])
  assert times() == before
  assert '4 runs: 2 done, 2 missing, of which 0 are running' in dry.stdout
  commands = re.findall(r'^python -m afw_jax\.main .*--workdir=(\S+)', dry.stdout, re.M)
  assert [os.path.basename(path) for path in commands] == ['synapse-unet-ce_gd-seed0', 'synapse-unet-ce_afw-seed0']
  assert re.search(r'synapse-unet-ce_gd-seed0: folder in .*, 8 steps, \S+ TFLOP each, \S+ GPU hours', dry.stdout)


def test_a_folder_of_another_config_is_refused_before_any_work(resumed, run_main):
  workdir, _ = resumed
  before = listing(workdir)
  failed = run_main(*paper(workdir, 'table1,phantom', '--config.synapse.train.epochs=5')[3:], check=2)
  assert 'train.epochs was 2, is 5' in failed.stderr and listing(workdir) == before


@pytest.mark.parametrize('arguments, says', [
  (('--mode=train', '--config=paper:table1'), '--config: is not one for --mode=train'),
  (('--mode=train', '--config=demo', '--dry_run'), '--dry_run: is an option of --mode=paper'),
  (('--mode=paper', '--config=paper:table9'), "there is no 'table9'. Did you mean"),
  (('--mode=paper', '--config=paper:table1', '--collect'), 'there is no folder'),
])  # fmt: skip
def test_wrong_options_end_in_one_line(run_main, tmp_path, arguments, says):
  failed = run_main(*arguments, f'--workdir={tmp_path / "w"}', check=2)
  assert says in failed.stderr and failed.stderr.strip().count('\n') <= 1
  assert not list(tmp_path.iterdir())


@SLOW
@pytest.mark.parametrize('variant, runs, count', [('all', 36, 11), ('losses', 26, 2)])
def test_everything_on_phantoms(tmp_path, variant, runs, count):
  whole = paper(tmp_path, f'{variant},phantom')
  done = subprocess.run(whole, cwd=ROOT, env=environment(), capture_output=True, text=True)
  assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
  assert len(list(tmp_path.glob('*/config.json'))) == runs
  pages = [path.read_text(encoding='utf-8') for path in (tmp_path / 'tables').glob('*.md')]
  assert {p.stem for p in (tmp_path / 'tables').glob('*.png')} == {p.stem for p in (tmp_path / 'tables').glob('*.md')}
  if variant == 'all':
    for n, scans in ((5, 3), (6, 3), (7, 1)):
      with open(tmp_path / 'tables' / f'figure{n}.csv', encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
      assert len(rows) == 4 * scans and not any(row['missing'] for row in rows)
  assert len(pages) == count and all(re.search(r'^(\d+) of \1 runs', page, re.M) for page in pages)
