"""The files in launch/: each says how it is used, is well formed, and runs what it says (with a simulated cluster)."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from afw_jax import models
from afw_jax.distributed import launchers

LAUNCH = ROOT / 'launch'
SHELL = sorted(p.name for p in LAUNCH.iterdir() if p.suffix in ('.sh', '.sbatch'))
SOURCED = {'venv.sh', 'cuda.sh'}
SBATCH = {  # option -> form of its value
  'job-name': r'\w+',
  'nodes': r'\d+',
  'ntasks-per-node': r'\d+',
  'gpus-per-node': r'\d+',
  'cpus-per-task': r'\d+',
  'time': r'\d+:\d\d:\d\d',
  'signal': r'TERM@\d+',
  'requeue': None,
  'open-mode': 'append',
  'output': r'\S+%j\S*',
}


@pytest.mark.parametrize('name', SHELL)
def test_shell_scripts_are_well_formed(name):
  done = subprocess.run(['bash', '-n', LAUNCH / name], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('name', sorted({p.name for p in LAUNCH.iterdir()} - SOURCED))
def test_one_comment_line_says_how_to_use_it(name):
  lines = [line for line in (LAUNCH / name).read_text().splitlines() if not line.startswith('#!')]
  assert lines[0].startswith('# ') and f'launch/{name}' in lines[0]
  assert not lines[1].startswith('# ')


def test_sbatch_directives():
  lines = (LAUNCH / 'slurm.sbatch').read_text().splitlines()
  directives = [re.fullmatch(r'#SBATCH --([\w-]+)(?:=(\S+))?', line) for line in lines if line.startswith('#SBATCH')]
  assert all(directives) and {d[1] for d in directives} == set(SBATCH)
  for name, value in (d.groups() for d in directives):
    assert (value is None) == (SBATCH[name] is None) and re.fullmatch(SBATCH[name] or '', value or ''), name
  first_command = next(i for i, line in enumerate(lines) if line and not line.startswith('#'))
  assert all(i < first_command for i, line in enumerate(lines) if line.startswith('#SBATCH'))  # sbatch reads no further


@pytest.fixture
def project(tmp_path):
  """launch/ with scripts in place of Python, which logs its arguments and exits with $CODE, and of SLURM's commands."""
  shutil.copytree(LAUNCH, tmp_path / 'launch')
  (tmp_path / '.venv' / 'bin').mkdir(parents=True)
  for name in ('requirements.txt', '.venv/requirements.txt'):
    shutil.copy(ROOT / 'requirements.txt', tmp_path / name)
  (tmp_path / 'bin').mkdir()
  for path, text in (
    (
      '.venv/bin/python',
      '[ "$1" = -c ] && exit "${MISSING:-0}"\necho "python $*" >> log\necho "$JAX_PLATFORMS" > platforms\n'
      '[ "$2" = pip ] || exit "${CODE:-0}"',
    ),
    ('bin/srun', 'echo "srun $*" >> log\nshift\nexec "$@"'),
    ('bin/scontrol', 'echo "scontrol $*" >> log'),
  ):
    (tmp_path / path).write_text(f'#!/bin/sh\n{text}\n')
    (tmp_path / path).chmod(0o755)
  return tmp_path


def run(project, name, **environ):
  done = subprocess.run(
    ['bash', f'launch/{name}', '--config=a.py', '--workdir=b c'],
    cwd=project,
    capture_output=True,
    text=True,
    timeout=20,
    env={
      'PATH': f'{project}/bin:{os.environ["PATH"]}',
      'SLURM_SUBMIT_DIR': str(project),
      'SLURM_JOB_ID': '7',
      **environ,
    },
  )
  log = project / 'log'
  lines = log.read_text().splitlines() if log.exists() else []
  log.unlink(missing_ok=True)
  return done.returncode, lines


def test_slurm_requeues_what_was_interrupted_and_nothing_else(project):
  main = 'python -m afw_jax.main --config=a.py --workdir=b c'
  for code in (0, 1, 2, 134):
    assert run(project, 'slurm.sbatch', CODE=str(code)) == (code, [f'srun --kill-on-bad-exit=1 .venv/bin/{main}', main])
  assert run(project, 'slurm.sbatch', CODE='143') == (
    143,
    [f'srun --kill-on-bad-exit=1 .venv/bin/{main}', main, 'scontrol requeue 7'],
  )


@pytest.mark.parametrize(
  'name, platforms', [('gpu.sh', 'cuda,cpu'), ('slurm.sbatch', 'cuda,cpu'), ('tpu_vm.sh', 'tpu,cpu')]
)
def test_accelerator_scripts_ask_for_the_accelerator(project, name, platforms):
  run(project, name)
  assert (project / 'platforms').read_text().strip() == platforms
  run(project, name, JAX_PLATFORMS='cpu')
  assert (project / 'platforms').read_text().strip() == 'cpu'


