"""A run of the command line that stops before a chosen call until it is let go, as a process of its own."""

import pathlib
import subprocess
import sys
import time

from conftest import ROOT, environment

SCRIPT = """
import importlib, pathlib, sys, time
from afw_jax import main
module, name, gate = sys.argv[1:4]
del sys.argv[1:4]
module, gate = importlib.import_module(module), pathlib.Path(gate)
original = getattr(module, name)

def paused(*args, **kwargs):
  gate.with_suffix('.reached').touch()
  while not gate.with_suffix('.go').exists():
    time.sleep(0.01)
  return original(*args, **kwargs)

setattr(module, name, paused)
main.main()
"""


class Paused:
  """Starts the run; `reach` waits until it stands before the call, `finish` lets it go on and returns its exit code.

  Args:
    call: module and name of a function, as 'afw_jax.train.train'.
    gate: a path that no file has.
    arguments: of the command line.
  """

  def __init__(self, call: str, gate: pathlib.Path, *arguments: str):
    self.gate, self.log = gate, gate.with_suffix('.log')
    with open(self.log, 'w', encoding='utf-8') as log:
      self.process = subprocess.Popen(
        [sys.executable, '-c', SCRIPT, *call.rsplit('.', 1), str(gate), *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        stdout=log,
        stderr=log,
      )

  def reach(self) -> None:
    limit = time.monotonic() + 120
    while not self.gate.with_suffix('.reached').exists():
      assert self.process.poll() is None and time.monotonic() < limit, self.text()
      time.sleep(0.01)

  def finish(self) -> int:
    self.gate.with_suffix('.go').touch()
    return self.process.wait(180)

  def text(self) -> str:
    return self.log.read_text(encoding='utf-8')[-3000:]
