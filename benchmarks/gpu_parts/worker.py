"""A side of a measurement in a process of its own: python worker.py MODULE:FUNCTION OPTIONS (JSON).

One JSON line on the standard output answers each turn; all other output goes to the standard error.
"""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]


def add_paths() -> None:
  """Makes the package, the benchmarks and the golden weights of the tests importable."""
  for folder in (BENCHMARKS.parent / 'tests' / 'support', BENCHMARKS.parent, BENCHMARKS):
    if str(folder) not in sys.path:
      sys.path.insert(0, str(folder))


def call(function: str, options: dict):
  """Calls 'module:function'."""
  module, name = function.split(':')
  return getattr(importlib.import_module(module), name)(**options)


def reason(error: BaseException) -> str:
  """The first line of an error."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return f'{type(error).__name__}: {lines[0] if lines else ""}'[:300]


def main() -> None:
  channel = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(2, 1)
  sys.path[0] = str(BENCHMARKS)
  add_paths()

  def answer(value: dict) -> None:
    channel.write(json.dumps(value) + '\n')
    channel.flush()

  try:
    result = call(sys.argv[1], json.loads(sys.argv[2]))
    if isinstance(result, dict):
      answer(result)
      return
    answer(result.facts)
    for line in sys.stdin:
      if line.strip() == 'end':
        answer(result.end())
        return
      answer({'seconds': result.round()})
  except Exception as error:
    traceback.print_exc()
    answer({'failed': reason(error)})


if __name__ == '__main__':
  main()
