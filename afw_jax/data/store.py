"""The prepared store: plain .npy arrays, one folder per case, each case whole or absent."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil
import socket
import threading
import time

import numpy as np

from afw_jax.errors import InputError

FORMAT = 1
STAGING = '.staging'  # a store inside the store: cases wait here until all of them are fine
_TMP = '.tmp-'
_OTHERS = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)  # of a rename: another process was there first
_HEADERS = (
  threading.Lock()
)  # numpy parses a header with `ast`, which two threads at once break (SystemError, Python 3.11)
_CURES = {
  errno.ENOSPC: 'Free some disk space and run it again: finished cases are kept',
  errno.EDQUOT: 'Your disk quota is used up: free some space and run it again: finished cases are kept',
  errno.EFBIG: 'A limit on file size is in force (ulimit -f): raise it and run it again',
}


@dataclasses.dataclass(frozen=True)
class Case:
  """One prepared case: id, arrays (name -> read-only memory map) and meta (case.json)."""

  id: str
  arrays: dict[str, np.ndarray]
  meta: dict


def case_folder(store: str | os.PathLike, case_id: str) -> pathlib.Path:
  """Where a case lies, or would lie."""
  return pathlib.Path(store) / 'cases' / case_id


@contextlib.contextmanager
def writing(path: object):
  """Turns the operating system's refusal to write into one line that names the path and the cure."""
  try:
    yield
  except OSError as e:
    cure = _CURES.get(e.errno, 'Check the path and its permissions, or choose another folder')
    raise InputError(e.filename or path, f'cannot be written ({e.strerror or e})', cure) from e


def write_case(store: str | os.PathLike, case_id: str, arrays: dict[str, np.ndarray], meta: dict) -> dict:
  """Writes a case so that it is whole or absent, whatever happens meanwhile.

  Args:
    store: folder of the store.
    case_id: name of the case, and of its folder.
    arrays: name -> array; depth first.
    meta: anything JSON holds; 'id', 'format', 'arrays' (shape, dtype, bytes, sha256 of each) and 'meta_sha256' are
      added.

  Returns:
    The meta as written to case.json.

  Raises:
    InputError: no permission, no space left.
  """
  final = case_folder(store, case_id)
  tmp = final.with_name(f'{_TMP}{case_id}-{process()}')
  with writing(final):
    shutil.rmtree(tmp, ignore_errors=True)
    try:
      tmp.mkdir(parents=True)
      entries = {name: _write_array(tmp / f'{name}.npy', array) for name, array in arrays.items()}
      meta = json.loads(json.dumps({**meta, 'id': case_id, 'format': FORMAT, 'arrays': entries}, allow_nan=False))
      meta['meta_sha256'] = _meta_sha256(meta)
      _write_json(tmp / 'case.json', meta)
      _sync_folder(tmp)
      _put(tmp, final, meta)
    finally:
      shutil.rmtree(tmp, ignore_errors=True)
  return meta


def read_case(store: str | os.PathLike, case_id: str, *, verify: bool = False) -> Case:
  """Opens a case; the arrays are memory-mapped, nothing is read yet.

  Args:
    store: folder of the store.
    case_id: which case.
    verify: also reads every byte and compares checksums.

  Returns:
    The `Case`.

  Raises:
    InputError: no such case, or a file of it is damaged.
  """
  folder = case_folder(store, case_id)
  meta = _read_json(folder / 'case.json', f'no such case in the store {store}')
  if meta.get('meta_sha256') != _meta_sha256(meta):
    raise InputError(folder / 'case.json', 'is damaged (its checksum is wrong)', f'Delete {folder} and prepare again')
  arrays = {}
  for name, entry in meta['arrays'].items():
    path = folder / f'{name}.npy'
    cure = f'Delete {folder} and prepare again'
    try:
      size = path.stat().st_size
      if size != entry['bytes']:
        raise InputError(path, f'has {size} bytes instead of {entry["bytes"]}', cure)
      if verify and _sha256(path) != entry['sha256']:
        raise InputError(path, 'is damaged (its checksum is wrong)', cure)
      with _HEADERS:
        arrays[name] = np.load(path, mmap_mode='r', allow_pickle=False)
    except FileNotFoundError as e:
      raise InputError(path, 'no such file', cure) from e
    except InputError:
      raise
    except (OSError, ValueError) as e:
      raise InputError(path, f'cannot be read ({e})', cure) from e
    if list(arrays[name].shape) != entry['shape'] or str(arrays[name].dtype) != entry['dtype']:
      raise InputError(path, 'is not the array that case.json describes', cure)
  return Case(case_id, arrays, meta)


def is_complete(store: str | os.PathLike, case_id: str, options_hash: str) -> bool:
  """Whether the case is there, whole, and made with these options."""
  try:
    meta = read_case(store, case_id).meta
  except InputError:
    return False
  return meta.get('options_hash') == options_hash and meta.get('format') == FORMAT


