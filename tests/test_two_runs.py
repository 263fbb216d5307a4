"""Two runs in one workdir at the same time: the second is refused and changes nothing, whatever its mode."""

import json
import shutil
import subprocess

from conftest import ROOT, command, environment
from paused import Paused
from test_workdir import contents


def start(*arguments):
  pipe = subprocess.PIPE
  return subprocess.Popen(command(*arguments), cwd=ROOT, env=environment(), stdout=pipe, stderr=pipe, text=True)


def refused(process, workdir):
  _, error = process.communicate(timeout=180)
  assert process.returncode == 2 and 'Traceback' not in error, error[-3000:]
  (line,) = [line for line in error.splitlines() if line.startswith('error:')]
  assert f'{workdir}: is in use by another process' in line and 'lock' not in line


def test_no_mode_takes_a_workdir_from_a_run_that_has_just_started(stored, tmp_path):
  workdir = tmp_path / 'run'
  first = Paused('afw_jax.train.train', tmp_path / 'gate', *stored, f'--workdir={workdir}', '--mode=train')
  try:
    first.reach()
    before = contents(workdir)
    assert json.loads(before[(workdir / 'config.json').relative_to(workdir)])['seed'] == 0
    others = [
      start(*stored, f'--workdir={workdir}', f'--mode={mode}', f'--config.seed={seed}')
      for mode, seed in (('train', 0), ('prepare', 1), ('evaluate', 1))
    ]
    for process in others:
      refused(process, workdir)
    assert contents(workdir) == before
  finally:
    code = first.finish()
  assert code == 0, first.text()
  assert json.loads((workdir / 'config.json').read_text(encoding='utf-8'))['seed'] == 0
  assert (workdir / 'checkpoints' / 'last' / '24').is_dir()


def scores(workdir):
  return {p.name: json.loads(p.read_text(encoding='utf-8')) for p in (workdir / 'cases').glob('*.json')}


def test_evaluations_never_mix(trained, stored, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(trained, workdir)
  arguments = (*stored, f'--workdir={workdir}', '--mode=evaluate')
  first = Paused('afw_jax.evaluate.score_case', tmp_path / 'gate', *arguments, '--config.eval.convention=monai')
  try:
    first.reach()
    before = contents(workdir)
    refused(start(*arguments), workdir)  # while the first is at work
    assert contents(workdir) == before
  finally:
    first.process.kill()
  first.process.wait(60)
  (workdir / '.evaluating' / 'cases' / 'of_the_first.json').write_text('{}', encoding='utf-8')
  assert scores(workdir) == scores(trained)

  process = start(*arguments, '--config.eval.convention=transunet')  # once it was killed
  _, error = process.communicate(timeout=180)
  assert process.returncode == 0, error[-3000:]
  found = scores(workdir)
  assert found.keys() == scores(trained).keys() and {r['convention'] for r in found.values()} == {'transunet'}
  assert len(list((workdir / 'predictions').iterdir())) == 2 and not (workdir / '.evaluating').exists()
