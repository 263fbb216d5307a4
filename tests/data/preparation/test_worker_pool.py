"""Worker processes: one that dies takes no other case along, and the case that kills it is named."""

import os
import signal
import types

import pytest

from afw_jax.data.preparation.worker_pool import run_jobs
from afw_jax.errors import InputError


def work(job):
  """Dies at once, once, or not at all; each death is noted in a file."""
  if job['dies']:
    with open(job['log'], 'a', encoding='utf-8') as f:
      f.write(job['id'] + '\n')
    with open(job['log'], encoding='utf-8') as f:
      if f.read().split().count(job['id']) <= job['dies']:
        os.kill(os.getpid(), signal.SIGKILL)
  if job.get('error'):
    raise InputError(job['id'], 'disk full', 'Free some space')
  return {'id': job['id'], 'threads': os.environ['OPENBLAS_NUM_THREADS']}


def jobs(tmp_path, dies):
  return [
    dict(id=str(i), dies=n, log=str(tmp_path / 'log'), case=types.SimpleNamespace(image=f'scan{i}.nii'))
    for i, n in enumerate(dies)
  ]


def test_a_case_that_kills_its_workers_is_named_and_the_others_are_done(tmp_path):
  before = dict(os.environ)
  results = run_jobs(work, jobs(tmp_path, [0, 0, 99, 0, 1, 0]), workers=2, progress=False)
  assert sorted(r['id'] for r in results) == list('012345')
  bad = [r for r in results if 'problems' in r]
  assert [r['id'] for r in bad] == ['2']
  assert 'scan2.nii: the process that read it was killed 3 times' in str(bad[0]['problems'][0])
  deaths = (tmp_path / 'log').read_text(encoding='utf-8').split().count('2')
  assert deaths in (2, 3)  # another one may have killed the pool before it began
  assert all(int(r['threads']) >= 1 for r in results if 'threads' in r) and dict(os.environ) == before


def test_an_error_stops_the_run(tmp_path):
  todo = jobs(tmp_path, [0, 0])
  todo[0]['error'] = True
  with pytest.raises(InputError, match='disk full'):
    run_jobs(work, todo, workers=1, progress=False)
