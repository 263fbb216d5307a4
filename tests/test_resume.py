"""A run that was killed ends with the same bits as one that was not."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import ml_collections
import numpy as np
import pytest
from conftest import ROOT, command, environment
from marks import SLOW

from afw_jax import train
from afw_jax.distributed import signals
from afw_jax.inference import validation
from afw_jax.training import checkpoint


def fingerprints(workdir, which='last'):
  meta = checkpoint.read_meta(os.path.join(workdir, 'checkpoints', which))
  return meta['step'], meta['fingerprint'], meta['best_dsc']


def losses(workdir):
  with open(os.path.join(workdir, 'metrics.jsonl'), encoding='utf-8') as f:
    return [(r['step'], r.get('train/loss'), r.get('val/dsc')) for r in map(json.loads, f)]


def text(workdir):
  """The log of the runs in a workdir."""
  with open(f'{workdir}.log', encoding='utf-8') as log:
    return log.read()


def start(arguments, workdir):
  log = open(f'{workdir}.log', 'a', encoding='utf-8')
  return subprocess.Popen(
    command(*arguments, f'--workdir={workdir}', '--mode=train'),
    cwd=ROOT,
    env=environment(),
    stdout=log,
    stderr=log,
    start_new_session=True,
  )


def reached(workdir, step):
  """Whether the run has written a record of at least this step."""
  path = os.path.join(workdir, 'metrics.jsonl')
  return os.path.exists(path) and any(f'"step": {s},' in open(path, encoding='utf-8').read() for s in range(step, 30))


def test_kill_minus_9_and_sigterm_change_no_bit(trained, demo, tmp_path):
  store = trained.parent / 'stores'
  arguments = (*demo, f'--config.data.store={next(store.iterdir())}')
  workdir, rng = str(tmp_path / 'killed'), random.Random(0)
  for how, at in ((signal.SIGKILL, 3), (signal.SIGKILL, 8), (signal.SIGTERM, 11), (signal.SIGKILL, 16)):
    process = start(arguments, workdir)
    limit = time.time() + 120
    while not reached(workdir, at) and process.poll() is None and time.time() < limit:
      time.sleep(0.005)
    time.sleep(rng.random() * 0.05)
    assert process.poll() is None, text(workdir)[-2000:]
    os.killpg(process.pid, how) if how == signal.SIGKILL else process.send_signal(how)
    code = process.wait(60)
    assert code == (-9 if how == signal.SIGKILL else 143)
  assert start(arguments, workdir).wait(120) == 0
  assert fingerprints(workdir) == fingerprints(trained)
  assert fingerprints(workdir, 'best') == fingerprints(trained, 'best')
  assert losses(workdir) == losses(trained)
  assert 'resumed from step' in text(workdir)


@pytest.mark.parametrize('stop', [signal.SIGINT, pytest.param(signal.SIGTERM, marks=SLOW)])
def test_a_signal_saves_the_step_under_way(demo, trained, tmp_path, stop):
  workdir = str(tmp_path / 'stopped')
  process = start((*demo, f'--config.data.store={next((trained.parent / "stores").iterdir())}'), workdir)
  while not reached(workdir, 2):
    assert process.poll() is None, text(workdir)[-2000:]
    time.sleep(0.01)
  process.send_signal(stop)
  assert process.wait(60) == {signal.SIGINT: 130, signal.SIGTERM: 143}[stop]
  step, _, _ = fingerprints(workdir)
  assert step >= 2 and np.isfinite(losses(workdir)[-1][1])


def test_killed_between_the_best_and_the_last_checkpoint(demo, trained, tmp_path):
  workdir = tmp_path / 'between'
  arguments = (*demo, f'--config.data.store={next((trained.parent / "stores").iterdir())}')
  assert start(arguments, str(workdir)).wait(120) == 0
  shutil.rmtree(workdir / 'checkpoints' / 'last' / '24')  # best/24 or an older one is there, last/24 is not
  assert start(arguments, str(workdir)).wait(120) == 0, text(workdir)[-2000:]
  assert fingerprints(workdir) == fingerprints(trained)
  assert fingerprints(workdir, 'best') == fingerprints(trained, 'best')


KILLED_AT = """
import contextlib, os, signal, sys
from afw_jax import main
from afw_jax.distributed import signals
from afw_jax.training import metric_writer
what, step = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]
write = metric_writer.MetricWriter.write

def write_and_die(self, done, scalars):
  write(self, done, scalars)
  if done == step and what in scalars:
    os.kill(os.getpid(), signal.SIGKILL)

@contextlib.contextmanager
def interrupted():
  yield lambda done: 143 if done == step else None

if what == 'SIGTERM':
  signals.graceful_shutdown = interrupted
else:
  metric_writer.MetricWriter.write = write_and_die
main.main()
"""


@SLOW
def test_every_value_is_recorded_once_whenever_a_run_is_killed(trained, stored, tmp_path):
  workdir = str(tmp_path / 'run')
  arguments = [*stored, f'--workdir={workdir}', '--mode=train']
  for what, step, code in (
    ('SIGTERM', 8, 143),  # saved, its validation is due
    ('val/dsc', 8, -9),  # which is recorded, and no checkpoint says so
    ('val/dsc', 16, -9),  # not due, recorded before the checkpoint is written
    ('nothing', 0, 0),
  ):
    done = subprocess.run(
      [sys.executable, '-c', KILLED_AT, what, str(step), *arguments],
      cwd=ROOT,
      env=environment(),
      capture_output=True,
      text=True,
      timeout=180,
    )
    assert done.returncode == code, done.stderr[-3000:]
  assert losses(workdir) == losses(trained)
  assert fingerprints(workdir) == fingerprints(trained)
  assert fingerprints(workdir, 'best') == fingerprints(trained, 'best')


@contextlib.contextmanager
def interrupted_at(step):
  """In place of `signals.graceful_shutdown`: a SIGTERM that comes while this step is taken."""
  yield lambda done: 143 if done == step else None


@SLOW
def test_a_signal_saves_before_a_validation_that_is_due_and_one_in_the_last_validation_is_heard(
  trained, tmp_path, monkeypatch
):
  config = ml_collections.ConfigDict(json.loads((trained / 'config.json').read_text(encoding='utf-8')))
  store, workdir = str(next((trained.parent / 'stores').iterdir())), str(tmp_path / 'run')
  validated, validate = [], validation.validate

  def counted(*args, **kwargs):
    validated.append(None)
    if len(validated) == 3:
      os.kill(os.getpid(), signal.SIGTERM)
    return validate(*args, **kwargs)

  monkeypatch.setattr(validation, 'validate', counted)
  with monkeypatch.context() as m, pytest.raises(SystemExit) as stopped:
    m.setattr(signals, 'graceful_shutdown', lambda: interrupted_at(8))  # the step of the first validation
    train.train(config, workdir, store)
  assert stopped.value.code == 143 and not validated
  assert checkpoint.read_meta(os.path.join(workdir, 'checkpoints', 'last'))['validation_due']
  with pytest.raises(SystemExit) as stopped:
    train.train(config, workdir, store)
  assert stopped.value.code == 143 and len(validated) == 3
  assert [step for step, _, dsc in losses(workdir) if dsc is not None] == [8, 16, 24]
  assert fingerprints(workdir)[0] == 24
  train.train(config, workdir, store)  # finished: nothing more to do
  assert len(validated) == 3
