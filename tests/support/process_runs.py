"""Runs of several processes on one machine, each with its own log, in the environment of a step started by SLURM."""

import json
import os
import pathlib
import socket
import subprocess
import time

import numpy as np
from conftest import ROOT, environment

from afw_jax.training import metric_writer

SECONDS = 30  # within which the other processes end when one fails
# The variables that the shell of salloc has, and those of a task that srun started.
JOB = {'SLURM_JOB_ID': '5000', 'SLURM_NTASKS': '4', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0'}
STEP = {
  **JOB,
  'SLURM_STEP_ID': '0',
  'SLURM_STEP_NUM_TASKS': '4',
  'SLURM_STEP_NODELIST': 'node[07-09]',
  'SLURM_PROCID': '3',
  'SLURM_STEP_TASKS_PER_NODE': '2(x2)',
  'SLURM_LOCALID': '1',
}


def start(arguments, n, log, **environ):
  """Starts n processes of one run; process i writes to LOG.i."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  started = []
  for i in range(n):
    slurm = {
      **STEP,
      'SLURM_STEP_NUM_TASKS': str(n),
      'SLURM_PROCID': str(i),
      'SLURM_STEP_NODELIST': 'localhost',
      'JAX_COORDINATOR_PORT': str(port),
    }
    out = open(f'{log}.{i}', 'wb')
    started.append(
      subprocess.Popen(
        arguments,
        cwd=ROOT,
        stdout=out,
        stderr=out,
        start_new_session=True,
        env=environment(**(slurm if n > 1 else {}), **environ),
      )
    )
  return started


def text(log, i):
  return pathlib.Path(f'{log}.{i}').read_text(encoding='utf-8')


def finish(started, log, codes=0):
  """Waits for the processes to end with the given exit codes."""
  for i, process in enumerate(started):
    code = process.wait(300)
    assert code == (codes if isinstance(codes, int) else codes[i]), text(log, i)[-3000:]


def losses(workdir):
  return {r['step']: r['train/loss'] for r in metric_writer.read_metrics(str(workdir)) if 'train/loss' in r}


def reach(workdir, step, started, log):
  limit = time.time() + 300
  while max(losses(workdir), default=0) < step:
    assert all(p.poll() is None for p in started) and time.time() < limit, [
      text(log, i)[-2000:] for i in range(len(started))
    ]
    time.sleep(0.01)


def check_same_run(workdir, trained):
  """Compares curve, files and scores of a finished run with those of a run by one process on one device."""
  found, wanted = losses(workdir), losses(trained)
  assert list(found) == list(wanted) == list(range(1, 25))
  found, wanted = list(found.values()), list(wanted.values())
  np.testing.assert_allclose(found[:6], wanted[:6], rtol=1e-5)
  np.testing.assert_allclose(found, wanted, rtol=2e-3)  # this tiny network amplifies rounding
  validated = [
    [(r['step'], r['val/dsc']) for r in metric_writer.read_metrics(str(w)) if 'val/dsc' in r]
    for w in (workdir, trained)
  ]
  np.testing.assert_allclose(*validated, atol=0.02)
  names = lambda w, part: sorted(os.listdir(w / part))
  for part in ('cases', 'predictions', 'pictures', 'report'):
    assert names(workdir, part) == names(trained, part)
  assert not (workdir / '.evaluating').exists()
  for name in names(trained, 'cases'):
    scores = [json.loads((w / 'cases' / name).read_text())['scores'] for w in (workdir, trained)]
    dsc = [[s['dsc'] for s in x.values()] for x in scores]
    assert max(dsc[1]) > 0.05, 'the network predicts nothing: there is nothing to compare'
    np.testing.assert_allclose(*dsc, atol=0.05)
