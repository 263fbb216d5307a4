"""Whether the files that a case was prepared from are still the same: by size and time, in doubt by their content."""

import dataclasses
import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping

from afw_jax.data import store
from afw_jax.data.sets.case_files import CaseFiles
from afw_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Changes:
  """How the files of prepared cases differ from what they were.

  Attributes:
    touched: case id -> new stamps, where the size or time of a file differs and its content does not.
    changed: case id -> the file whose content differs.
    gone: ids of cases that the data set no longer has, sorted.
  """

  touched: dict[str, dict[str, str]]
  changed: dict[str, str]
  gone: list[str]


def digests(case: CaseFiles) -> dict[str, str]:
  """SHA-256 of the files of a case; for a folder, of the names and digests of its files.

  Returns:
    {'image': digest, 'label': digest}; and 'channel_1', ... of further channels.

  Raises:
    InputError: a file is missing or cannot be read.
  """
  return _of_files(case, _file_digest)


def stamps(case: CaseFiles) -> dict[str, str]:
  """Digests of the names, sizes and modification times of the files of a case; reads none of them.

  Returns:
    As `digests`.

  Raises:
    InputError: a file is missing.
  """
  return _of_files(case, _file_stamp)


def exist(case: CaseFiles) -> bool:
  """Whether the files of a case are there."""
  try:
    return bool(stamps(case))
  except InputError:
    return False


def compare(
  store_dir: str | os.PathLike, index: Mapping, files: Mapping[str, CaseFiles], case_ids: Iterable[str]
) -> Changes:
  """Compares prepared cases with the files of the data set; reads those whose size or time differs.

  Args:
    store_dir: folder of the store.
    index: of the store.
    files: case id -> its files now, as the data set has them.
    case_ids: cases in the store.

  Raises:
    InputError: a file cannot be read.
  """
  touched, changed, gone = {}, {}, []
  for case_id in sorted(case_ids):
    case = files.get(case_id)
    if case is None or case.label is None:
      gone.append(case_id)
    elif (now := stamps(case)) != index['cases'][case_id]['source_stamps']:
      before, after = store.read_case(store_dir, case_id).meta['source_sha256'], digests(case)
      other = next((kind for kind in after if after[kind] != before[kind]), None)
      if other:
        changed[case_id] = _paths(case)[other]
      else:
        touched[case_id] = now
  return Changes(touched, changed, gone)


def _of_files(case: CaseFiles, describe: Callable[[str], str]) -> dict[str, str]:
  return {kind: _of_path(path, describe) for kind, path in _paths(case).items()}


def _paths(case: CaseFiles) -> dict[str, str]:
  others = {f'channel_{i}': path for i, path in enumerate(case.others, 1)}
  return {'image': case.image, 'label': case.label, **others}


def _of_path(path: str, describe: Callable[[str], str]) -> str:
  """`describe` of a file; of a folder or a pattern, a digest of the names and descriptions of its files."""
  if os.path.isfile(path):
    return describe(path)
  folder, names = os.path.split(path) if '*' in os.path.basename(path) else (path, '*')
  found = [name for name in sorted(glob.glob(os.path.join(glob.escape(folder), names))) if os.path.isfile(name)]
  if not found:
    raise InputError(path, 'no such file', 'Check the data set')
  sha = hashlib.sha256()
  for name in found:
    sha.update(os.fsencode(f'{os.path.basename(name)} {describe(name)}\n'))
  return sha.hexdigest()


def _file_digest(path: str) -> str:
  try:
    with open(path, 'rb') as f:
      return hashlib.file_digest(f, 'sha256').hexdigest()
  except OSError as e:
    raise _unreadable(path, e) from e


def _file_stamp(path: str) -> str:
  try:
    stat = os.stat(path)
  except OSError as e:
    raise _unreadable(path, e) from e
  return hashlib.sha256(f'{stat.st_size} {stat.st_mtime_ns}'.encode()).hexdigest()


def _unreadable(path: str, error: OSError) -> InputError:
  return InputError(path, f'cannot be read ({error.strerror})', 'Check the file and its permissions')
