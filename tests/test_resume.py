"""A run that was killed ends with the same bits as one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from conftest import ROOT, command, environment

from afw_jax import checkpoint


def fingerprints(workdir, which='last'):
  meta = checkpoint.read_meta(os.path.join(workdir, 'checkpoints', which))
  return meta['step'], meta['fingerprint'], meta['best_dsc']


def losses(workdir):
  with open(os.path.join(workdir, 'metrics.jsonl')) as f:
    return [(r['step'], r.get('train/loss'), r.get('val/dsc')) for r in map(json.loads, f)]


def start(arguments, workdir):
  log = open(f'{workdir}.log', 'a')
  return subprocess.Popen(command(*arguments, f'--workdir={workdir}', '--mode=train'), cwd=ROOT, env=environment(),
                          stdout=log, stderr=log, start_new_session=True)


def reached(workdir, step):
  """Whether the run has written a record of at least this step."""
  path = os.path.join(workdir, 'metrics.jsonl')
  return os.path.exists(path) and any(f'"step": {s},' in open(path).read() for s in range(step, 30))


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
    assert process.poll() is None, open(f'{workdir}.log').read()[-2000:]
    os.killpg(process.pid, how) if how == signal.SIGKILL else process.send_signal(how)
    code = process.wait(60)
    assert code == (-9 if how == signal.SIGKILL else 143)
  assert start(arguments, workdir).wait(120) == 0
  assert fingerprints(workdir) == fingerprints(trained)
  assert fingerprints(workdir, 'best') == fingerprints(trained, 'best')
  assert losses(workdir) == losses(trained)
  assert 'resumed from step' in open(f'{workdir}.log').read()


@pytest.mark.parametrize('stop', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_under_way(demo, trained, tmp_path, stop):
  workdir = str(tmp_path / 'stopped')
  process = start((*demo, f'--config.data.store={next((trained.parent / "stores").iterdir())}'), workdir)
  while not reached(workdir, 2):
    assert process.poll() is None, open(f'{workdir}.log').read()[-2000:]
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
  assert start(arguments, str(workdir)).wait(120) == 0, open(f'{workdir}.log').read()[-2000:]
  assert fingerprints(workdir) == fingerprints(trained)
  assert fingerprints(workdir, 'best') == fingerprints(trained, 'best')
