"""Publication of staged cases in a store, safe for several processes and hosts at once."""

import contextlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping

from afw_jax.data import store
from afw_jax.errors import InputError
from afw_jax.system import locks
from afw_jax.system.atomic_files import process_name, to_json, write_errors

_log = logging.getLogger('afw_jax')

_LOCK = '.lock'  # held while a process prepares
_PUBLISHING = '.publishing'  # locked while an index is read, merged and written


@contextlib.contextmanager
def lock(store_dir: str | os.PathLike, *, shared: bool = False) -> Iterator[bool]:
  """Locks a store for writing, and waits for other processes that prepare it.

  Args:
    store_dir: folder of the store; created if missing.
    shared: share the lock with others that do so.

  Yields:
    Whether the lock is held; False on a disk without locks, where others may prepare the store at the same time.

  Raises:
    InputError: the folder cannot be created or written.
  """
  path = pathlib.Path(store_dir)
  with locks.locked(path / _LOCK, shared=shared, waiting=lambda holder: _say_waiting(path, holder)) as held:
    yield held


def wait_for_others(store_dir: str | os.PathLike, *, reason: str = '') -> bool:
  """Waits until no other process prepares a store; returns whether one did.

  Args:
    store_dir: folder of the store.
    reason: why this process waits; is said with it.
  """
  path, holders = pathlib.Path(store_dir) / _LOCK, []
  if not os.access(path, os.W_OK):  # nothing was ever prepared, or it is for reading only
    return False
  say = lambda holder: (holders.append(holder), _say_waiting(path.parent, holder, reason))
  with locks.locked(path, named=False, waiting=say):
    return bool(holders)


def state(store_dir: str | os.PathLike) -> tuple | None:
  """What changes when an index is published in a store; None where there is none."""
  try:
    found = os.stat(pathlib.Path(store_dir) / 'dataset.json')
  except OSError:
    return None
  return found.st_ino, found.st_size, found.st_mtime_ns


def _say_waiting(path: pathlib.Path, holder: str, reason: str = '') -> None:
  because = f' (without it: {reason})' if reason else ''
  _log.warning('%s is being prepared by another process (%s): waiting for it%s', path, holder, because)


def check_folder(store_dir: str | os.PathLike) -> None:
  """Raises InputError for a folder that holds other files than a store, before anything is written to it."""
  path = pathlib.Path(store_dir)
  own = ('cases', store.STAGING, _LOCK, _PUBLISHING, 'dataset.json')
  foreign = [
    p for p in path.glob('*') if p.name not in own and not p.name.startswith(('dataset.json.', store.TEMPORARY))
  ]
  if read_index(path) is None and foreign:
    raise InputError(path, 'is not a store: it holds other files', 'Choose a new or empty folder for the store')


def read_index(store_dir: str | os.PathLike) -> dict | None:
  """The index of a store; None if there is none, or one of another format, which is to be replaced.

  Raises:
    InputError: a damaged index, or a dataset.json that is not the index of a store.
  """
  try:
    return store.read_index(store_dir)
  except InputError:
    if not (pathlib.Path(store_dir) / 'dataset.json').exists() or store.has_other_format(store_dir):
      return None
    return store.read_index(store_dir)  # once more: another process may just have published it


def prepared(
  store_dir: str | os.PathLike, case_id: str, options_hash: str, *, verify: bool = False
) -> Iterator[tuple[dict, bool]]:
  """(case.json, whether the case is staged) of every complete copy with these options, the staged one first.

  Args:
    store_dir: folder of the store.
    case_id: of the case.
    options_hash: of the options.
    verify: read every byte: a damaged copy is none.
  """
  for folder, staged in ((os.path.join(store_dir, store.STAGING), True), (store_dir, False)):
    try:
      meta = store.read_case(folder, case_id, verify=verify).meta
    except InputError:  # missing or damaged: it will be prepared again
      continue
    if (meta.get('options_hash'), meta['format']) == (options_hash, store.FORMAT):
      yield meta, staged


