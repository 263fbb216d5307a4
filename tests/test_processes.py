"""Several processes on one machine are one run: the same curve, one writer, shared work, and none is left hanging."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, command, environment

from afw_jax import checkpoint, predict, processes, writer
from afw_jax.errors import InputError

SECONDS = 30  # for the others to end in
JOB = {'SLURM_JOB_ID': '5000', 'SLURM_NTASKS': '4', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0'}  # what salloc's shell sees
STEP = {**JOB, 'SLURM_STEP_ID': '0', 'SLURM_STEP_NUM_TASKS': '4', 'SLURM_STEP_NODELIST': 'node[07-09]', 'SLURM_PROCID': '3',
        'SLURM_STEP_TASKS_PER_NODE': '2(x2)', 'SLURM_LOCALID': '1'}
JAX = {'JAX_COORDINATOR_ADDRESS': 'a:1', 'JAX_NUM_PROCESSES': '2'}


@pytest.mark.parametrize('environ', [
    {}, JOB, {**JOB, 'SLURM_NTASKS': '1'}, {**STEP, 'SLURM_STEP_NUM_TASKS': '1'},  # a step of one task: salloc's own shell, sbatch's script
    {'JOB_COMPLETION_INDEX': '1'}, JAX, {'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, {**JAX, 'JAX_NUM_PROCESSES': '1', 'JAX_PROCESS_ID': '0'},
    {'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0'},
    {'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_WORKER_ID': '0', 'JAX_PLATFORMS': 'cpu'}])
def test_one_host_stays_alone(environ):
  assert processes.place(environ=environ) is None


@pytest.mark.parametrize('environ, expected', [
    (STEP, processes.Place('node07:' + str(61440 + 5000 % 4096), 4, 3, (1,))),
    ({**STEP, 'CUDA_VISIBLE_DEVICES': '0,1'}, processes.Place('node07:62344', 4, 3, (1,))),
    ({**STEP, 'CUDA_VISIBLE_DEVICES': '1'}, processes.Place('node07:62344', 4, 3)),  # SLURM has chosen for it
    ({**STEP, 'SLURM_STEP_TASKS_PER_NODE': '1(x4)', 'SLURM_LOCALID': '0', 'SLURM_STEP_NODELIST': 'gpu[3,5-6].cluster,b'},
     processes.Place('gpu3.cluster:62344', 4, 3)),
    ({**STEP, 'SLURM_STEP_NODELIST': 'alpha-1,beta', 'JAX_COORDINATOR_PORT': '99'}, processes.Place('alpha-1:99', 4, 3, (1,))),
    ({**JAX, 'JOB_COMPLETION_INDEX': '1'}, processes.Place('a:1', 2, 1)), ({**JAX, 'JAX_PROCESS_ID': '0'}, processes.Place('a:1', 2, 0)),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_WORKER_ID': '1'}, processes.Place('auto'))])
def test_launchers(environ, expected):
  assert processes.place(environ=environ) == expected


def test_flags_come_first_and_are_given_together():
  assert processes.place('a:1', 2, 1, environ=STEP) == processes.Place('a:1', 2, 1)
  assert processes.place('auto', environ={}) == processes.Place('auto')
  assert processes.place(None, 1, None, environ=STEP) is None
  for given, named in (((None, 2, 1), '--coordinator'), (('a:1', 2, None), '--process_id'), (('a:1', 2, 2), '0 to 1'), (('a', 2, 1), 'HOST:PORT')):
    with pytest.raises(InputError, match=named):
      processes.place(*given, environ={})


def start(arguments, n, log, **environ):
  """n processes of one run, each with a log of its own."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  started = []
  for i in range(n):
    slurm = {**STEP, 'SLURM_STEP_NUM_TASKS': str(n), 'SLURM_PROCID': str(i), 'SLURM_STEP_NODELIST': 'localhost', 'JAX_COORDINATOR_PORT': str(port)}
    out = open(f'{log}.{i}', 'w')
    started.append(subprocess.Popen(arguments, cwd=ROOT, stdout=out, stderr=out, start_new_session=True,
                                    env=environment(**(slurm if n > 1 else {}), **environ)))
  return started


def text(log, i):
  with open(f'{log}.{i}') as f:
    return f.read()


def finish(started, log, codes=0):
  """Waits for the processes; their exit codes are the given ones."""
  for i, process in enumerate(started):
    code = process.wait(300)
    assert code == (codes if isinstance(codes, int) else codes[i]), text(log, i)[-3000:]


def losses(workdir):
  return {r['step']: r['train/loss'] for r in writer.read_metrics(str(workdir)) if 'train/loss' in r}


@pytest.fixture(scope='module')
def stored(trained, demo):
  """Arguments of the run `trained`, with its store."""
  return (*demo, f'--config.data.store={next((trained.parent / "stores").iterdir())}')


@pytest.fixture(scope='module')
def pair(trained, stored, tmp_path_factory):
  """The run `trained` again, by two processes."""
  workdir = tmp_path_factory.mktemp('pair') / 'run'
  log = f'{workdir}.log'
  finish(start(command(*stored, f'--workdir={workdir}'), 2, log), log)
  return workdir


