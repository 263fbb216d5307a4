"""Store of prepared cases: plain .npy arrays in one folder per case, written atomically and checked when read."""

import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil
import threading
import time

import numpy as np

from afw_jax.errors import InputError
from afw_jax.system.atomic_files import process_name, read_json, sync, sync_folder, to_json, write_errors, write_json
from afw_jax.system.file_names import file_name

FORMAT = 5
KIND = 'afw_jax store'
STAGING = '.staging'  # a store inside the store, for cases that are not published yet
TEMPORARY = '.tmp-'  # prefix of files and folders that are being written
_LOST_RACE = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)  # of a rename: another process has done it
# What some network and virtual file systems answer to a shared memory map.
_NO_SHARED_MAPS = (errno.ENODEV, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
# numpy parses .npy headers with `ast`, which raises SystemError in two threads at once on Python 3.11.
_HEADERS = threading.Lock()
_PREPARE = 'Run --mode=prepare'


@dataclasses.dataclass(frozen=True)
class Case:
  """A prepared case.

  Attributes:
    id: of the case.
    arrays: name -> read-only memory map, depth first.
    meta: content of case.json.
  """

  id: str
  arrays: dict[str, np.ndarray]
  meta: dict


def case_folder(store: str | os.PathLike, case_id: str) -> pathlib.Path:
  """The folder of a case, whether it exists or not."""
  return pathlib.Path(store) / 'cases' / file_name(case_id)


def write_case(store: str | os.PathLike, case_id: str, arrays: dict[str, np.ndarray], meta: dict) -> dict:
  """Writes a case atomically: after an interruption it is complete or absent.

  Args:
    store: folder of the store.
    case_id: of the case; its `file_name` is the name of its folder.
    arrays: name -> array, depth first.
    meta: content for case.json; 'id', 'format', 'arrays' (shape, dtype, bytes, sha256 of each) and 'meta_sha256' are
      added.

  Returns:
    The content of case.json.

  Raises:
    InputError: no permission, no space left.
  """
  final = case_folder(store, case_id)
  tmp = final.with_name(f'{TEMPORARY}{final.name}-{process_name()}')
  with write_errors(final):
    shutil.rmtree(tmp, ignore_errors=True)
    try:
      tmp.mkdir(parents=True)
      entries = {name: _write_array(tmp / f'{name}.npy', array) for name, array in arrays.items()}
      meta = json.loads(to_json({**meta, 'id': case_id, 'format': FORMAT, 'arrays': entries}))
      meta['meta_sha256'] = _meta_sha256(meta)
      write_json(tmp / 'case.json', meta)
      sync_folder(tmp)
      _put(tmp, final, meta)
    finally:
      shutil.rmtree(tmp, ignore_errors=True)
  return meta


def read_case(store: str | os.PathLike, case_id: str, *, verify: bool = False, content: str | None = None) -> Case:
  """Opens a case with memory-mapped arrays.

  Args:
    store: folder of the store.
    case_id: of the case.
    verify: also read every byte and compare checksums.
    content: the `content_digest` that the case must have; None: any.

  Returns:
    A `Case`.

  Raises:
    InputError: no such case, a damaged file, or a case of other content.
  """
  return _read(case_folder(store, case_id), store, case_id, verify, content)


def _read(
  folder: pathlib.Path, store: str | os.PathLike, case_id: str, verify: bool = False, content: str | None = None
) -> Case:
  cure = f'Delete {folder} and prepare again'
  meta = read_json(
    folder / 'case.json', missing=f'no such case in the store {store}', cure=cure if folder.exists() else _PREPARE
  )
  if meta.get('meta_sha256') != _meta_sha256(meta):
    raise InputError(folder / 'case.json', 'is damaged (its checksum is wrong)', cure)
  if content not in (None, content_digest(meta)):
    raise InputError(
      folder,
      'has been prepared again from other files while this process was using it',
      'Start the same command again: it says what has changed',
    )
  arrays = {}
  for name, entry in meta['arrays'].items():
    path = folder / f'{name}.npy'
    try:
      size = path.stat().st_size
      if size != entry['bytes']:
        raise InputError(path, f'has {size} bytes instead of {entry["bytes"]}', cure)
      if verify and _sha256(path) != entry['sha256']:
        raise InputError(path, 'is damaged (its checksum is wrong)', cure)
      with _HEADERS:
        arrays[name] = _map(path)
    except FileNotFoundError as e:
      raise InputError(path, 'no such file', cure) from e
    except InputError:
      raise
    except OSError as e:  # of this machine or its disk: the file may be whole
      raise InputError(path, f'cannot be read here ({e.strerror or e})', 'Check its permissions and its disk') from e
    except ValueError as e:
      raise InputError(path, f'cannot be read ({e})', cure) from e
    if list(arrays[name].shape) != entry['shape'] or str(arrays[name].dtype) != entry['dtype']:
      raise InputError(path, 'does not match case.json', cure)
  return Case(case_id, arrays, meta)


def content_digest(meta: dict) -> str:
  """SHA-256 of what a case holds: its arrays, and where they lie in the patient, whatever files they were made from.

  Args:
    meta: content of case.json.
  """
  arrays = {name: entry['sha256'] for name, entry in meta['arrays'].items()}
  grid = [meta.get('geometry', {}).get(key) for key in ('shape', 'affine', 'has_mm')]
  content = [arrays, grid, meta.get('resampling'), meta.get('spacing_mm')]
  content += [meta[key] for key in ('whole', 'body') if 'whole' in arrays]
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_meta(folder: pathlib.Path) -> dict:
  """The case.json of a folder that holds a complete case, whatever the folder is called; {} where it does not."""
  try:
    return _read(folder, folder.parent.parent, folder.name).meta
  except InputError:
    return {}


def write_index(store: str | os.PathLike, index: dict) -> dict:
  """Writes STORE/dataset.json atomically; a store is complete when it has one.

  Returns:
    The content of the file.

  Raises:
    InputError: no permission, no space left.
  """
  path = pathlib.Path(store) / 'dataset.json'
  index = json.loads(to_json({**index, 'format': FORMAT, 'kind': KIND}))
  write_json(path, index)
  with write_errors(path):
    sync_folder(path.parent)
  return index


def read_index(store: str | os.PathLike) -> dict:
  """Reads STORE/dataset.json.

  Raises:
    InputError: no complete store, a damaged index, or a store of another format.
  """
  path, index = _read_index(store)
  if index.get('format') != FORMAT:
    raise InputError(path, f'is of format {index.get("format")}, not {FORMAT}', _PREPARE)
  return index


def has_other_format(store: str | os.PathLike) -> bool:
  """Whether the folder is a store that was prepared by a version with another format."""
  try:
    return _read_index(store)[1].get('format') != FORMAT
  except InputError:
    return False


def _read_index(store: str | os.PathLike) -> tuple[pathlib.Path, dict]:
  path = pathlib.Path(store) / 'dataset.json'
  missing = 'no such file: there is no prepared store, or its preparation did not finish'
  index = read_json(path, missing=missing, cure=_PREPARE)
  if index.get('kind') != KIND:
    raise InputError(path, 'is not the index of a store', 'Choose another folder for the store')
  return path, index


def move_case(source: str | os.PathLike, store: str | os.PathLike, case_id: str, meta: dict) -> None:
  """Moves a case to another store on the same file system, unless another process has done so.

  Args:
    source: store that the case is in.
    store: store to move it to; another case of the same id is replaced.
    case_id: of the case.
    meta: its case.json, which identifies it in either store.

  Raises:
    InputError: no permission, or the case is in neither store.
  """
  final = case_folder(store, case_id)
  with write_errors(final):
    final.parent.mkdir(parents=True, exist_ok=True)
    if read_meta(final) != meta:
      _put(case_folder(source, case_id), final, meta)


def remove_stale(store: str | os.PathLike) -> None:
  """Removes incomplete files that an interrupted process has left."""
  store = pathlib.Path(store)
  with write_errors(store):
    for path in [
      *store.glob('dataset.json.*.tmp'),
      *store.glob(f'{TEMPORARY}*'),
      *(store / 'cases').glob(f'{TEMPORARY}*'),
      *(store / STAGING / 'cases').glob(f'{TEMPORARY}*'),
    ]:
      shutil.rmtree(path) if path.is_dir() else path.unlink()


def _put(source: pathlib.Path, final: pathlib.Path, meta: dict) -> None:
  """Renames the folder of a case.

  Locks do not reach across hosts on every file system, but a rename never overwrites a folder that is not empty: of
  several processes, one succeeds.
  """
  old = final.with_name(f'{TEMPORARY}old-{final.name}-{process_name()}')
  try:
    for _ in range(100):
      shutil.rmtree(old, ignore_errors=True)
      if source.exists() and _renamed(final, old) and not source.exists() and read_meta(old) == meta:
        _renamed(old, final)  # the folder in the way was this case, just put there by another process
      if _renamed(source, final) or read_meta(final) == meta:
        return sync_folder(final.parent)
      time.sleep(0.05)
    raise InputError(
      final, f'does not exist, and neither does {source}', 'Check that all hosts share the folder, then run it again'
    )
  finally:
    shutil.rmtree(old, ignore_errors=True)


def _renamed(source: pathlib.Path, target: pathlib.Path) -> bool:
  """Renames a folder; returns False if it does not exist or the new name is taken."""
  try:
    os.rename(source, target)
  except OSError as e:
    if e.errno not in _LOST_RACE:
      raise
    return False
  return True


def _write_array(path: pathlib.Path, array: np.ndarray) -> dict:
  with open(path, 'wb') as f:
    np.lib.format.write_array(f, np.ascontiguousarray(array), allow_pickle=False)
    f.flush()
    sync(f.fileno())
  return {'shape': list(array.shape), 'dtype': str(array.dtype), 'bytes': path.stat().st_size, 'sha256': _sha256(path)}


def _map(path: pathlib.Path) -> np.ndarray:
  """A read-only memory map of a .npy file."""
  try:
    return np.load(path, mmap_mode='r', allow_pickle=False)
  except OSError as error:
    if error.errno not in _NO_SHARED_MAPS:
      raise
  array = np.load(path, mmap_mode='c', allow_pickle=False)  # a private map, which these file systems do have
  array.flags.writeable = False
  return array


def _meta_sha256(meta: dict) -> str:
  rest = {key: value for key, value in meta.items() if key != 'meta_sha256'}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()
