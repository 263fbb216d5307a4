"""Conditions of a measurement: processor, versions, and how busy the machine was with other programs.

A ratio of times says little when another program takes part of the processor from one side and not from the other.
`measured` prints the conditions around a benchmark, and a warning below its table if others were busy meanwhile.
"""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Iterator

QUIET = 0.05  # share of the machine that others may take
_SETS = {'avx2': 'AVX2', 'avx512f': 'AVX-512', 'amx_tile': 'AMX'}


@contextlib.contextmanager
def measured(*packages: str) -> Iterator[None]:
  """Prints what a benchmark is run on and, at its end, how much of the machine other programs took.

  Args:
    packages: whose versions matter, beside Python's.
  """
  found = [f'{name} {version}' for name in packages if (version := _version(name))]
  load = os.getloadavg()[0]
  print(f'{_processor()}; Python {platform.python_version()}, {", ".join(found)}; load before {load:.2f}\n')
  before = _times()
  yield
  share = _others(before, _times())
  if share is None:
    print(f'\nHow busy other programs were is not known on this system; load after {os.getloadavg()[0]:.2f}.')
  elif share > QUIET:
    print(f'\nNOT QUIET: other programs took {share:.0%} of the processor. Do not quote these times and ratios.')
  else:
    print(f'\nQuiet: other programs took {share:.1%} of the processor.')


def _processor() -> str:
  """Its name, cores and vector instructions, on which the times of a CPU depend most."""
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8')
  except OSError:
    return f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores'
  fields = dict(line.split(':', 1) for line in text.splitlines() if ':' in line)
  fields = {key.strip(): value.strip() for key, value in fields.items()}
  sets = [title for flag, title in _SETS.items() if flag in fields.get('flags', '').split()]
  return ', '.join([fields.get('model name', platform.machine()), f'{os.cpu_count()} cores', *sets])


def _version(name: str) -> str | None:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def _times() -> tuple[float, float, float] | None:
  """(seconds of all processors, of those busy, of this program and its ended children); None where nothing says so."""
  try:
    line = pathlib.Path('/proc/stat').read_text(encoding='utf-8').splitlines()[0]
  except OSError:
    return None
  ticks = [int(n) for n in line.split()[1:9]]  # user nice system idle iowait irq softirq steal
  second = os.sysconf('SC_CLK_TCK')
  own = os.times()
  return sum(ticks) / second, (sum(ticks) - ticks[3] - ticks[4]) / second, sum(own[:4])


def _others(before, after) -> float | None:
  """Share of the processors that others took between two `_times`; time stolen by other machines counts as theirs."""
  if before is None or after is None:
    return None
  whole, busy, own = (b - a for a, b in zip(before, after))
  return max(0.0, busy - own) / whole if whole > 0 else 0.0