def test_two_processes_give_the_curve_and_scores_of_one(trained, pair):
  one, two = losses(trained), losses(pair)
  assert list(two) == list(range(1, 25))
  one, two = list(one.values()), list(two.values())
  np.testing.assert_allclose(two[:6], one[:6], rtol=1e-5)
  np.testing.assert_allclose(two, one, rtol=2e-3)  # as two devices of one process: this tiny network makes much of rounding
  validated = [[(r['step'], r['val/dsc']) for r in writer.read_metrics(str(w)) if 'val/dsc' in r] for w in (trained, pair)]
  np.testing.assert_allclose(*validated, atol=0.02)
  names = lambda w, part: sorted(os.listdir(w / part))
  for part in ('cases', 'predictions', 'pictures', 'report'):
    assert names(pair, part) == names(trained, part)
  assert not (pair / '.evaluating').exists()
  for name in names(trained, 'cases'):
    scores = [json.loads((w / 'cases' / name).read_text())['scores'] for w in (trained, pair)]
    np.testing.assert_allclose(*([s['dsc'] for s in x.values()] for x in scores), atol=0.05)


def test_only_the_first_process_writes_and_talks(pair):
  assert len(list((pair / 'tensorboard').glob('events*'))) == 1
  assert len((pair / 'metrics.jsonl').read_text().splitlines()) == 24 + 3
  assert json.loads((pair / 'environment.json').read_text())['processes'] == 2
  first, second = (text(f'{pair}.log', i) for i in range(2))
  assert 'validation DSC' in first and 'liver' in first
  assert [line for line in second.splitlines() if line.strip() and '[Gloo]' not in line and 'proxy' not in line] == []


def test_predict_shares_out_the_scans(pair, phantoms, tmp_path):
  scans = tmp_path / 'scans'
  scans.mkdir()
  for i, path in enumerate(sorted((phantoms / 'images').glob('*.nii.gz'))[:3]):
    shutil.copy(path, scans / f'scan{i}.nii.gz')
  log = str(tmp_path / 'log')
  finish(start(command('--mode=predict', f'--workdir={pair}', f'--input={scans}', f'--output={tmp_path}/two',
                       '--probabilities'), 2, log), log)
  rows = predict.predict(str(pair), str(scans), str(tmp_path / 'one'), save_probabilities=True)
  tables = [json.loads((tmp_path / name / 'volumes.json').read_text())['scans'] for name in ('one', 'two')]
  assert [[(r['scan'], r['volume_ml']) for r in table] for table in tables] == [[(r['scan'], r['volume_ml']) for r in rows]] * 2
  assert len(rows) == 3
  for i in range(3):
    for kind in ('', '_probability_liver'):
      one, two = (np.asarray(nib.load(tmp_path / name / f'scan{i}{kind}.nii.gz').dataobj) for name in ('one', 'two'))
      np.testing.assert_allclose(two, one, atol=1e-3 if kind else 0)  # written as float16
    assert one.std() > 0
  assert 'scan2' in text(log, 0) and 'scan' not in text(log, 1)


def reach(workdir, step, started, log):
  limit = time.time() + 300
  while max(losses(workdir), default=0) < step:
    assert all(p.poll() is None for p in started) and time.time() < limit, [text(log, i)[-2000:] for i in range(len(started))]
    time.sleep(0.01)


def fingerprints(workdir):
  meta = checkpoint.read_meta(str(workdir / 'checkpoints' / 'last'))
  return meta['step'], meta['fingerprint']


@pytest.mark.skipif('AFW_SLOW' not in os.environ, reason='AFW_SLOW is not set (some minutes more)')
def test_killed_and_interrupted_runs_go_on_with_another_number_of_processes(pair, stored, tmp_path):
  workdir, log = tmp_path / 'run', str(tmp_path / 'log')
  arguments = command(*stored, f'--workdir={workdir}', '--mode=train')
  started = start(arguments, 2, log)
  reach(workdir, 6, started, log)
  os.killpg(started[1].pid, signal.SIGKILL)
  at = time.time()
  assert started[0].wait(SECONDS) != 0 and time.time() - at < SECONDS
  assert 'lost another one' in text(log, 0) or 'another task died' in text(log, 0)

  # Saved by two processes, goes on with one; of as many devices, so that not a bit may differ.
  started = start(arguments, 1, log, JAX_NUM_CPU_DEVICES='2')
  reach(workdir, 9, started, log)
  started[0].send_signal(signal.SIGTERM)
  finish(started, log, 143)
  assert 'resumed from step 5' in text(log, 0) and 9 <= fingerprints(workdir)[0] < 24

  finish(start(arguments, 2, log), log)  # and the other way round
  assert 'resumed from step' in text(log, 0)
  assert losses(workdir) == losses(pair) and fingerprints(workdir) == fingerprints(pair)

  shutil.rmtree(workdir / 'checkpoints' / 'last' / '24')
  finish(start(arguments, 1, log), log)  # one device
  assert 'resumed from step 2' in text(log, 0)
  np.testing.assert_allclose(list(losses(workdir).values()), list(losses(pair).values()), rtol=1e-4)


