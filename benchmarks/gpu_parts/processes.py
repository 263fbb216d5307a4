"""The processes of the sides: started, asked for their turns, and ended, each within its limit of time."""

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Protocol

from gpu_parts import worker
from gpu_parts.item import Item, Ready, Side, Work

ROUND_LIMIT_S = 60
LOG_BYTES = 100_000  # of one process that the log keeps
DRY_FLAGS = '--xla_backend_optimization_level=0'  # on a CPU compiling takes longer than everything else


class Failed(Exception):
  """A side that failed; the message is the reason in one line."""


class Opened(Protocol):
  """A side that was started."""

  def facts(self, deadline: float) -> dict: ...
  def round(self) -> float: ...
  def end(self) -> dict: ...
  def close(self) -> None: ...


class Process:
  """A side in a process of its own.

  Args:
    title: of its output in the log.
    side: what it runs.
    environment: its environment variables.
    log: file that its standard error is added to when it is closed, since others run beside it.
  """

  def __init__(self, title: str, side: Side, environment: dict[str, str], log: Path):
    self._title, self._log, self._buffer = title, log, b''
    self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
    self._process = subprocess.Popen(
      [sys.executable, worker.__file__, side.function, json.dumps(side.options)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      env=environment,
      start_new_session=True,  # so that its own children can be ended with it
    )

  def facts(self, deadline: float) -> dict:
    return self._read(deadline)

  def round(self) -> float:
    self._say('round')
    return self._read(time.monotonic() + ROUND_LIMIT_S)['seconds']

  def end(self) -> dict:
    self._say('end')
    return self._read(time.monotonic() + ROUND_LIMIT_S)

  def close(self) -> None:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    self._process.wait()
    for pipe in (self._process.stdin, self._process.stdout):
      with contextlib.suppress(OSError):
        pipe.close()
    with self._errors, open(self._log, 'ab') as file:
      file.write(f'== {self._title}\n'.encode() + self._output()[-LOG_BYTES:])

  def _say(self, word: str) -> None:
    try:
      self._process.stdin.write(f'{word}\n'.encode())
      self._process.stdin.flush()
    except OSError:
      raise Failed(self._ended()) from None

  def _read(self, deadline: float) -> dict:
    pipe = self._process.stdout.fileno()
    while b'\n' not in self._buffer:
      left = deadline - time.monotonic()
      if left <= 0 or not select.select([pipe], [], [], left)[0]:
        raise Failed('took longer than its limit of time')
      if not (more := os.read(pipe, 1 << 16)):
        raise Failed(self._ended())
      self._buffer += more
    line, _, self._buffer = self._buffer.partition(b'\n')
    answer = json.loads(line)
    if 'failed' in answer:
      raise Failed(answer['failed'])
    return answer

  def _output(self) -> bytes:
    self._errors.seek(0)
    return self._errors.read()

  def _ended(self) -> str:
    """Why the process ended without an answer."""
    code = self._process.wait()
    lines = [line for line in self._output().decode(errors='replace').splitlines() if line.strip()]
    how = f'killed by signal {-code}' if code < 0 else f'ended with exit code {code}'
    return f'{how}: {lines[-1][:250] if lines else ""}'


class Inline:
  """A side in this process, for a dry run: without limits of time and without flags."""

  def __init__(self, side: Side):
    self._side = side
    self._ready: Ready | None = None

  def facts(self, deadline: float) -> dict:
    result = worker.call(self._side.function, dict(self._side.options))
    if isinstance(result, dict):
      return result
    self._ready = result
    return result.facts

  def round(self) -> float:
    return self._ready.round()

  def end(self) -> dict:
    return self._ready.end()

  def close(self) -> None:
    self._ready = None


@dataclasses.dataclass(frozen=True)
class Runner:
  """Starts sides.

  Attributes:
    work: how much is measured.
    out: folder of the logs.
    cache: folder of compiled programs.
    inline: whether sides run in this process.
  """

  work: Work
  out: Path
  cache: Path
  inline: bool = False

  def open(self, item: Item, name: str) -> Opened:
    side = item.sides[name]
    if self.inline:
      return Inline(side)
    title = f'{item.part}: {item.name}: {name}'
    return Process(title, side, environment(item, self.work, self.cache), self.out / 'log.txt')


def environment(item: Item, work: Work, cache: Path) -> dict[str, str]:
  """The environment variables of an item's processes."""
  flags = [os.environ.get('XLA_FLAGS', ''), item.flags, DRY_FLAGS if work.dry else '']
  variables = {**os.environ, 'XLA_FLAGS': ' '.join(flags).strip()}
  variables['JAX_PLATFORMS'] = 'cpu' if work.dry else 'cuda,cpu'  # without a GPU it fails instead of using the CPU
  variables['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # the sides share the memory
  variables['XLA_PYTHON_CLIENT_MEM_FRACTION'] = '0.95'  # a limit also where nothing is allocated ahead
  variables['PYTHONUNBUFFERED'] = '1'
  variables.pop('JAX_COMPILATION_CACHE_DIR', None)
  if item.cache:
    variables['JAX_COMPILATION_CACHE_DIR'] = str(cache)
    variables['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '2'
  return variables


def measure(item: Item, runner: Runner, limit_s: float) -> dict:
  """Runs the sides of an item, in turns where it has rounds.

  Returns:
    {'seconds': of all, 'sides': {name: facts, with 'rounds': seconds per step of each round, or 'failed': the reason}}.
  """
  begun, facts, rounds = time.monotonic(), {}, {}
  opened: dict[str, Opened] = {}
  try:
    for name in item.sides:
      with _noting(name, facts):
        opened[name] = runner.open(item, name)
    for name in opened:
      with _noting(name, facts):
        facts[name] = opened[name].facts(begun + min(item.sides[name].limit_s, limit_s))
        rounds[name] = []
    for _ in range(item.rounds):
      for name in [name for name in rounds if 'failed' not in facts[name]]:
        with _noting(name, facts):
          rounds[name].append(opened[name].round())
    for name in [name for name in rounds if item.rounds and 'failed' not in facts[name]]:
      with _noting(name, facts):
        facts[name] = {**facts[name], **opened[name].end(), 'rounds': rounds[name]}
  finally:
    for one in opened.values():
      one.close()
  return {'seconds': time.monotonic() - begun, 'sides': facts}


@contextlib.contextmanager
def _noting(name: str, facts: dict):
  """Notes the reason in the facts of a side that fails: one that fails is a row, and never the end."""
  try:
    yield
  except Failed as error:
    facts[name] = {**facts.get(name, {}), 'failed': str(error)}
  except Exception as error:
    facts[name] = {**facts.get(name, {}), 'failed': worker.reason(error)}