def write_index(store: str | os.PathLike, index: dict) -> dict:
  """Writes STORE/dataset.json atomically, and returns what it holds: with it the store is finished."""
  path = pathlib.Path(store) / 'dataset.json'
  tmp = path.with_name(f'{_TMP}dataset-{process()}.json')
  with writing(path):
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      index = json.loads(json.dumps({**index, 'format': FORMAT, 'kind': 'afw_jax store'}))
      _write_json(tmp, index)
      os.replace(tmp, path)
      _sync_folder(path.parent)
    finally:
      tmp.unlink(missing_ok=True)
  return index


def read_index(store: str | os.PathLike) -> dict:
  """Reads STORE/dataset.json.

  Raises:
    InputError: no finished store there, or a damaged or foreign index.
  """
  path = pathlib.Path(store) / 'dataset.json'
  index = _read_json(path, 'no such file: there is no prepared store, or preparing it did not finish')
  if index.get('kind') != 'afw_jax store':
    raise InputError(path, 'is not the index of a store', 'Choose another folder for the store')
  if index.get('format') != FORMAT:
    raise InputError(path, f'is of format {index.get("format")}, not {FORMAT}', 'Prepare the data set again')
  return index


def move_case(source: str | os.PathLike, store: str | os.PathLike, case_id: str, meta: dict) -> None:
  """Moves a whole case from one store to another on the same disk, if no other process has done so already.

  Args:
    source: store to take it from.
    store: store to put it into; what lies there under the same name is replaced.
    case_id: which case.
    meta: of the case to move: by it the case is known wherever it lies.

  Raises:
    InputError: no permission; or the case is in neither store.
  """
  final = case_folder(store, case_id)
  with writing(final):
    final.parent.mkdir(parents=True, exist_ok=True)
    if not _is(final, meta):
      _put(case_folder(source, case_id), final, meta)


def remove_stale(store: str | os.PathLike) -> None:
  """Removes what a killed process left half written."""
  store = pathlib.Path(store)
  with writing(store):
    for folder in (store, store / 'cases', store / STAGING / 'cases'):
      for path in folder.glob(f'{_TMP}*'):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _put(source: pathlib.Path, final: pathlib.Path, meta: dict) -> None:
  """Renames a case's folder. No lock holds across hosts, but a rename of a folder never overwrites: it succeeds for one."""
  old = final.with_name(f'{_TMP}old-{final.name}-{process()}')
  try:
    for _ in range(100):
      shutil.rmtree(old, ignore_errors=True)
      if source.exists() and _renamed(final, old) and not source.exists() and _is(old, meta):
        _renamed(old, final)  # what was in the way was this very case, put there by another process just now
      if _renamed(source, final) or _is(final, meta):
        return _sync_folder(final.parent)
      time.sleep(0.05)
    raise InputError(final, f'is not there, nor is {source}', 'Do all hosts see this folder? Then run it again')
  finally:
    shutil.rmtree(old, ignore_errors=True)


def _renamed(source: pathlib.Path, target: pathlib.Path) -> bool:
  """Whether the folder could be renamed; not if it is gone or something else has its new name."""
  try:
    os.rename(source, target)
  except OSError as e:
    if e.errno not in _OTHERS:
      raise
    return False
  return True


def _is(folder: pathlib.Path, meta: dict) -> bool:
  """Whether this very case lies there, whole."""
  try:
    return read_case(folder.parent.parent, folder.name).meta == meta
  except InputError:
    return False


def process() -> str:
  """A name that no other living process has, be it on another host."""
  return f'{socket.gethostname()}-{os.getpid()}'


def _write_array(path: pathlib.Path, array: np.ndarray) -> dict:
  with open(path, 'wb') as f:
    np.lib.format.write_array(f, np.ascontiguousarray(array), allow_pickle=False)
    f.flush()
    os.fsync(f.fileno())
  return {'shape': list(array.shape), 'dtype': str(array.dtype), 'bytes': path.stat().st_size, 'sha256': _sha256(path)}


def _write_json(path: pathlib.Path, content: dict) -> None:
  body = json.dumps(content, indent=1, allow_nan=False)
  with open(path, 'w', encoding='utf-8') as f:
    f.write(body)
    f.flush()
    os.fsync(f.fileno())


def _read_json(path: pathlib.Path, missing: str) -> dict:
  try:
    content = json.loads(path.read_text('utf-8'))
  except (FileNotFoundError, NotADirectoryError) as e:
    raise InputError(path, missing, 'Run --mode=prepare') from e
  except OSError as e:
    raise InputError(path, f'cannot be read ({e.strerror})', 'Check its permissions') from e
  except (UnicodeDecodeError, json.JSONDecodeError) as e:
    raise InputError(path, f'is damaged ({e})', 'Run --mode=prepare again') from e
  if not isinstance(content, dict):
    raise InputError(path, 'is damaged (no JSON object)', 'Run --mode=prepare again')
  return content


def _meta_sha256(meta: dict) -> str:
  rest = {key: value for key, value in meta.items() if key != 'meta_sha256'}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def _sync_folder(path: pathlib.Path) -> None:
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)
