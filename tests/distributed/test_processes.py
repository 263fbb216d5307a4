"""Several processes on one machine: the curve of one process, one writer, shared work, and none is left hanging."""

import itertools
import json
import os
import shutil
import signal
import sys
import time

import nibabel as nib
import numpy as np
import pytest
from conftest import command
from marks import SLOW
from process_runs import SECONDS, check_same_run, finish, losses, reach, start, text

from afw_jax import predict
from afw_jax.training import checkpoint


@pytest.fixture(scope='module')
def pair(trained, stored, tmp_path_factory):
  """The run `trained` again, by two processes."""
  workdir = tmp_path_factory.mktemp('pair') / 'run'
  log = f'{workdir}.log'
  finish(start(command(*stored, f'--workdir={workdir}'), 2, log), log)
  return workdir


def test_two_processes_give_the_curve_and_scores_of_one(trained, pair):
  check_same_run(pair, trained)


def test_only_the_first_process_writes_and_talks(pair):
  assert len(list((pair / 'tensorboard').glob('events*'))) == 1
  assert len((pair / 'metrics.jsonl').read_text().splitlines()) == 24 + 3
  assert json.loads((pair / 'environment.json').read_text())['processes'] == 2
  first, second = (text(f'{pair}.log', i) for i in range(2))
  assert 'validation DSC' in first and 'liver' in first
  assert [
    line
    for line in second.splitlines()
    if line.strip() and '[Gloo]' not in line and 'proxy' not in line and 'waits for' not in line
  ] == []


def test_predict_shares_out_the_scans(pair, phantoms, tmp_path):
  scans = tmp_path / 'scans'
  scans.mkdir()
  for i, path in enumerate(sorted((phantoms / 'images').glob('*.nii.gz'))[:3]):
    shutil.copy(path, scans / f'scan{i}.nii.gz')
  log = str(tmp_path / 'log')
  finish(
    start(
      command('--mode=predict', f'--workdir={pair}', f'--input={scans}', f'--output={tmp_path}/two', '--probabilities'),
      2,
      log,
    ),
    log,
  )
  rows = predict.predict(str(pair), str(scans), str(tmp_path / 'one'), save_probabilities=True)
  tables = [json.loads((tmp_path / name / 'volumes.json').read_text())['scans'] for name in ('one', 'two')]
  assert [[r['scan'] for r in table] for table in tables] == [['scan0', 'scan1', 'scan2']] * 2
  # Where two classes are equally probable, rounding decides: a voxel or two, of 2 mL, may differ.
  for row, found in itertools.product(rows, tables):
    assert next(r for r in found if r['scan'] == row['scan'])['volume_ml'] == pytest.approx(row['volume_ml'], abs=4)
  for i in range(3):
    for kind in ('', '_probability_liver'):
      one, two = (np.asarray(nib.load(tmp_path / name / f'scan{i}{kind}.nii.gz').dataobj) for name in ('one', 'two'))
      if kind:
        np.testing.assert_allclose(two, one, atol=1e-3)  # written as float16
      else:
        assert (two != one).sum() <= 2
    assert one.std() > 0
  assert 'scan2' in text(log, 0) and 'scan' not in text(log, 1)


def fingerprints(workdir):
  meta = checkpoint.read_meta(str(workdir / 'checkpoints' / 'last'))
  return meta['step'], meta['fingerprint']


@SLOW
def test_killed_and_interrupted_runs_go_on_with_another_number_of_processes(pair, stored, tmp_path):
  workdir, log = tmp_path / 'run', str(tmp_path / 'log')
  arguments = command(*stored, f'--workdir={workdir}', '--mode=train')
  started = start(arguments, 2, log)
  reach(workdir, 6, started, log)
  os.killpg(started[1].pid, signal.SIGKILL)
  at = time.time()
  assert started[0].wait(SECONDS) != 0 and time.time() - at < SECONDS
  assert 'lost the connection' in text(log, 0) or 'another task died' in text(log, 0)

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


