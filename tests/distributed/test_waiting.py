"""A process that waits for others says for which, and ends with a clear error when they do not come."""

import socket
import subprocess
import sys

import pytest
from conftest import ROOT, environment

from afw_jax.distributed import waiting
from afw_jax.distributed.launchers import AUTO, Process

START = """
import logging, sys
from afw_jax.distributed import launchers, runtime, waiting
logging.basicConfig(level=logging.INFO, format='%(message)s')
waiting.REMINDER_SECONDS, waiting.LIMIT_SECONDS = 1, 3
runtime.start(launchers.Process(sys.argv[1], 3, int(sys.argv[2])))
"""


@pytest.mark.parametrize(
  'process, text',
  [
    (Process('a:1', 2, 0), 'process 0 of 2 waits for process 1'),
    (Process('a:1', 8, 0), 'process 0 of 8 waits for processes 1 to 7'),
    (Process('a:1', 2, 1), 'process 1 of 2 waits for process 0'),
    (Process('a:1', 8, 3), 'process 3 of 8 waits for process 0 and 6 more'),
    (Process(AUTO), 'this process waits for all hosts of the TPU slice'),
  ],
)
def test_it_says_which_processes_it_waits_for(process, text):
  assert waiting.describe(process) == text


@pytest.mark.parametrize('rank', [0, 1])
def test_processes_that_do_not_come_end_the_wait_with_one_error(rank):
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{s.getsockname()[1]}'
  done = subprocess.run(
    [sys.executable, '-c', START, address, str(rank)],
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 2, done.stderr
  said = [line for line in done.stderr.splitlines() if 'waits for' in line]
  assert said[0].startswith(f'connecting to {address}: process {rank} of 3 waits for process')
  assert said[1].startswith('not connected after 1 s: ') and said[2].startswith('not connected after 2 s: ')
  assert said[3].startswith(f'error: {address}: ') and said[3].endswith('--num_processes=1.') and len(said) == 4
  assert 'Traceback' not in done.stderr and 'stack trace' not in done.stderr
  assert ('process 0 cannot be reached' in said[3]) == (rank == 1)
