"""One run moves from four processes to eight devices, one device and four processes; a signal to one stops all."""

import shutil
import signal
import time

from conftest import command
from marks import SLOW
from process_runs import SECONDS, check_same_run, finish, losses, reach, start, text

from afw_jax.training import checkpoint


@SLOW
def test_a_run_moves_from_four_processes_to_eight_devices_to_one_and_back(trained, stored, tmp_path):
  workdir, log = tmp_path / 'run', str(tmp_path / 'log')
  arguments, only_train = command(*stored, f'--workdir={workdir}'), '--mode=train'
  last = workdir / 'checkpoints' / 'last'

  started = start([*arguments, only_train], 4, log)
  reach(workdir, 5, started, log)
  started[3].send_signal(signal.SIGTERM)
  finish(started, log, 143)  # what a scheduler can requeue
  step = checkpoint.read_meta(str(last))['step']
  assert step == max(losses(workdir)) < 24 and f'saved at step {step} of 24' in text(log, 0)

  finish(start([*arguments, only_train], 1, log, JAX_NUM_CPU_DEVICES='8'), log)
  assert f'resumed from step {step} of 24' in text(log, 0)

  shutil.rmtree(last / '24')
  finish(start([*arguments, only_train], 1, log), log)
  assert 'resumed from step 20 of 24' in text(log, 0)

  shutil.rmtree(last / '24')
  finish(start(arguments, 4, log), log)  # two cases to score among four
  assert 'resumed from step 20 of 24' in text(log, 0)
  check_same_run(workdir, trained)


def test_a_signal_while_one_process_prepares_ends_all(demo, tmp_path):
  log = str(tmp_path / 'log')
  started = start(command(*demo, f'--workdir={tmp_path}/runs/one'), 2, log)
  limit = time.time() + 120
  while not list(tmp_path.glob('runs/stores/*/.staging')):  # which is there until the store is whole
    assert all(p.poll() is None for p in started) and time.time() < limit, text(log, 0)
    time.sleep(0.001)
  started[0].send_signal(signal.SIGTERM)
  at = time.time()
  assert started[0].wait(SECONDS) == -signal.SIGTERM
  assert started[1].wait(SECONDS) != 0 and time.time() - at < SECONDS
  assert not list(tmp_path.glob('runs/stores/*/dataset.json'))
