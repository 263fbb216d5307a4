"""The first cells of the notebooks: what they install on which machine, and what they say where it did not work."""

import glob
import importlib.metadata
import importlib.util
import subprocess
import sys
import types

import pytest
from conftest import ROOT

from colab import sync

CELLS = sync.from_source((sync.FOLDER / 'quickstart.py').read_text(encoding='utf-8')).cells
INSTALL, CHECK, RUN = (
  next(cell.source for cell in CELLS if f'# @title {title}\n' in cell.source)
  for title in ('Install', 'Check', 'Run commands')
)
ADDRESS = 'https://github.com/somebody/afw_jax'


@pytest.fixture
def machine(monkeypatch, tmp_path):
  """Runs the cell that installs where this package is not; gives (the words of pip's command, the cell's names)."""

  def install(devices=(), *, folder=None, address=ADDRESS, code=0, **variables):
    for name in ('JAX_PLATFORMS', 'TPU_ACCELERATOR_TYPE', 'AFW_JAX_SMALL'):
      monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
      monkeypatch.setenv(name, value)
    called = []
    done = types.SimpleNamespace(returncode=code, stdout='', stderr='ERROR: No matching distribution')
    monkeypatch.chdir(folder or tmp_path)
    monkeypatch.setattr(glob, 'glob', lambda pattern: [d for d in devices if d.startswith(pattern.split('[')[0])])
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(subprocess, 'run', lambda words, **_: called.append(words) or done)
    names = {}
    exec(INSTALL.replace("REPOSITORY = ''", f'REPOSITORY = {address!r}'), names)
    return called[0], names

  return install


@pytest.mark.parametrize('devices, variables, accelerator, extras', [
  ((), {}, 'cpu', 'viz'),
  (('/dev/nvidia0',), {}, 'gpu', 'cuda,viz'),
  (('/dev/accel0',), {}, 'tpu', 'tpu,viz'),
  ((), {'TPU_ACCELERATOR_TYPE': 'v5e-1'}, 'tpu', 'tpu,viz'),
  (('/dev/nvidia0',), {'JAX_PLATFORMS': 'cpu'}, 'cpu', 'viz'),
])  # fmt: skip
def test_installs_for_the_accelerator(machine, devices, variables, accelerator, extras):
  words, names = machine(devices, **variables)
  assert names['ACCELERATOR'] == accelerator and not names['SMALL']
  assert words[1:] == ['-m', 'pip', 'install', f'afw_jax[{extras}] @ git+{ADDRESS}']


def test_installs_the_clone_that_the_notebook_lies_in(machine):
  words, names = machine(folder=sync.FOLDER, address='')
  assert words[-2:] == ['--editable', f'{ROOT}[viz]'] and str(ROOT) in names['sys'].path
  names['sys'].path.remove(str(ROOT))


def test_says_what_is_missing_where_nothing_can_be_installed(machine):
  with pytest.raises(AssertionError, match='Set REPOSITORY above'):
    machine(address='')
  with pytest.raises(AssertionError, match='No matching distribution'):
    machine(code=1)


def test_installs_nothing_where_the_package_is_there(monkeypatch):
  monkeypatch.setattr(subprocess, 'run', lambda *_, **__: pytest.fail('something is installed'))
  exec(INSTALL, {})


def check(monkeypatch, accelerator: str, answer: str, code: int = 0, **names):
  done = types.SimpleNamespace(returncode=code, stdout=answer, stderr='ImportError: numpy.core')
  monkeypatch.setattr(subprocess, 'run', lambda *_, **__: done)
  given = {'ACCELERATOR': accelerator, 'EXTRAS': 'cuda,viz', 'subprocess': subprocess, 'sys': sys}
  exec(CHECK, given | {'importlib': importlib} | names)


def test_the_check_says_which_devices_are_used(monkeypatch, capsys):
  check(monkeypatch, 'gpu', 'a warning\ngpu|1|NVIDIA L4\n')
  assert 'computes on 1 x NVIDIA L4 (gpu)' in capsys.readouterr().out


def test_the_check_finds_an_accelerator_that_is_not_used(monkeypatch):
  with pytest.raises(AssertionError, match=r'has a gpu, but JAX computes on the cpu.*afw_jax\[cuda,viz\]'):
    check(monkeypatch, 'gpu', 'cpu|1|cpu\n')
  with pytest.raises(AssertionError, match='ImportError'):
    check(monkeypatch, 'cpu', '', code=1)


def test_the_check_asks_for_a_restart_where_old_packages_are_loaded(monkeypatch):
  monkeypatch.setattr(importlib.metadata, 'version', lambda name: '99.0')
  with pytest.raises(AssertionError, match=r'other versions of numpy.*Restart it'):
    check(monkeypatch, 'cpu', 'cpu|1|cpu\n')


def test_a_command_that_fails_stops_the_notebook(capsys):
  names = {'subprocess': subprocess, 'sys': sys, 'shlex': __import__('shlex')}
  exec(RUN, names)
  names['run']('python -c "import sys; print(sys.argv[1:])"', 'two words', 7)
  assert capsys.readouterr().out == "['two words', '7']\n"
  with pytest.raises(AssertionError, match='exit code 3'):
    names['run']('python -c "raise SystemExit(3)"')
