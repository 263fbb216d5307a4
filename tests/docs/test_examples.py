"""The examples of the documentation run: every Python block, and the shell blocks marked with <!-- test: run -->."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import environment
from doc_pages import PAGES, blocks

PYTHON = [page for page in PAGES if blocks(page, 'python')]
MARKED = [block for page in PAGES for block in blocks(page, 'bash') if block.mark == 'test: run']
# One process runs all pages, each in a namespace of its own: most of the time goes into importing and compiling.
DRIVER = """
import contextlib, io, json, sys, traceback
results = {}
for page, scripts in json.load(sys.stdin).items():
  namespace, results[page] = {'__name__': page}, {'printed': [], 'error': ''}
  try:
    for script in scripts:
      with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(script, page, 'exec'), namespace)
      results[page]['printed'].append(out.getvalue())
  except BaseException:
    results[page]['error'] = traceback.format_exc()
print(json.dumps(results))
"""


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


@pytest.fixture(scope='module')
def results(workspace):
  """Page -> what each of its Python blocks printed, and the traceback of the one that failed."""
  scripts = {page: ['\n' * block.line + block.text for block in blocks(page, 'python')] for page in PYTHON}
  done = run(workspace, [sys.executable, '-c', DRIVER], json.dumps(scripts))  # blank lines: tracebacks show the page's
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)


@pytest.mark.parametrize('page', PYTHON)
def test_python_blocks(page, results):
  """The blocks of a page run in order. What a block prints is the ```text block behind it, if there is one."""
  assert not results[page]['error'], results[page]['error']
  found = blocks(page, 'python', 'text')
  printed = iter(results[page]['printed'])
  for block, following in zip(found, [*found[1:], None]):
    if block.language == 'python' and (text := next(printed)) and following and following.language == 'text':
      assert text == following.text, str(block)


@pytest.mark.parametrize('block', MARKED, ids=str)
def test_shell_blocks(block, workspace):
  done = run(workspace, ['bash', '-euo', 'pipefail'], block.text)
  assert done.returncode == 0, f'{block}: {done.stderr[-3000:]}'