def find_prepared(
  store_dir: str | os.PathLike, case_ids: Iterable[str], options_hash: str
) -> dict[str, tuple[dict, bool]]:
  """Case id -> (case.json, whether it is staged) of the cases that are prepared, by whichever process."""
  probe = pathlib.Path(store_dir) / store.STAGING / 'cases' / f'{store.TEMPORARY}probe-{process_name()}'
  with contextlib.suppress(FileNotFoundError):  # a change in the folder makes network disks refresh their cache
    probe.mkdir(exist_ok=True)
    probe.rmdir()
  found = ((case_id, next(prepared(store_dir, case_id, options_hash), None)) for case_id in case_ids)
  return {case_id: found for case_id, found in found if found}


def publish(
  store_dir: str | os.PathLike, index: dict, metas: Mapping[str, dict], staged: Iterable[str], *, alone: bool = True
) -> dict:
  """Moves staged cases to their final folders, then writes the index. Published cases with the same options stay.

  Processes that share the work may call this at the same time: each does what is left to do, with the same result.
  What others have staged with the same options, for cases of their own, stays too.

  Args:
    store_dir: folder of the store.
    index: new content of dataset.json, with the cases to publish.
    metas: case id -> case.json of these cases.
    staged: ids of the cases that are staged.
    alone: whether no other process is preparing the store; then staged cases of other options are removed.

  Returns:
    The index of the store.
  """
  path, staged = pathlib.Path(store_dir), list(staged)
  index = json.loads(to_json(index))
  with locks.locked(path / _PUBLISHING):  # one process publishes at a time
    written = read_index(path)
    kept = written['cases'] if written is not None and written['options_hash'] == index['options_hash'] else {}
    index['cases'] = {**kept, **index['cases']}
    if staged or written is None or {k: v for k, v in written.items() if k not in ('format', 'kind')} != index:
      if not kept or kept.keys() & set(staged):  # no process shall read a case with the index of another one
        with write_errors(path):
          (path / 'dataset.json').unlink(missing_ok=True)
      for case_id in staged:
        _remove_damaged(path, case_id, metas[case_id])
        store.move_case(path / store.STAGING, path, case_id, metas[case_id])
      written = store.write_index(path, index)
    _clear_staging(path / store.STAGING, metas, index['options_hash'] if alone else None)
  return written


def _remove_damaged(path: pathlib.Path, case_id: str, meta: dict) -> None:
  """Removes the published copy of a staged case if it passes for the same, but its bytes have changed."""
  folder = store.case_folder(path, case_id)
  if not store.case_folder(path / store.STAGING, case_id).exists() or store.read_meta(folder) != meta:
    return
  try:
    store.read_case(path, case_id, verify=True)
  except InputError as error:
    if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
      raise  # of this machine or its disk: the case may be whole
    _log.warning('%s: replaced', error)
    with write_errors(folder):
      shutil.rmtree(folder)


def note_stamps(store_dir: str | os.PathLike, stamps: Mapping[str, Mapping[str, str]]) -> None:
  """Writes new stamps of unchanged source files (case id -> `sources.stamps`) to the index of a store."""
  path = pathlib.Path(store_dir)
  with locks.locked(path / _PUBLISHING):
    index = read_index(path)
    if index is not None:
      for case_id in index['cases'].keys() & stamps.keys():
        index['cases'][case_id]['source_stamps'] = stamps[case_id]
      store.write_index(path, index)


def _clear_staging(staging: pathlib.Path, metas: Mapping[str, dict], options_hash: str | None) -> None:
  """Removes staged copies of these cases, with `options_hash` those of other options, and empty folders."""
  for folder in (staging / 'cases').glob('*'):
    meta = store.read_meta(folder)  # {}: being written or removed by another process, or torn
    outdated = options_hash is not None and meta.get('options_hash') != options_hash
    if outdated or (meta and meta == metas.get(meta['id'])):
      shutil.rmtree(folder, ignore_errors=True)
  for folder in (staging / 'cases', staging):
    with contextlib.suppress(OSError):  # not empty
      folder.rmdir()
