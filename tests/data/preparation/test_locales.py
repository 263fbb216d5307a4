"""Names that are not ASCII survive in every locale: organs in dataset.json, and the file names of scans."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from tiny_dataset import DESCRIPTION, contents, make

from afw_jax.data.preparation import sources
from afw_jax.data.sets.case_files import CaseFiles

ORGANS = {'肝脏': 1, '脾': 7}
PREPARE = """
import json, sys
from afw_jax.data import run_record, selection, store
from afw_jax.data.formats import volumes
from afw_jax.data.preparation import prepare
from afw_jax.data.preparation.options import StoreOptions
root, out = sys.argv[1:]
if __name__ == '__main__':
  prepare.prepare(StoreOptions('folder', size=(32, 32)), root, out, workers=1, progress=False)
  index = store.read_index(out)
  selected = selection.select(index, selection.SelectionOptions())
  recorded = run_record.data_record(index, selected)
  assert sum(map(len, recorded['splits'].values())) == len(index['cases']) == 3
  for case_id in selected.ids:
    case = store.read_case(out, case_id, verify=True)
    assert volumes.read_image(case.meta['source']['image']).array.shape == tuple(case.meta['native_shape'])
  print(json.dumps([index['organs'], sys.getfilesystemencoding()]))
"""


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  root = make(tmp_path_factory.mktemp('raw'), n=3)
  description = {**DESCRIPTION, 'name': '腹部', 'labels': {'background': 0, **ORGANS}}
  (root / 'dataset.json').write_text(json.dumps(description, ensure_ascii=False), encoding='utf-8')
  return root


@pytest.fixture(scope='module', params=['utf-8', 'ascii', 'iso8859-1'])
def locale(request, tmp_path_factory):
  """(encoding of file names, environment of a process with it)."""
  if request.param == 'utf-8':
    return request.param, {'LC_ALL': 'C.UTF-8'}
  plain = {'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}
  if request.param == 'ascii':
    return request.param, {'LC_ALL': 'C', **plain}
  folder = tmp_path_factory.mktemp('locales')
  command = ['localedef', '-i', 'en_US', '-f', 'ISO-8859-1', str(folder / 'en_US.ISO-8859-1')]
  if not shutil.which('localedef') or subprocess.run(command, capture_output=True).returncode > 1:
    pytest.skip('this locale cannot be made here')
  return request.param, {'LC_ALL': 'en_US.ISO-8859-1', 'LOCPATH': str(folder), **plain}


def prepare(root, out, locale):
  encoding, variables = locale
  kept = {key: value for key, value in os.environ.items() if not key.startswith(('LC_', 'LANG', 'PYTHON'))}
  done = subprocess.run(
    [sys.executable, '-c', PREPARE, str(root), str(out)],
    env={**kept, 'PYTHONPATH': os.pathsep.join(sys.path), **variables},
    capture_output=True,
  )
  assert done.returncode == 0, done.stderr.decode(errors='replace')[-2000:]
  organs, used = json.loads(done.stdout)
  assert used == encoding and organs == list(ORGANS)


def test_organs(tmp_path, root, locale):
  prepare(root, tmp_path / 's', locale)
  prepare(root, tmp_path / 'utf8', ('utf-8', {'LC_ALL': 'C.UTF-8'}))
  assert contents(tmp_path / 's') == contents(tmp_path / 'utf8')
  assert '肝脏' in (tmp_path / 's' / 'dataset.json').read_text(encoding='utf-8')


def test_files_of_a_folder(tmp_path):
  for kind in ('scan', 'label'):
    (tmp_path / kind).mkdir()
    with open(os.fsencode(tmp_path / kind) + b'/M\xfcller.dcm', 'wb') as file:
      file.write(kind.encode())
  digests = sources.digests(CaseFiles('c', str(tmp_path / 'scan'), str(tmp_path / 'label')))
  assert len(set(digests.values())) == 2


@pytest.mark.parametrize('name', ['病人一'.encode(), 'Müller'.encode('latin-1')], ids=['UTF-8', 'Latin-1'])
def test_file_names(tmp_path, root, locale, name):
  renamed = tmp_path / 'raw'
  shutil.copytree(root, renamed)
  for kind in ('images', 'labels'):
    folder = os.fsencode(renamed / kind)
    os.rename(folder + b'/c0.nii.gz', folder + b'/' + name + b'.nii.gz')
  prepare(renamed, tmp_path / 's', locale)
  assert sorted(os.listdir(os.fsencode(tmp_path / 's' / 'cases'))) == sorted([b'c1', b'c2', name])
