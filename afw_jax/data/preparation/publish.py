"""From cases that wait in staging to a store that shows them: safe for several processes and hosts at once."""

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping

from afw_jax.atomic_files import process_name, write_errors
from afw_jax.data import store
from afw_jax.errors import InputError


@contextlib.contextmanager
def lock(store_dir: str | os.PathLike, *, shared: bool = False):
  """Holds the store for one writing process; the system lets go of it when the process ends, however it ends.

  Args:
    store_dir: the folder; made if need be.
    shared: hold it together with others that share it, for as far as the disk knows locks (some network disks do not).

  Raises:
    InputError: another process holds it, or it cannot be locked.
  """
  path = pathlib.Path(store_dir)
  with write_errors(path):
    path.mkdir(parents=True, exist_ok=True)
    fd = os.open(path / '.lock', os.O_RDWR | os.O_CREAT, 0o666)
  try:
    try:
      fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise InputError(path, 'another process is preparing this store', 'Wait for it, or use another folder') from e
    except OSError as e:
      if not shared:
        raise InputError(path, f'cannot be locked ({e.strerror})', 'Use a folder on a local disk') from e
    yield
  finally:
    os.close(fd)


def check_folder(store_dir: str | os.PathLike) -> None:
  """Refuses a folder that holds something other than a store, before anything is written into it."""
  path = pathlib.Path(store_dir)
  if (
    read_index(path) is None
    and path.is_dir()
    and any(
      p.name not in ('cases', store.STAGING, '.lock', 'dataset.json') and not p.name.startswith('.tmp-')
      for p in path.iterdir()
    )
  ):
    raise InputError(path, 'is not a store: it holds other files', 'Choose a new or empty folder for the store')


def read_index(store_dir: str | os.PathLike) -> dict | None:
  """The index of a store; None where there is none (another process may just be writing a new one)."""
  try:
    return store.read_index(store_dir)
  except InputError:
    if (pathlib.Path(store_dir) / 'dataset.json').exists():
      raise
    return None


def prepared(store_dir: str | os.PathLike, case_id: str, options_hash: str) -> Iterator[tuple[dict, bool]]:
  """(meta, whether it waits in staging) of the case wherever it lies whole and made with these options; staging first."""
  for place, staged in ((os.path.join(store_dir, store.STAGING), True), (store_dir, False)):
    try:
      meta = store.read_case(place, case_id).meta
    except InputError:  # not there, or damaged: it will be made again
      continue
    if (meta.get('options_hash'), meta.get('format')) == (options_hash, store.FORMAT) and 'foreground' in meta[
      'arrays'
    ]:
      yield meta, staged


def of_others(store_dir: str | os.PathLike, case_ids: Iterable[str], options_hash: str) -> dict[str, tuple[dict, bool]]:
  """Case id -> (meta, staged) of those that other processes have prepared so far."""
  probe = pathlib.Path(store_dir) / store.STAGING / 'cases' / f'.tmp-probe-{process_name()}'
  with contextlib.suppress(FileNotFoundError):  # a change of ours in the folder makes a network disk look at it anew
    probe.mkdir(exist_ok=True)
    probe.rmdir()
  found = ((case_id, next(prepared(store_dir, case_id, options_hash), None)) for case_id in case_ids)
  return {case_id: found for case_id, found in found if found}


def publish(
  store_dir: str | os.PathLike, index: dict, metas: Mapping[str, dict], staged: Iterable[str], *, alone: bool = True
) -> dict:
  """Moves staged cases to their places and writes the index, last.

  The processes that share the work may all come here at once: each does what it finds undone, and what each writes is
  the same.

  Args:
    store_dir: the store.
    index: the new content of its dataset.json.
    metas: case id -> meta, of every case.
    staged: ids of the cases that wait in staging.
    alone: no other process can be at work in staging.

  Returns:
    The index as it now is.
  """
  path = pathlib.Path(store_dir)
  staged, written = list(staged), read_index(path)
  same = written is not None and {k: v for k, v in written.items() if k not in ('format', 'kind')} == index
  if staged or not same:
    if written is not None and not same:  # nobody shall read cases with the index of others
      with write_errors(path):
        (path / 'dataset.json').unlink(missing_ok=True)
    for case_id in staged:
      store.move_case(path / store.STAGING, path, case_id, metas[case_id])
    written = store.write_index(path, index)
  if alone:
    shutil.rmtree(path / store.STAGING, ignore_errors=True)
  else:
    _tidy(path / store.STAGING, metas)
  return written


def _tidy(staging: pathlib.Path, metas: Mapping[str, dict]) -> None:
  """Removes what of these very cases is left in staging, and staging itself if others stage nothing there meanwhile."""
  for case_id, meta in metas.items():
    with contextlib.suppress(InputError):  # not there any more
      if store.read_case(staging, case_id).meta == meta:
        shutil.rmtree(store.case_folder(staging, case_id), ignore_errors=True)
  for folder in (staging / 'cases', staging):
    with contextlib.suppress(OSError):  # not empty
      folder.rmdir()
