"""Runs are trained one after the other, beside other processes; failures, interruptions and the time that is left."""

import json
import os
import pathlib
import signal
import sys
import threading

import pytest

from afw_jax.data.preparation.shard import parse_shard
from afw_jax.errors import InputError
from afw_jax.paper import child, schedule, states, tables
from afw_jax.paper.runs import distinct, members
from afw_jax.system import locks
from configs import paper as config_file


@pytest.fixture
def runs(tmp_path, monkeypatch):
  """Four runs with data, which are done where a file says so."""
  config = config_file.get_config('table1')
  config.synapse.data.root = str(tmp_path)
  monkeypatch.setattr(states, 'is_done', lambda run: pathlib.Path(run.folder, 'DONE').exists())
  monkeypatch.setattr(schedule, '_LOOK_AGAIN_S', 0.01)
  return distinct(members(tables.build(config), config, str(tmp_path / 'w'), (0,)))


class Work:
  """Calls `schedule.work` with runs that end at once; records what was said and started."""

  def __init__(self, runs, codes=None, before=lambda name: None):
    self.said, self.started, self.collected = [], [], 0
    self.codes, self.before = codes or {}, before
    self.errors = schedule.work(runs, say=self.said.append, finished=self._finished, start=self._start)

  def _finished(self):
    self.collected += 1

  def _start(self, command, folder, caught):
    name = os.path.basename(folder)
    self.started.append(name)
    self.before(name)
    assert f'--workdir={folder}' in command
    with locks.probed(os.path.join(folder, '.scheduled')) as held:
      assert held, 'another process could start the same run'
    code = self.codes.get(name, 0)
    if code == 0:
      pathlib.Path(folder, 'DONE').touch()
    return code


def test_each_run_is_trained_once_and_a_second_start_does_nothing(runs):
  work = Work(runs)
  assert work.started == [run.name for run in runs] and work.collected == 4 and not work.errors
  assert work.said[0].startswith('0 of 4 runs done, 1 running, 3 left') and runs[0].name in work.said[0]
  assert work.said[3].startswith('3 of 4 runs done, 1 running, 0 left')
  log = pathlib.Path(runs[0].folder, 'run.log').read_text(encoding='utf-8')
  assert 'python -m afw_jax.main --config=synapse' in log and '--config.loss.name=focal_dice' in log
  again = Work(runs)
  assert again.started == [] and not again.errors


def test_a_run_that_fails_does_not_stop_the_others_and_is_named_with_its_log(runs):
  bad = runs[1]

  def fail(name):
    if name == bad.name:
      pathlib.Path(bad.folder, 'run.log').write_text('...\nerror: no space left\n', encoding='utf-8')

  work = Work(runs, {bad.name: 2}, fail)
  assert len(work.started) == 4 and work.collected == 3
  (error,) = work.errors
  assert error.where == bad.folder and 'exit code 2 (error: no space left)' in str(error) and 'run.log' in str(error)
  assert '1 failed' in work.said[-1]
  assert Work(runs).started == [bad.name]  # the next start tries again


def test_a_run_that_ends_without_scores_is_a_failure(runs):
  errors = schedule.work(runs[:1], say=print, finished=lambda: None, start=lambda *_: 0)
  assert 'is not trained and scored' in str(errors[0])


def test_data_that_are_not_there_are_one_error_and_start_nothing(runs, tmp_path):
  for run in runs:
    run.config.data.root = str(tmp_path / 'nowhere')
  work = Work(runs)
  assert work.started == [] and len(work.errors) == 1
  assert '--config.synapse.data.root=' in str(work.errors[0]) and not os.path.exists(runs[0].folder)


@pytest.mark.parametrize('lock', ['.scheduled', '.lock', '.claiming'])
def test_a_run_of_another_process_is_passed_over_and_looked_at_again(runs, lock):
  busy = runs[0]
  file = os.path.join(busy.folder, lock)
  release, others = threading.Event(), []

  def hold():
    with locks.locked(file):
      taken.set()
      release.wait(20)
      if lock != '.claiming':
        pathlib.Path(busy.folder, 'DONE').touch()

  taken, thread = threading.Event(), threading.Thread(target=hold)
  thread.start()
  taken.wait(20)

  def before(name):
    others.append(name)
    if len(others) == 3:
      release.set()

  work = Work(runs, before=before)
  thread.join()
  assert work.started[:3] == [run.name for run in runs[1:]] and not work.errors
  assert work.started[3:] == ([busy.name] if lock == '.claiming' else [])  # it was not done: a dead process's run
  assert any('2 running' in line for line in work.said[:1])