SCRIPT = """
import os, signal, sys, time
import jax, numpy as np
from afw_jax.distributed import launchers, runtime, sharding, signals
from afw_jax.data import pipeline
from afw_jax.errors import InputError

runtime.start(launchers.resolve_process())
n, i = runtime.process_count(), runtime.process_index()
how, folder, expected = sys.argv[1], sys.argv[2], int(sys.argv[3])
assert n == expected == jax.device_count()

class Source:  # 24 records
  records, count = range(24), 0
  def __len__(self):
    return 24
  def read(self, ks):
    Source.count += len(ks)
    index = np.asarray(ks, np.int32)
    image = index.astype(np.int16)[:, None, None, None] + np.zeros((1, 4, 4, 1), np.int16)
    window = np.zeros((len(ks), 2), np.float32)
    return {'image': image, 'label': image[..., 0].astype(np.uint8), 'window': window, 'index': index}

batches = lambda rank, world: pipeline.train_batches(Source(), batch_size=8, seed=0, rank=rank, world=world, prefetch=1)
mesh = sharding.make_mesh()
mine = batches(*sharding.data_shard(mesh))
epoch = [next(mine) for _ in range(3)]
assert Source.count <= 5 * 8 // n, Source.count  # three batches, and those read ahead
parts = runtime.gather([int(k) for batch in epoch for k in batch['index']])
assert sorted(sum(parts, [])) == list(range(24)) and len(parts) == n and {len(p) for p in parts} == {24 // n}
whole = next(batches(0, 1))
on_mesh = sharding.put_batch(epoch[0], mesh)
total = jax.jit(lambda x: x[:, 0, 0, 0], out_shardings=sharding.replicated(mesh))(on_mesh['image'])
assert np.array_equal(np.asarray(total), whole['index'])  # the same rows in the same order as one process has
state = {'a': np.full((2, 3), i + 0.5, np.float32), 'step': np.int32(i)}  # of processes that round otherwise
state = sharding.replicate(state, mesh)
assert all(array.sharding.is_fully_replicated for array in state.values())
assert [float(np.asarray(array).max()) for array in state.values()] == [0.5, 0]  # that of process 0, everywhere
assert runtime.local_mesh(2).size == 1
copy = runtime.local_copy({'a': total}, runtime.local_mesh(2))['a']
assert copy.is_fully_addressable and np.array_equal(copy, whole['index'])

shares = runtime.gather(runtime.local_items(list(range(n + 1))))
assert sorted(sum(shares, [])) == list(range(n + 1)) and {len(s) for s in shares} == {1, 2}
assert runtime.gather({'value': [0.1, float(i)] * i}) == [{'value': [0.1, float(k)] * k} for k in range(n)]
assert (runtime.on_process_zero(lambda: open(folder + '/first', 'x').close() or 5) == 5) == (i == 0)
runtime.check_shared(folder + '/first')
assert runtime.from_process_zero(lambda: {'a': [i, None, '脾' * 50]}) == {'a': [0, None, '脾' * 50]}
runtime.check_same('seed', 1)
try:
  runtime.check_same('seed', i)
  raise AssertionError('not noticed')
except InputError as error:
  assert 'process 1' in str(error)

open(f'{folder}/fine{i}', 'x').close()
for step in range(10**6):
  runtime.gather(step)
  if step == 3 and i == n - 1:
    open(folder + '/event', 'x').close()
    if how != 'exception':
      os.kill(os.getpid(), {'stop': signal.SIGSTOP, 'kill': signal.SIGKILL}[how])
    raise KeyError('boom')
"""


def test_shares_and_what_a_stopped_killed_or_failing_process_does_to_the_others(tmp_path):
  runs = {}
  for how, n in (('stop', 2), ('kill', 2), ('exception', 4)):
    (tmp_path / how).mkdir()
    runs[how] = start([sys.executable, '-c', SCRIPT, how, str(tmp_path / how), str(n)], n, tmp_path / how / 'log')
  ended, limit = {}, time.time() + 200
  waited_for = [
    (how, i) for how, started in runs.items() for i in range(len(started)) if (how, i) not in (('stop', 1), ('kill', 1))
  ]
  while len(ended) < len(waited_for) and time.time() < limit:
    ended |= {key: time.time() for key in waited_for if key not in ended and runs[key[0]][key[1]].poll() is not None}
    time.sleep(0.05)
  os.killpg(runs['stop'][1].pid, signal.SIGKILL)
  for how, i in waited_for:
    said = text(tmp_path / how / 'log', i)
    assert (tmp_path / how / f'fine{i}').exists(), said[-3000:]
    assert (how, i) in ended and runs[how][i].returncode != 0, (how, i)
    assert ended[how, i] - os.path.getmtime(tmp_path / how / 'event') < SECONDS
    assert (
      "KeyError: 'boom'" in said and 'process 3 of 4 ends because' in said
      if (how, i) == ('exception', 3)
      else ('lost the connection' in said or 'another task died' in said)
    ), said[-3000:]
