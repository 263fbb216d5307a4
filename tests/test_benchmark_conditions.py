"""What benchmarks say of the machine they ran on."""

import os
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / 'benchmarks'


@pytest.fixture
def conditions(monkeypatch):
  monkeypatch.syspath_prepend(str(BENCHMARKS))
  import conditions

  return conditions


@pytest.mark.parametrize(
  'after, said',
  [
    ((100.0, 61.0, 60.5), 'Quiet: other programs took 0.5% of the processor.'),
    ((100.0, 61.0, 40.0), 'NOT QUIET: other programs took 21% of the processor. Do not quote these times and ratios.'),
    ((100.0, 60.0, 60.2), 'Quiet: other programs took 0.0% of the processor.'),  # clocks of two kinds
    (None, 'is not known on this system'),
  ],
)
def test_a_busy_machine_is_named(conditions, monkeypatch, capsys, after, said):
  found = iter([after and (0.0, 0.0, 0.0), after])
  monkeypatch.setattr(conditions, '_times', lambda: next(found))
  with conditions.measured('numpy', 'no_such_package'):
    print('| a | table |')
  first, *_, last = capsys.readouterr().out.strip().splitlines()
  assert (
    f'Python {sys.version.split()[0]}, numpy ' in first and 'no_such_package' not in first and 'load before' in first
  )
  assert said in last


@pytest.mark.skipif(not pathlib.Path('/proc/stat').exists(), reason='needs /proc')
def test_its_own_time_and_that_of_its_children_is_not_that_of_others(conditions):
  before = conditions._times()
  spin = 'import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass'
  subprocess.run([sys.executable, '-c', spin], check=True)
  exec(spin)
  whole, busy, own = (b - a for a, b in zip(before, conditions._times()))
  assert own >= 0.98 and busy > 0.9 and whole >= busy


def test_the_exponent_of_a_power_law(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', os.environ.get('XLA_FLAGS', ''))  # what the import below adds is taken back
  monkeypatch.syspath_prepend(str(BENCHMARKS))
  import growth

  assert growth.exponent([1, 2, 8], [3, 12, 192]) == pytest.approx(2)
