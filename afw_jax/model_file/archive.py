"""The zip of a model file: written as a whole or not at all, and read without trusting it.

Nothing is ever unpacked to the disk: members are read into memory by their names. Every member has its SHA-256 in
meta.json, and every size is checked before memory is allocated for it.
"""

import contextlib
import errno
import hashlib
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from afw_jax.errors import InputError, quoted
from afw_jax.system import atomic_files

FORMAT, VERSION = 'afw_jax model', 1
META = 'meta.json'
_AGAIN = 'Copy it again, or export the model again (--mode=export).'
_STORED = ('.safetensors', '.gz')  # what compression makes hardly smaller
_MOST_META = 1 << 24
_MOST_COMPRESSED = 1 << 28  # bytes of all compressed members together, unpacked: programs and texts
_MOST_DEFLATED = 1100  # deflate compresses by 1032 at most
# What zipfile raises for damaged archives.
_DAMAGE = (
  zipfile.BadZipFile,
  zlib.error,
  struct.error,
  EOFError,
  IndexError,
  NotImplementedError,
  OverflowError,
  RuntimeError,
  ValueError,
)


def write(path: str, members: Iterable[tuple[str, bytes]], meta: dict, *, verify: Callable[[str], object]) -> None:
  """Writes a model file; equal content gives equal bytes.

  Args:
    path: of the zip; it takes this place when it is complete.
    members: (name, content) of each member; they may be made one after the other.
    meta: anything JSON holds; 'format', 'version' and 'members' (name -> SHA-256) are added.
    verify: is given the path of the complete file under its temporary name; what it raises, the file is not there.

  Raises:
    InputError: more than the 4 GiB that every reader of zips takes, or the disk cannot be written.
  """
  digests = {}
  with atomic_files.replace_atomically(path, binary=True) as file:
    try:
      with zipfile.ZipFile(file, 'w', allowZip64=False) as archive:
        for name, content in members:
          digests[name] = hashlib.sha256(content).hexdigest()
          _add(archive, name, content)
        meta = {'format': FORMAT, 'version': VERSION, **meta, 'members': digests}
        _add(archive, META, (atomic_files.to_json(meta, indent=2) + '\n').encode())
      file.flush()
      verify(file.name)
    except zipfile.LargeZipFile as error:
      cure = 'Export fewer runs into one file.'
      raise InputError(path, f'would be larger than a zip of 4 GiB ({error})', cure) from error
    except InputError as error:
      raise InputError(error.where.replace(file.name, path), error.problem, error.cure) from error


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
  info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
  info.external_attr = 0o644 << 16
  info.compress_type = zipfile.ZIP_STORED if name.endswith(_STORED) else zipfile.ZIP_DEFLATED
  archive.writestr(info, content)


def read_meta(path: str) -> dict:
  """The meta.json of a model file, whose members are all there.

  Raises:
    InputError: not a model file, a damaged or hostile one, or one of a newer version.
  """
  with _opened(path) as archive:
    infos = {info.filename: info for info in archive.infolist()}
    if META not in infos:
      raise InputError(path, f'is not a model file: it has no {META}', 'Give a file made by --mode=export.')
    if infos[META].file_size > _MOST_META:
      raise InputError(path, f'its {META} claims {infos[META].file_size} bytes', _AGAIN)
    meta = atomic_files.parse_json(_read(path, archive, infos[META]), f'{path}/{META}', cure=_AGAIN)
  if meta.get('format') != FORMAT:
    raise InputError(
      path, f'is not a model file: its format is {quoted(meta.get("format"))}', 'Give one by --mode=export.'
    )
  version = meta.get('version')
  if type(version) is not int or version < 1:
    raise InputError(path, f'its format version is {version!r}', _AGAIN)
  if version > VERSION:
    what = f'has format version {version}, and this version of afw_jax reads up to {VERSION}'
    raise InputError(path, what, 'Install a newer version of afw_jax.')
  members = meta.get('members')
  if not isinstance(members, dict) or not all(_is_digest(digest) for digest in members.values()):
    raise InputError(path, f'its {META} does not list its members', _AGAIN)
  if differing := sorted({*members, META} ^ infos.keys()):
    where = 'is missing' if differing[0] in members else f'is not named in its {META}'
    raise InputError(path, f'{quoted(differing[0])} {where}', _AGAIN)
  return meta


def read(path: str, meta: dict, name: str) -> bytes:
  """The content of one member of a model file.

  Args:
    path: of the model file.
    meta: its `read_meta`.
    name: of the member.

  Raises:
    InputError: it is missing or damaged, or is not what meta.json says.
  """
  with _opened(path) as archive:
    found = [info for info in archive.infolist() if info.filename == name]
    if not found or name not in meta['members']:
      raise InputError(path, f'{name!r} is missing', _AGAIN)
    content = _read(path, archive, found[0])
  if hashlib.sha256(content).hexdigest() != meta['members'][name]:
    raise InputError(path, f'{name} is not what its {META} says: its SHA-256 is another', _AGAIN)
  return content


@contextlib.contextmanager
def _opened(path: str) -> Iterator[zipfile.ZipFile]:
  """The zip, with names and sizes that can be trusted."""
  try:
    with zipfile.ZipFile(path) as archive:
      _check(path, archive, os.path.getsize(path))
      yield archive
  except InputError:
    raise
  except FileNotFoundError as error:
    raise InputError(path, 'does not exist', 'Give a model file made by --mode=export.') from error
  except OSError as error:
    if error.errno != errno.EINVAL:  # of a position before the start of the file
      raise InputError(path, f'cannot be read ({error.strerror or error})', 'Check its permissions.') from error
    raise InputError(path, 'is not a complete model file', _AGAIN) from error
  except _DAMAGE as error:
    raise InputError(path, f'is not a complete model file ({error or type(error).__name__})', _AGAIN) from error


def _check(path: str, archive: zipfile.ZipFile, size: int) -> None:
  infos = archive.infolist()
  names = [info.filename for info in infos]
  if len(set(names)) < len(names):
    raise InputError(path, 'holds two members of one name', _AGAIN)
  unpacked = 0
  for info in infos:
    parts = info.filename.split('/')
    if (
      info.orig_filename != info.filename
      or '' in parts
      or {'.', '..'} & set(parts)
      or re.search(r'[\\:\0]', info.filename)
    ):
      raise InputError(path, f'the member {quoted(info.orig_filename)} would lie outside of the file', 'Do not use it.')
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      raise InputError(
        path, f'{quoted(info.filename)} is encrypted, or compressed by a method that is not used here', _AGAIN
      )
    stored = info.compress_type == zipfile.ZIP_STORED
    most = info.compress_size if stored else _MOST_DEFLATED * info.compress_size
    unpacked += 0 if stored else info.file_size
    if info.file_size > most or unpacked > _MOST_COMPRESSED:
      raise InputError(
        path, f'{quoted(info.filename)} claims {info.file_size} bytes, more than it can hold', 'Do not use it.'
      )
  if sum(info.compress_size for info in infos) > size:
    raise InputError(path, 'its members claim more bytes than the file has', _AGAIN)


def _read(path: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
  with archive.open(info) as member:
    content = member.read(info.file_size + 1)
  if len(content) != info.file_size:
    raise InputError(path, f'{info.filename} has not the {info.file_size} bytes that it claims', _AGAIN)
  return content


def _is_digest(value: Any) -> bool:
  return isinstance(value, str) and re.fullmatch('[0-9a-f]{64}', value) is not None
