"""Records reach the real packages, offline; whatever fails there, the run and metrics.jsonl are the same."""

import contextlib
import logging
import math
import socket
import struct
import sys
import time
import types

import pytest

from afw_jax.errors import InputError
from afw_jax.training import tracker
from afw_jax.training.metric_writer import MetricWriter, read_metrics

CONFIG = {'seed': 0, 'train': {'epochs': 2}, 'data': {'size': (32, 32)}}


def record(folder, name, *steps, start=0, finished=False):
  """A part of a run, from a start to its end, as training writes it."""
  folder.mkdir(exist_ok=True)
  opened = lambda: tracker.Tracker(name, str(folder), CONFIG)
  writer = MetricWriter(str(folder), start_step=start, open_tracker=opened)
  for step in steps:
    writer.write(step, {'train/loss': 1 / step, 'weight/胰腺 <b>': 2.0 * step, 'val/dsc': math.nan})
  writer.close(finished=finished)


@pytest.fixture
def mlflow_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('MLFLOW_TRACKING_URI', f'file:{tmp_path}/mlruns')
  monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
  import mlflow

  mlflow.set_tracking_uri(f'file:{tmp_path}/mlruns')
  yield mlflow.MlflowClient()
  mlflow.set_tracking_uri('')


def test_mlflow_has_every_value_once_when_a_run_goes_on(tmp_path, mlflow_folder):
  record(tmp_path / 'run', 'mlflow', 1, 2, 3)
  (run,) = mlflow_folder.search_runs([mlflow_folder.get_experiment_by_name('afw_jax').experiment_id])
  assert run.info.run_name == 'run' and run.info.status == 'KILLED'
  assert run.data.params == {'seed': '0', 'train.epochs': '2', 'data.size': '(32, 32)'}
  record(tmp_path / 'run', 'mlflow', 3, 4, start=2, finished=True)

  (run,) = mlflow_folder.search_runs([run.info.experiment_id])
  assert run.info.status == 'FINISHED'
  for key, at in (('train/loss', lambda step: 1 / step), ('weight/胰腺 _b_', lambda step: 2.0 * step)):
    history = mlflow_folder.get_metric_history(run.info.run_id, key)
    assert [(m.step, m.value) for m in history] == [(step, at(step)) for step in (1, 2, 3, 4)]
  assert 'val/dsc' not in run.data.metrics


def wandb_records(data):
  """The records of an offline run: after a header of 7 bytes, checksum, length and kind of each, and the record."""
  from wandb.proto import wandb_internal_pb2

  at = 7
  while at < len(data):
    (length,) = struct.unpack_from('<H', data, at + 4)
    yield wandb_internal_pb2.Record.FromString(data[at + 7 : at + 7 + length])
    at += 7 + length


def test_wandb_offline_keeps_the_records_and_the_id_of_the_run(tmp_path, monkeypatch):
  monkeypatch.setenv('WANDB_MODE', 'offline')
  record(tmp_path / 'run', 'wandb', 1, 2)
  record(tmp_path / 'run', 'wandb', 2, 3, start=1, finished=True)
  values, ids = [], set()
  for path in sorted((tmp_path / 'run').glob('wandb/offline-run-*/*.wandb'), key=lambda path: path.stat().st_mtime_ns):
    for made in wandb_records(path.read_bytes()):
      if made.HasField('run'):
        ids.add((made.run.run_id, made.run.project, made.run.display_name))
      row = {'/'.join([i.key, *i.nested_key]).strip('/'): i.value_json for i in made.history.item}
      values += [(int(row['_step']), float(row['train/loss']))] if row else []
  assert values == [(1, 1.0), (2, 0.5), (2, 0.5), (3, 1 / 3)]
  assert len(ids) == 1 and list(ids)[0][1:] == ('afw_jax', 'run')


def ours(caplog):
  return [record.getMessage() for record in caplog.records if record.name == 'afw_jax']


def nothing_listens():
  with contextlib.closing(socket.socket()) as opened:
    opened.bind(('127.0.0.1', 0))
    return f'http://127.0.0.1:{opened.getsockname()[1]}'


def test_a_server_that_is_not_there_is_one_warning(tmp_path, monkeypatch, caplog, mlflow_folder):
  import mlflow

  mlflow.set_tracking_uri(nothing_listens())
  monkeypatch.setenv('MLFLOW_HTTP_REQUEST_MAX_RETRIES', '0')
  with caplog.at_level(logging.WARNING, 'afw_jax'):
    record(tmp_path / 'run', 'mlflow', 1, 2, 3)
  (said,) = ours(caplog)
  assert said.startswith('nothing more is sent to mlflow, the run and its metrics.jsonl go on: ') and '\n' not in said
  assert [r['step'] for r in read_metrics(str(tmp_path / 'run'))] == [1, 2, 3]


@pytest.mark.parametrize('failing', ['init', 'log', 'finish'])
def test_whatever_the_service_raises_the_records_stay(tmp_path, monkeypatch, caplog, failing):
  def call(name, value=None):
    if name == failing:
      raise RuntimeError('no\nsuch key')
    return value

  run = types.SimpleNamespace(log=lambda *_, **__: call('log'), finish=lambda **_: call('finish'))
  fake = types.SimpleNamespace(Settings=dict, init=lambda **_: call('init', run))
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  record(tmp_path / 'run', 'wandb', 1, 2, 3)
  assert [said.split(': ', 1)[1] for said in ours(caplog)] == ['no such key']
  assert [r['step'] for r in read_metrics(str(tmp_path / 'run'))] == [1, 2, 3]


def test_a_service_that_hangs_holds_up_neither_a_step_nor_the_end(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(tracker, '_PATIENCE_S', 0.2)
  fake = types.SimpleNamespace(Settings=dict, init=lambda **_: time.sleep(20))
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  start = time.monotonic()
  record(tmp_path / 'run', 'wandb', *range(1, 100))
  assert time.monotonic() - start < 5
  assert ours(caplog) == ['wandb did not answer in time: what it has of this run may be incomplete']
  assert len(read_metrics(str(tmp_path / 'run'))) == 99


def test_one_that_cannot_be_used_is_refused_before_any_work(monkeypatch):
  tracker.check('')
  with pytest.raises(InputError, match="^tracker: 'wandbb' is unknown. Did you mean 'wandb'?"):
    tracker.check('wandbb')
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(InputError, match=r"^tracker: mlflow is not installed. Run pip install 'afw_jax\[mlflow\]'.$"):
    tracker.check('mlflow')


def test_a_folder_with_the_name_of_a_package_is_not_taken_for_it(tmp_path, monkeypatch):
  (tmp_path / 'tracking').mkdir()  # as wandb leaves `wandb` where a script runs
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setattr(tracker, 'TRACKERS', ('tracking',))
  with pytest.raises(InputError, match='^tracker: tracking is not installed'):
    tracker.check('tracking')


def test_a_training_whose_tracker_fails_is_the_training_without(tmp_path, trained, stored, run_main):
  unreachable = {'MLFLOW_TRACKING_URI': nothing_listens(), 'MLFLOW_HTTP_REQUEST_MAX_RETRIES': '0'}
  done = run_main(*stored, f'--workdir={tmp_path}/run', '--mode=train', '--config.tracker=mlflow', **unreachable)
  assert done.stderr.count('nothing more is sent to mlflow') == 1
  timed = ('images_per_s', 'data_wait_s')
  plain, tracked = (
    [{k: v for k, v in r.items() if k not in timed} for r in read_metrics(str(run))]
    for run in (trained, tmp_path / 'run')
  )
  assert tracked == plain
