"""The package as pip installs it: complete, with its configs and its command, from any folder."""

import subprocess
import sys
import tomllib
import zipfile

import pytest
from conftest import ROOT, environment
from marks import SLOW

PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))


def test_every_package_is_installed():
  folders = {'.'.join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob('afw_jax/**/__init__.py')}
  assert set(PROJECT['tool']['setuptools']['packages']) == folders | {'afw_jax.configs'}
  assert {path.parent.name for path in ROOT.glob('afw_jax/**/*.py')} == {name.split('.')[-1] for name in folders}
  assert PROJECT['tool']['setuptools']['package-dir']['afw_jax.configs'] == 'configs'


def test_every_file_of_the_page_is_installed():
  assets = ROOT / 'afw_jax' / 'report' / 'page' / 'assets'
  (pattern,) = PROJECT['tool']['setuptools']['package-data']['afw_jax.report.page']
  assert {path.name for path in assets.parent.glob(pattern)} == {path.name for path in assets.iterdir()}
  licence = 'afw_jax/report/page/assets/niivue.LICENSE.txt'
  assert licence in PROJECT['project']['license-files'] and (ROOT / licence).exists()
  others = {path for path in (ROOT / 'afw_jax').rglob('*') if path.is_file() and path.suffix not in ('.py', '.pyc')}
  assert others == set(assets.iterdir())


def test_requirements_are_pinned_within_what_the_package_allows():
  project = PROJECT['project']
  allowed = [
    *project['dependencies'],
    *(r for extra in ('viz', 'dicom', 'test') for r in project['optional-dependencies'][extra]),
  ]
  pins = {}
  for line in (ROOT / 'requirements.txt').read_text(encoding='utf-8').splitlines():
    if '==' in line:
      name, _, version = line.split('#')[0].strip().partition('==')
      pins[name.lower()] = version
      assert '#' in line, f'{name}: say what it is for'
  as_numbers = lambda version: [int(part) for part in version.split('.')]
  for requirement in allowed:
    name, _, least = requirement.partition('>=')
    assert as_numbers(pins[name.lower()]) >= as_numbers(least), requirement


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """(environment of a process that sees the installed package only, its `afw-jax` command)."""
  folder = tmp_path_factory.mktemp('package')
  source, built, target = folder / 'source', folder / 'dist', folder / 'site'
  files = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=True).stdout
  source.mkdir()
  subprocess.run(['xargs', '-0', 'cp', '--parents', '-t', source], cwd=ROOT, input=files, check=True)
  subprocess.run([sys.executable, '-m', 'build', '--outdir', built, source], check=True)
  packages = sorted(built.iterdir())
  assert [path.suffix for path in packages] == ['.whl', '.gz']
  assert not [name for name in zipfile.ZipFile(packages[0]).namelist() if 'colab' in name or name.endswith('.ipynb')]
  subprocess.run([sys.executable, '-m', 'twine', 'check', '--strict', *packages], check=True)
  install = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', target, packages[0]]
  subprocess.run(install, check=True)
  return environment(PYTHONPATH=str(target)), str(target / 'bin' / 'afw-jax')


@SLOW
def test_the_demo_runs_from_the_installed_wheel(installed, tmp_path):
  variables, afw_jax = installed

  def run(*arguments):
    done = subprocess.run(arguments, env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout

  where = run(sys.executable, '-c', 'import afw_jax.configs.demo as d, afw_jax; print(afw_jax.__file__, d.__file__)')
  assert str(ROOT) not in where
  assert 'synapse_released' in run(afw_jax, '--help')
  run(sys.executable, '-m', 'afw_jax.data.phantom', '--output', 'runs/demo-data', '--num_cases', '9')
  table = run(afw_jax, '--config=demo', '--config.train.epochs=2')
  assert 'liver' in table and (tmp_path / 'runs' / 'demo' / 'report' / 'report.md').exists()
  page = (tmp_path / 'runs' / 'demo' / 'report' / 'index.html').read_text(encoding='utf-8')
  assert 'viewer-data' in page and 'niivue' in page
  run(afw_jax, '--mode=predict', '--workdir=runs/demo', '--input=runs/demo-data/imagesTs', '--output=new')
  assert (tmp_path / 'new' / 'new_000.nii.gz').exists()


@SLOW
def test_a_config_file_of_the_user_needs_nothing_of_the_clone(installed, tmp_path):
  variables, afw_jax = installed
  (tmp_path / 'mine.py').write_text(
    'from afw_jax.config import default_config\n'
    'def get_config():\n  config = default_config()\n  config.data.dataset = "folder"\n  return config\n'
  )
  done = subprocess.run([afw_jax, '--config=mine.py'], env=variables, cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 2 and 'error: data/synapse: no such folder' in done.stderr
