"""Text and JSON files: whole or absent, UTF-8 in every locale, valid JSON for every reader."""

import errno
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from afw_jax.errors import InputError, did_you_mean
from afw_jax.system import atomic_files


def strict(text):
  return json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))


def test_json_that_every_reader_takes(tmp_path):
  value = {'b': [1.5, float('nan'), (float('inf'), -float('inf'))], 'a': {'肝臓': 1, 'x': None}}
  atomic_files.write_json(tmp_path / 'new' / 'a.json', value)
  text = (tmp_path / 'new' / 'a.json').read_text(encoding='utf-8')
  assert strict(text) == {'b': [1.5, None, [None, None]], 'a': {'肝臓': 1, 'x': None}}
  assert '肝臓' in text
  assert atomic_files.read_json(tmp_path / 'new' / 'a.json', cure='') == strict(text)
  assert os.listdir(tmp_path / 'new') == ['a.json']


def test_an_error_leaves_the_old_file_and_no_other(tmp_path):
  atomic_files.write_text(tmp_path / 'a.txt', 'old')
  with pytest.raises(ZeroDivisionError), atomic_files.replace_atomically(tmp_path / 'a.txt') as file:
    file.write('half')
    raise ZeroDivisionError
  with pytest.raises(TypeError):
    atomic_files.write_json(tmp_path / 'a.txt', {'a': object()})
  assert (tmp_path / 'a.txt').read_text() == 'old' and os.listdir(tmp_path) == ['a.txt']


def test_every_locale(tmp_path):
  program = (
    'import sys; from afw_jax.system import atomic_files as a; assert sys.flags.utf8_mode == 0; '
    'a.write_json(sys.argv[1], {"\\u813e": "\\xb1"}); assert a.read_json(sys.argv[1], cure="") == {"\\u813e": "\\xb1"}'
  )
  environment = {**os.environ, 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'LC_ALL': 'C', 'PYTHONPATH': str(ROOT)}
  done = subprocess.run([sys.executable, '-c', program, str(tmp_path / 'a.json')], env=environment, capture_output=True)
  assert done.returncode == 0, done.stderr


def test_file_names_that_are_not_utf8(tmp_path):
  name = os.fsdecode(b'M\xfcller.nii.gz')
  atomic_files.write_json(tmp_path / 'a.json', {name: '肝臓'})
  assert atomic_files.read_json(tmp_path / 'a.json', cure='') == {name: '肝臓'}
  atomic_files.write_text(tmp_path / 'a.txt', f'{name}\n')
  assert (tmp_path / 'a.txt').read_bytes() == b'M\xfcller.nii.gz\n'


@pytest.mark.parametrize(
  'content, problem',
  [(None, 'is not there'), (b'{"a": 1', 'is damaged'), (b'\xff\xfe', 'is damaged'), (b'[1]', 'is not a JSON object')],
)
def test_unreadable_json(tmp_path, content, problem):
  if content is not None:
    (tmp_path / 'a.json').write_bytes(content)
  with pytest.raises(InputError, match=f'a.json: {problem}.*Cure'):
    atomic_files.read_json(tmp_path / 'a.json', missing='is not there', cure='Cure')


def test_a_byte_order_mark_is_no_damage(tmp_path):
  (tmp_path / 'a.json').write_bytes(b'\xef\xbb\xbf{"a": 1}')
  assert atomic_files.read_json(tmp_path / 'a.json', cure='') == {'a': 1}


def test_what_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError) as error:
    atomic_files.write_text(tmp_path / 'file' / 'a.txt', '')
  assert str(error.value).startswith(f'{tmp_path}/file/a.txt: cannot be written (')  # and not its temporary name


def test_did_you_mean():
  assert did_you_mean('synapze', ['synapse', 'chaos', None]) == "Did you mean 'synapse'? "
  assert did_you_mean('xyz', ['synapse']) == '' == did_you_mean(3, [])


def refusing(folders, code):
  """`os.fsync` of a file system that refuses it, for folders or for files."""
  real = os.fsync

  def fsync(file):
    if os.path.isdir(f'/proc/self/fd/{file}') == folders:
      raise OSError(code, os.strerror(code))
    real(file)

  return fsync


@pytest.mark.parametrize('code', [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS])
def test_file_systems_that_cannot_flush_folders(tmp_path, monkeypatch, code):
  monkeypatch.setattr(os, 'fsync', refusing(True, code))
  assert not atomic_files.sync_folder(tmp_path)
  atomic_files.write_text(tmp_path / 'a.txt', 'new')
  assert (tmp_path / 'a.txt').read_text() == 'new'


def test_folders_that_cannot_be_opened_for_reading_are_not_flushed(tmp_path, monkeypatch):
  def refuse(*_):
    raise PermissionError(errno.EACCES, 'denied')

  assert atomic_files.sync_folder(tmp_path)
  monkeypatch.setattr(os, 'open', refuse)
  assert not atomic_files.sync_folder(tmp_path)


@pytest.mark.parametrize('code', [errno.EINVAL, errno.ENOTSUP])
def test_file_systems_that_cannot_flush_files(tmp_path, monkeypatch, code):
  monkeypatch.setattr(os, 'fsync', refusing(False, code))
  atomic_files.write_text(tmp_path / 'a.txt', 'new')
  assert (tmp_path / 'a.txt').read_text() == 'new'


@pytest.mark.parametrize('code', [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize('folders', [True, False])
def test_a_full_or_failing_disk_is_an_error_when_it_is_flushed(tmp_path, monkeypatch, folders, code):
  monkeypatch.setattr(os, 'fsync', refusing(folders, code))
  with pytest.raises(InputError if not folders else OSError):
    atomic_files.write_text(tmp_path / 'a.txt', 'new')
    atomic_files.sync_folder(tmp_path)
