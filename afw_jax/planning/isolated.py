"""Runs `measure` in a process of its own, because XLA reads its flags and fixes its devices once per process.

As a program (`python -m afw_jax.planning.isolated JOB RESULT`) it is that process.
"""

import contextlib
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping

from afw_jax.errors import InputError, InputErrors
from afw_jax.planning import accelerators, measure

_CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
_ROOT = pathlib.Path(__file__).parents[2]


def measure_in_subprocess(job: Mapping, target: accelerators.Target, on_wait: Callable[[], None]) -> dict:
  """Calls `measure.measure` in a new process with the environment that the target needs.

  Args:
    job: the keyword arguments of `measure.measure`.
    target: of the job.
    on_wait: called about twice a second while the process runs.

  Returns:
    As `measure.measure`; {'refused': why} where the compiler ended its process.

  Raises:
    InputError: the config cannot be trained on this mesh, or the compiler was killed for want of memory.
    RuntimeError: the process failed otherwise; with the end of its output.
  """
  data, spatial = job['mesh_shape']
  environment = accelerators.environment(target, data * spatial, os.environ)
  environment['PYTHONPATH'] = os.pathsep.join(filter(None, (str(_ROOT), environment.get('PYTHONPATH'))))
  with tempfile.TemporaryDirectory() as folder:
    paths = job_path, result_path, log_path = [os.path.join(folder, name) for name in ('job', 'result', 'log')]
    with open(job_path, 'wb') as f:
      pickle.dump(dict(job), f)
    code = _run([sys.executable, '-m', 'afw_jax.planning.isolated', *paths[:2]], environment, log_path, on_wait)
    if code == -9:
      raise InputError(
        '--devices',
        f'the compiler was killed at the mesh {data}x{spatial}, most likely because this machine ran out of memory',
        'Plan for fewer devices, or on a machine with more memory.',
      )
    log = pathlib.Path(log_path).read_text(encoding='utf-8', errors='replace')
    if unknown := re.search(r'Unknown flags? in XLA_FLAGS: (.*)', log):
      raise InputError('XLA_FLAGS', f'this compiler does not know {unknown[1].strip()}', 'Take it out of XLA_FLAGS')
    checks = re.findall(r'^F\d{4} \S+ +\d+ (\S+\] .*)$', log, re.MULTILINE)  # that failed in XLA
    if -code in _CRASHES or (code > 0 and checks):
      how = signal.Signals(-code).name if code < 0 else f'exit code {code}'
      return {'refused': f'the compiler ended by {how}' + (f': {accelerators.reason(checks[-1])}' if checks else '')}
    if code:
      raise RuntimeError(
        f'compiling for {job["target_name"]}, mesh {data}x{spatial}, ended with exit code {code}:\n{log[-4000:]}'
      )
    with open(result_path, 'rb') as f:
      result = pickle.load(f)
  if isinstance(result, Exception):
    raise result
  return result


def _run(command: list[str], environment: dict[str, str], log_path: str, on_wait: Callable[[], None]) -> int:
  """Runs a command to its end and returns its exit code; stdout and stderr go to the log."""
  with open(log_path, 'wb') as log:
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
      while process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
          process.wait(0.5)
        on_wait()
    finally:
      process.kill()
  return process.returncode


def _main(job_path: str, result_path: str) -> None:
  with open(job_path, 'rb') as f:
    job = pickle.load(f)
  try:
    result = measure.measure(**job)
  except (InputError, InputErrors) as error:
    result = error
  with open(result_path, 'wb') as f:
    pickle.dump(result, f)


if __name__ == '__main__':
  _main(*sys.argv[1:])