def test_a_signal_to_one_process_stops_all_after_the_same_step(stored, tmp_path):
  workdir, log = tmp_path / 'run', str(tmp_path / 'log')
  started = start(command(*stored, f'--workdir={workdir}', '--mode=train', '--config.train.epochs=500'), 2, log)
  reach(workdir, 2, started, log)
  started[1].send_signal(signal.SIGTERM)
  finish(started, log, 143)
  step = checkpoint.read_meta(str(workdir / 'checkpoints' / 'last'))['step']
  assert step == max(losses(workdir)) and f'saved at step {step} of 4000' in text(log, 0)


SCRIPT = """
import os, signal, sys, time
import jax, numpy as np
from afw_jax import processes, sharding
from afw_jax.data import pipeline
from afw_jax.errors import InputError

processes.start(processes.place())
n, i = processes.count(), processes.index()
how, folder, expected = sys.argv[1], sys.argv[2], int(sys.argv[3])
assert n == expected == jax.device_count()

class Source:  # 24 records
  records, read = range(24), 0
  def __len__(self):
    return 24
  def __getitem__(self, k):
    Source.read += 1
    return {'image': np.full((4, 4, 1), k, np.int16), 'label': np.full((4, 4), k, np.uint8), 'window': np.zeros(2, np.float32), 'index': np.int32(k)}

batches = lambda rank, world: pipeline.train_batches(Source(), batch_size=8, seed=0, rank=rank, world=world, prefetch=1)
mesh = sharding.make_mesh()
mine = batches(*sharding.share(mesh))
epoch = [next(mine) for _ in range(3)]
assert Source.read <= 5 * 8 // n, Source.read  # three batches, and those read ahead
parts = processes.gather([int(k) for batch in epoch for k in batch['index']])
assert sorted(sum(parts, [])) == list(range(24)) and len(parts) == n and {len(p) for p in parts} == {24 // n}
whole = next(batches(0, 1))
on_mesh = sharding.put_batch(epoch[0], mesh)
total = jax.jit(lambda x: x[:, 0, 0, 0], out_shardings=sharding.replicated(mesh))(on_mesh['image'])
assert np.array_equal(np.asarray(total), whole['index'])  # the same rows in the same order as one process has
assert processes.own_mesh(mesh).size == 1
copy = processes.own_copy({'a': total}, processes.own_mesh(mesh))['a']
assert copy.is_fully_addressable and np.array_equal(copy, whole['index'])

shares = processes.gather(processes.share(list(range(n + 1))))
assert sorted(sum(shares, [])) == list(range(n + 1)) and {len(s) for s in shares} == {1, 2}
assert processes.gather({'value': [0.1, float(i)] * i}) == [{'value': [0.1, float(k)] * k} for k in range(n)]
assert (processes.first(lambda: open(folder + '/first', 'x').close() or 5) == 5) == (i == 0)
processes.check_shared(folder + '/first')
processes.check_alike('seed', 1)
try:
  processes.check_alike('seed', i)
  raise AssertionError('not noticed')
except InputError as error:
  assert 'process 1' in str(error)

open(f'{folder}/fine{i}', 'x').close()
for step in range(10**6):
  processes.gather(step)
  if step == 3 and i == n - 1:
    open(folder + '/event', 'x').close()
    if how == 'stop':
      os.kill(os.getpid(), signal.SIGSTOP)
    raise KeyError('boom')
"""


def test_shares_and_what_a_stopped_or_failing_process_does_to_the_others(tmp_path):
  runs = {}
  for how, n in (('stop', 2), ('exception', 4)):
    (tmp_path / how).mkdir()
    runs[how] = start([sys.executable, '-c', SCRIPT, how, str(tmp_path / how), str(n)], n, tmp_path / how / 'log')
  ended, limit = {}, time.time() + 200
  waited_for = [(how, i) for how, started in runs.items() for i in range(len(started)) if (how, i) != ('stop', 1)]
  while len(ended) < len(waited_for) and time.time() < limit:
    ended |= {key: time.time() for key in waited_for if key not in ended and runs[key[0]][key[1]].poll() is not None}
    time.sleep(0.05)
  os.killpg(runs['stop'][1].pid, signal.SIGKILL)
  for how, i in waited_for:
    said = text(tmp_path / how / 'log', i)
    assert (tmp_path / how / f'fine{i}').exists(), said[-3000:]
    assert (how, i) in ended and runs[how][i].returncode != 0, (how, i)
    assert ended[how, i] - os.path.getmtime(tmp_path / how / 'event') < SECONDS
    assert "KeyError: 'boom'" in said and 'process 3 of 4 ends here' in said if (how, i) == ('exception', 3) else (
        'lost another one' in said or 'another task died' in said), said[-3000:]