@pytest.mark.parametrize('name, extra, more', [('gpu.sh', 'cuda12', ''), ('tpu_vm.sh', 'tpu', '--coordinator=auto ')])
def test_accelerator_scripts_install_once_and_pass_on(project, name, extra, more):
  main = f'python -m afw_jax.main {more}--config=a.py --workdir=b c'
  assert run(project, name) == (0, [main])
  pinned = re.search(r'^jax==\S+', (ROOT / 'requirements.txt').read_text(), re.MULTILINE)[0].replace(
    'jax', f'jax[{extra}]'
  )
  code, lines = run(project, name, MISSING='1', CODE='5')
  assert code == 5 and len(lines) == 2 and lines[0].endswith(f' {pinned}') and lines[1] == main


def test_jobset():
  (document,) = yaml.safe_load_all((LAUNCH / 'jobset.yaml').read_text())
  assert (document['apiVersion'], document['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  (workers,) = document['spec']['replicatedJobs']
  job = workers['template']['spec']
  pod = job['template']['spec']
  (container,) = pod['containers']
  environ = {e['name']: e['value'] for e in container['env']}
  assert (
    all(isinstance(value, str) for value in environ.values())
    and job['completionMode'] == 'Indexed'
    and workers['replicas'] == 1
  )
  name = document['metadata']['name']
  for i in range(job['parallelism']):
    process = launchers.resolve_process(environ={**environ, 'JOB_COMPLETION_INDEX': str(i)})
    assert (process.num_processes, process.process_id) == (job['parallelism'], i)
    assert job['completions'] == job['parallelism']
    assert process.coordinator == f'{name}-{workers["name"]}-0-0.{name}:{container["ports"][0]["containerPort"]}'
  assert {m['name'] for m in container['volumeMounts']} == {v['name'] for v in pod['volumes']}
  assert re.fullmatch(r'[\w./:-]+', container['image']) and pod['restartPolicy'] == 'Never'


def test_dockerfile():
  text = (LAUNCH / 'Dockerfile').read_text()
  instructions = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith('#')]
  assert instructions[0][0] == 'FROM' and {i for i, _ in instructions} == {
    'FROM',
    'WORKDIR',
    'COPY',
    'RUN',
    'ENV',
    'ENTRYPOINT',
  }
  copied = [arguments.split()[0] for i, arguments in instructions if i == 'COPY']
  assert all((ROOT / path).exists() for path in copied) and {'afw_jax', 'configs', 'requirements.txt'} <= set(copied)
  assert json.loads(next(a for i, a in instructions if i == 'ENTRYPOINT')) == [
    'tini',
    '--',
    'python',
    '-m',
    'afw_jax.main',
  ]
  commands = [a for i, a in instructions if i == 'RUN']
  assert (
    all(subprocess.run(['bash', '-n', '-c', command]).returncode == 0 for command in commands) and 'tini' in commands[0]
  )
  command = commands[-1]
  version = subprocess.run(
    re.search(r'\$\((.*)\)', command)[1], shell=True, cwd=ROOT, capture_output=True, text=True
  ).stdout.strip()
  assert f'jax=={version} ' in (ROOT / 'requirements.txt').read_text()


NEWER_PYTHON = """#!/bin/sh
case "$1" in
  -c) exit 0 ;;
  --version) echo "Python 3.13.9" ;;
  -) exec {python} - ;;
  -m) mkdir -p "$3/bin" && cp .venv/bin/python "$3/bin/python" && echo "made $3" >> log ;;
esac
"""


def test_the_newest_releases_are_installed_once(project):
  shutil.copy(ROOT / 'pyproject.toml', project)
  shim = project / 'bin' / 'python3.13'
  shim.write_text(NEWER_PYTHON.format(python=sys.executable), encoding='utf-8')
  shim.chmod(0o755)
  code, first = run(project, 'test_newest.sh')
  assert code == 0 and first[0] == 'made .venv-newest' and ' pip install ' in first[1]
  assert all(line.startswith('python -m pytest ') for line in first[2:]) and len(first) == 4
  asked = (project / '.venv-newest' / 'requirements.txt').read_text(encoding='utf-8').splitlines()
  assert asked[0] == 'Python 3.13.9' and 'jax>=0.10.2' in asked and not any('==' in line for line in asked)
  assert run(project, 'test_newest.sh') == (0, first[2:])
  ranges = (project / 'pyproject.toml').read_text(encoding='utf-8')
  (project / 'pyproject.toml').write_text(ranges.replace('"jax>=0.10.2"', '"jax>=0.11"'), encoding='utf-8')
  assert run(project, 'test_newest.sh') == (0, first)


def test_without_a_newer_python_there_is_nothing_to_test(project):
  for name in ('python3.12', 'python3.13'):
    (project / 'bin' / name).write_text('#!/bin/sh\nexit 127\n', encoding='utf-8')
    (project / 'bin' / name).chmod(0o755)
  assert run(project, 'test_newest.sh') == (0, [])


def test_the_newest_releases_are_tested_with_every_network():
  script = (LAUNCH / 'test_newest.sh').read_text(encoding='utf-8')
  folder, one, other = re.search(r"run (tests/models) -k '(\w+) or (\w+)'", script).groups()
  for name in models.MODELS:
    tests = (path.read_text(encoding='utf-8') for path in (ROOT / folder).glob(f'test_{name}*.py'))
    assert re.search(rf'def test_\w*({one}|{other})', '\n'.join(tests)), name
