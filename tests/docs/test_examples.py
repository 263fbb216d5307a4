"""The examples of the documentation run: every Python block, and the shell blocks marked with <!-- test: run -->."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import environment
from doc_pages import PAGES, blocks

PYTHON = [page for page in PAGES if blocks(page, 'python')]
MARKED = [block for page in PAGES for block in blocks(page, 'bash') if block.mark == 'test: run']


@pytest.fixture(scope='module')
def workspace(tmp_path_factory, trained, phantoms):
  """A folder as a reader has it: two finished runs, a scan, a folder of scans, and the program on the path."""
  folder = tmp_path_factory.mktemp('reader')
  for name in ('mine', 'other'):
    shutil.copytree(trained, folder / 'runs' / name)
  (scan,) = (phantoms / 'imagesTs').iterdir()
  shutil.copy(scan, folder / 'scan.nii.gz')
  shutil.copytree(phantoms / 'imagesTs', folder / 'new_scans')
  programs = folder / 'bin'
  programs.mkdir()
  for name, start in (('afw-jax', f'{sys.executable} -m afw_jax.main'), ('python', sys.executable)):
    (programs / name).write_text(f'#!/bin/sh\nexec {start} "$@"\n', encoding='utf-8')
    (programs / name).chmod(0o755)
  return folder


def run(workspace, command, text):
  path = f'{workspace / "bin"}{os.pathsep}{os.environ["PATH"]}'
  return subprocess.run(
    command, input=text, cwd=workspace, env=environment(PATH=path), capture_output=True, text=True, timeout=300
  )


@pytest.mark.parametrize('page', PYTHON)
def test_python_blocks(page, workspace):
  """The blocks of a page in order, in one namespace. What a block prints is the ```text block behind it, if any."""
  found = blocks(page, 'python', 'text')
  script = ''
  for block, following in zip(found, [*found[1:], None]):
    if block.language == 'python':
      script += '\n' * (block.line - script.count('\n')) + block.text  # lines as on the page, for the traceback
      if following and following.language == 'text' and 'print(' in block.text:
        script += f'print({"--" + str(following)!r})\n'
  done = run(workspace, [sys.executable, '-'], script)
  assert done.returncode == 0, f'{page}: {done.stderr[-3000:]}'
  rest = done.stdout
  for block in found:
    if block.language == 'text' and f'--{block}\n' in rest:
      printed, _, rest = rest.partition(f'--{block}\n')
      assert printed == block.text, str(block)


@pytest.mark.parametrize('block', MARKED, ids=str)
def test_shell_blocks(block, workspace):
  done = run(workspace, ['bash', '-euo', 'pipefail'], block.text)
  assert done.returncode == 0, f'{block}: {done.stderr[-3000:]}'
