"""Writes text and JSON files atomically, as UTF-8 in every locale."""

import contextlib
import errno
import json
import math
import os
import socket
from collections.abc import Iterator
from typing import Any

from afw_jax.errors import InputError
from afw_jax.system.file_names import temporary_name

_CURES = {
  errno.ENOSPC: 'Free some disk space and run the same command again: finished work is kept',
  errno.EDQUOT: 'Your disk quota is used up: free some space and run the same command again: finished work is kept',
  errno.EFBIG: 'A limit on file size is in force (ulimit -f): raise it and run the same command again',
}

# What file systems answer that cannot flush: mounts of Windows folders, CIFS, VirtualBox, some network disks, pipes.
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_NO_FOLDER_SYNC = (*_NO_SYNC, errno.EBADF)
_NO_FOLDER_OPEN = (*_NO_FOLDER_SYNC, errno.EACCES, errno.EPERM, errno.EISDIR)


def process_name() -> str:
  """A name that no other living process has, on this host or another one: for temporary files on shared disks."""
  return f'{socket.gethostname()}-{os.getpid()}'


def sync(file: int) -> None:
  """Flushes an open file to the disk, where its file system can do so; `file` is the number of its descriptor.

  Raises:
    OSError: the disk is full or failing.
  """
  try:
    os.fsync(file)
  except OSError as error:
    if error.errno not in _NO_SYNC:
      raise


def sync_folder(path: str | os.PathLike) -> bool:
  """Flushes the names in a folder to the disk; returns whether its file system can, as many mounts cannot.

  Raises:
    OSError: the disk is full or failing, or there is no such folder.
  """
  folder = None
  try:
    folder = os.open(path, os.O_RDONLY)
    os.fsync(folder)
  except OSError as error:
    if error.errno not in (_NO_FOLDER_OPEN if folder is None else _NO_FOLDER_SYNC):
      raise
    return False
  finally:
    if folder is not None:
      os.close(folder)
  return True


@contextlib.contextmanager
def write_errors(path: object) -> Iterator[None]:
  """Turns an OSError of what is written inside into an InputError that names the path and the cure."""
  try:
    yield
  except OSError as error:
    cure = _CURES.get(error.errno, 'Check the path and its permissions, or choose another folder')
    raise InputError(path, f'cannot be written ({error.strerror or error})', cure) from error


@contextlib.contextmanager
def replace_atomically(path: str | os.PathLike, *, newline: str | None = None, binary: bool = False) -> Iterator[Any]:
  """Opens a file for writing that takes the place of `path` when the block ends without an error.

  The file is written under a temporary name in the same folder (made if missing), flushed to the disk and renamed.
  After an error `path` is as it was.

  Args:
    path: of the file.
    newline: as for `open`; '' for the csv module.
    binary: bytes are written, and no text.

  Yields:
    The open file.

  Raises:
    InputError: the disk is full, or the folder cannot be written.
  """
  path = os.path.abspath(path)
  temporary = temporary_name(path, process_name())
  with write_errors(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
      # File names that are not valid UTF-8 are written with their own bytes.
      how = {} if binary else {'encoding': 'utf-8', 'errors': 'surrogateescape', 'newline': newline}
      with open(temporary, 'wb' if binary else 'w', **how) as file:
        yield file
        file.flush()
        sync(file.fileno())
      os.replace(temporary, path)
    finally:
      with contextlib.suppress(OSError):
        os.unlink(temporary)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file; see `replace_atomically`."""
  with replace_atomically(path) as file:
    file.write(text)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes a JSON file with sorted keys; NaN and infinities, which JSON does not know, become null."""
  write_text(path, to_json(value, indent=2, sort_keys=True) + '\n')


def to_json(value: Any, **options) -> str:
  """`json.dumps` for every JSON reader: NaN and infinities become null, non-ASCII characters are not escaped.

  File names that are not valid UTF-8 contain surrogates in Python: text with these is escaped, and is read unchanged.
  """
  text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, **options)
  try:
    text.encode()
  except UnicodeEncodeError:
    return json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, **options)
  return text


def _finite(value: Any) -> Any:
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, dict):
    return {key: _finite(item) for key, item in value.items()}
  return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


class _Twice(Exception):
  """A key of a JSON object that is there twice: of the two values one would be lost."""


def _unique(pairs: list[tuple[str, Any]]) -> dict:
  found = dict(pairs)
  if len(found) < len(pairs):
    keys = [key for key, _ in pairs]
    raise _Twice(repr(next(key for key in keys if keys.count(key) > 1)))
  return found


def read_json(path: str | os.PathLike, *, missing: str = 'does not exist', cure: str, kind: type = dict) -> Any:
  """Reads a JSON object, or a list.

  Args:
    path: of the file; UTF-8, UTF-16 or UTF-32, with or without a byte order mark.
    missing: what is wrong where there is no such file.
    cure: what to do then, or where the file is damaged.
    kind: dict, or list.

  Raises:
    InputError: no such file, no permission, not JSON, not of this kind, or a key that is there twice.
  """
  try:
    with open(path, 'rb') as file:
      content = file.read()
  except (FileNotFoundError, NotADirectoryError) as error:
    raise InputError(path, missing, cure) from error
  except OSError as error:
    raise InputError(path, f'cannot be read ({error.strerror or error})', 'Check its permissions') from error
  return parse_json(content, path, cure=cure, kind=kind)


def parse_json(content: bytes, where: object, *, cure: str, kind: type = dict) -> Any:
  """Parses a JSON object, or a list.

  Args:
    content: of the file; UTF-8, UTF-16 or UTF-32, with or without a byte order mark.
    where: the file, for errors.
    cure: what to do where it is damaged.
    kind: dict, or list.

  Raises:
    InputError: not JSON, not of this kind, or a key that is there twice.
  """
  try:
    value = json.loads(content, object_pairs_hook=_unique)
  except UnicodeDecodeError as error:
    raise InputError(where, f'is damaged, or not written in UTF-8 ({error})', cure) from error
  except _Twice as error:
    raise InputError(where, f'has {error} twice in one object', 'Keep one of them') from error
  except (json.JSONDecodeError, RecursionError) as error:
    raise InputError(where, f'is damaged ({error})', cure) from error
  if not isinstance(value, kind):
    raise InputError(where, f'is not a JSON {"object" if kind is dict else "list"}', cure)
  return value