def test_shards_share_the_runs_out(runs):
  parts = [parse_shard(f'{i}/3', {}) for i in range(3)]
  shares = [[run.name for run in runs[i::n]] for i, n in parts]
  assert sorted(sum(shares, [])) == sorted(run.name for run in runs) and [len(s) for s in shares] == [2, 1, 1]


def test_an_interruption_ends_the_run_in_order_and_says_how_to_go_on(runs):
  said = []

  def start(command, folder, caught):
    os.kill(os.getpid(), signal.SIGTERM)
    return 143

  with pytest.raises(SystemExit) as ended:
    schedule.work(runs, say=said.append, finished=lambda: None, start=start)
  assert ended.value.code == 143 and 'interrupted: 0 of 4 runs are done; the same command goes on' in said[-1]
  assert len(said) == 2  # no other run was started
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_tables_that_cannot_be_collected_do_not_stop_the_training(runs):
  said = []

  def finished():
    raise InputError('x', 'is odd', 'Mend it.')

  def start(command, folder, caught):
    pathlib.Path(folder, 'DONE').touch()
    return 0

  assert schedule.work(runs, say=said.append, finished=finished, start=start) == []
  assert sum(line.startswith('not collected: x: is odd') for line in said) == 4


def test_the_time_left_is_that_of_runs_of_the_same_kind(runs):
  for run, seconds in zip(runs, (100, 300, 50)):
    os.makedirs(run.folder)
    pathlib.Path(run.folder, 'elapsed.json').write_text(json.dumps({'seconds': seconds}), encoding='utf-8')
  assert schedule.seconds_left([], runs) is None
  assert schedule.seconds_left(runs[:2], runs[2:]) == (200 - 50) + 200  # the third has begun
  runs[3].config.train.epochs = 1
  assert schedule.seconds_left([*runs[:2], runs[3]], [runs[3]]) == 200  # it has taken no time that is known
  assert [schedule.duration(s) for s in (5, 700, 3600 * 3 + 1200, 3600 * 99)] == [
    '5 s',
    '12 min',
    '3 h 20 min',
    '4 d 3 h',
  ]


@pytest.mark.parametrize('text', ['{', '[]', '{"seconds": "5"}', '{"seconds": NaN}', '{"seconds": -1}', '{}'])
def test_a_damaged_record_of_the_time_stops_nothing(tmp_path, text, caplog):
  (tmp_path / 'elapsed.json').write_text(text, encoding='utf-8')
  assert child.elapsed_s(str(tmp_path)) == 0
  assert 'elapsed.json' in caplog.text and 'estimated without it' in caplog.text
  with child.signals() as caught:
    assert child.run([sys.executable, '-c', ''], str(tmp_path), caught) == 0
  assert 0 < child.elapsed_s(str(tmp_path)) < 60


SCRIPT = """
import signal, sys, time
def end(signum, _):
  print('saved', flush=True)
  sys.exit(143)
signal.signal(signal.SIGTERM, end)
print('ready', flush=True)
time.sleep(60)
"""


def test_a_signal_reaches_the_run_which_saves(tmp_path):
  log = tmp_path / child.LOG
  log.write_text('before\n', encoding='utf-8')
  with child.signals() as caught:

    def interrupt():
      while 'ready' not in log.read_text(encoding='utf-8'):
        pass
      os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code = child.run([sys.executable, '-c', SCRIPT], str(tmp_path), caught)
    thread.join()
    assert caught.exit_code == 143 and caught.process is None
  assert code == 143 and log.read_text(encoding='utf-8') == 'before\nready\nsaved\n'
  assert 0 < child.elapsed_s(str(tmp_path)) < 60
  first = child.elapsed_s(str(tmp_path))
  with child.signals() as caught:
    assert child.run([sys.executable, '-c', 'print("error: odd"); raise SystemExit(3)'], str(tmp_path), caught) == 3
  assert child.elapsed_s(str(tmp_path)) > first and child.last_error(str(tmp_path)) == 'error: odd'
