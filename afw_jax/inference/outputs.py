"""The files that a prediction leaves: their names, whether they are there already, and how they take their places."""

import errno
import hashlib
import os
from collections.abc import Callable, Container, Iterable

from afw_jax.data.formats import channel_scans, dicom_seg, volumes
from afw_jax.data.formats.scans import Scan
from afw_jax.errors import InputError
from afw_jax.inference import record
from afw_jax.system import atomic_files
from afw_jax.system.file_names import MAX_BYTES, file_names, shortened

# Of label maps, the usual one first.
ENDINGS = {'nifti': ('.nii.gz', '.nii'), 'nrrd': ('.nrrd',), 'mha': ('.mha',), 'dicom_seg': ('.dcm',)}
_ALL = tuple(ending for endings in ENDINGS.values() for ending in endings)
_CURE = 'Choose another --output, or replace it with --overwrite.'
# Errors of the whole machine, which the next scan meets as well.
_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENODEV)
# Errors of one file name, where a file is written; all others there are of the machine.
_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


def destination(output: str, file_format: str = 'nifti') -> tuple[str, bool]:
  """(folder of the label maps, whether `output` is the file of one label map).

  Raises:
    InputError: `output` has the ending of some other file, or is a file that is not of this format of label maps.
  """
  endings = ENDINGS[file_format]
  is_folder = output.endswith(os.sep) or os.path.isdir(output)
  ending = os.path.splitext(os.path.basename(output))[1]
  if not is_folder and output.lower().endswith(endings):
    return os.path.dirname(os.path.abspath(output)), True
  if not is_folder and (os.path.exists(output) or ending[1:2].isalpha() and len(ending) <= 9 and ending[1:].isalnum()):
    what = f'the ending {ending!r} is not that of a label map (--format={file_format})' if ending else 'is a file'
    raise InputError(
      output, what, f'Give a {" or ".join(endings)} file for one scan, or a folder, with / at its end if it is new.'
    )
  return output, False


def label_path(folder: str, scan: Scan, file_format: str = 'nifti') -> str:
  """The label map of a scan in a folder of label maps."""
  *parents, stem = scan.name.split('/')
  return os.path.join(folder, *parents, f'{shortened(stem, MAX_BYTES - len(".nii.gz"))}{ENDINGS[file_format][0]}')


def probability_paths(label: str, organs: Iterable[str]) -> dict[str, str]:
  """Organ -> the file of its probabilities beside a label map."""
  folder, name = os.path.split(label)
  stem = next(name[: -len(ending)] for ending in _ALL if name.lower().endswith(ending))
  limit = MAX_BYTES - len('.nii.gz')
  return {
    organ: os.path.join(folder, f'{shortened(f"{stem}_probability_{organ_file}", limit)}.nii.gz')
    for organ, organ_file in file_names(organs).items()
  }


def stamp(scan: Scan) -> list:
  """What changes when the files of a scan are changed: sizes and times. [] where a file cannot be found."""
  try:
    if not scan.files:
      each = [os.stat(path) for path in (scan.path, *scan.others)]
      return [number for one in each for number in (one.st_size, one.st_mtime_ns, one.st_ctime_ns)]
    digest = hashlib.sha256()
    for name in scan.files:
      status = os.stat(os.path.join(scan.path, name))
      digest.update(f'{name}/{status.st_size}/{status.st_mtime_ns}\n'.encode(errors='surrogateescape'))
  except OSError:
    return []
  return [len(scan.files), digest.hexdigest()]


def size(scan: Scan) -> int | None:
  """Bytes of the files of a scan; None where one cannot be found."""
  files = [os.path.join(scan.path, name) for name in scan.files] or [scan.path, *scan.others]
  try:
    return sum(os.path.getsize(path) for path in files)
  except OSError:
    return None


def finished(content: dict, folder: str, label: str, scan: Scan, made_by: dict, beside: Iterable[str]) -> dict | None:
  """The row of a label map that need not be made again, or None.

  Args:
    content: of the record.
    folder: of the record.
    label: the label map.
    scan: that it is of.
    made_by: entries 'checkpoint' and 'options' of such a row.
    beside: files of probabilities that must be there too.
  """
  row = record.row_with(content, os.path.relpath(label, folder))
  if row is None or not _made_from(row, scan):
    return None
  if row['checkpoint']['sha256'] != made_by['checkpoint']['sha256'] or row['options'] != made_by['options']:
    return None
  names = {os.path.relpath(path, folder) for path in (label, *beside)}
  return row if names <= row['files'].keys() and all(_is_whole(folder, row, name) for name in names) else None


def check_free(folder: str, paths: Iterable[str], scan: Scan, taken: Container[str], *, overwrite: bool) -> None:
  """Raises InputError where a file would take the place of a scan or (unless `overwrite`) of what is to be kept.

  To be kept are files of others and those that were changed after they were made: corrected by hand, for instance.
  Files as they were made of the same scan, and damaged ones, may be replaced.

  Args:
    folder: of the record.
    paths: of the label map and the probabilities.
    scan: that they are of.
    taken: real paths of all scans, and of the slices of DICOM series.
    overwrite: replace all but scans and folders.
  """
  for path in paths:
    if not os.path.lexists(path):
      continue
    if os.path.realpath(path) in taken:
      raise InputError(path, 'the output would overwrite the scan', 'Choose another --output.')
    if os.path.isdir(path):
      raise InputError(path, 'is a folder', 'Choose another --output.')
    if not overwrite:
      _check_replaceable(folder, path, scan)


def _check_replaceable(folder: str, path: str, scan: Scan) -> None:
  name = os.path.relpath(path, folder)
  row = record.row_with(record.read(folder), name)
  if row is None:
    if _readable(path):
      raise InputError(path, f'is there already, and not in the {record.JSON} beside it', _CURE)
  elif row.get('source', source := os.path.abspath(scan.path)) != source and not _made_from(row, scan):
    raise InputError(path, f'is there already, made from another scan, {row["source"]}', _CURE)
  elif row.get('files', {}).get(name, state := _state(path)) != state and _readable(path):
    raise InputError(path, 'was changed after it was made: corrected by hand, perhaps', _CURE)


def publish(folder: str, row: dict, write: dict[str, Callable[[str], None]], check: Callable[[], None]) -> dict:
  """Writes files, then records them and puts them in their places; after an interruption none of them passes for whole.

  Args:
    folder: of the record.
    row: of the label map.
    write: path -> function that writes the file to the path that it is given.
    check: raises an error where the places are no longer free; called while the record is locked.

  Returns:
    The row, with 'files': path relative to the folder -> [bytes, time of change] of each.
  """
  staged = {}
  try:
    for i, (path, make) in enumerate(write.items()):
      with atomic_files.write_errors(path):
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
      ending = next(ending for ending in _ALL if path.lower().endswith(ending))
      staged[path] = os.path.join(os.path.dirname(path), f'.{atomic_files.process_name()}-{i}.part{ending}')
      make(staged[path])
    with record.locked(folder), atomic_files.write_errors(folder):
      check()
      files = {os.path.relpath(path, folder): _state(part) for path, part in staged.items()}
      # Beside the new row, what was there before would pass for corrected by hand.
      aside = _set_aside(staged)
      try:
        record.add(folder, {**row, 'files': files})
      except BaseException:
        if (record.row_with(record.read(folder), row['output']) or {}).get('files') != files:
          for path, old in aside.items():
            os.replace(old, path)
        raise
      for old in aside.values():
        os.unlink(old)
      for path, part in staged.items():
        with atomic_files.write_errors(path):
          os.replace(part, path)
  finally:
    for part in staged.values():
      if os.path.lexists(part):
        os.unlink(part)
  return {**row, 'files': files}


def _set_aside(paths: Iterable[str]) -> dict[str, str]:
  """Renames the files that are there; returns path -> where its file is now."""
  aside = {}
  for path in paths:
    if os.path.lexists(path):
      aside[path] = _hidden(path)
      os.replace(path, aside[path])
  return aside


def ends_everything(error: BaseException | None, *, writing: bool) -> bool:
  """Whether an error of one scan is one of the machine (disk, file handles), which the others meet as well.

  Memory is not: a scan can be larger than the others.
  """
  while error is not None:
    if isinstance(error, OSError):
      return error.errno not in _NAME if writing else error.errno in _MACHINE
    error = error.__cause__
  return False


def _made_from(row: dict, scan: Scan) -> bool:
  """Whether the label map of a row was made from a scan as it is now, wherever it lay then."""
  if 'checkpoint' not in row or not (now := stamp(scan)):  # of an older version
    return False
  if row['stamp'] == now and row['source'] == os.path.abspath(scan.path):
    return True
  return _digest(scan) == row['sha256']


def _digest(scan: Scan) -> str:
  """SHA-256 of a scan, as in the record; '' where it cannot be read."""
  try:
    if scan.files:
      return volumes.read_image(scan.path, scan.files, resample_dicom=True).sha256
    return channel_scans.digest(map(_file_digest, (scan.path, *scan.others)))
  except (InputError, OSError):
    return ''


def _file_digest(path: str) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _hidden(path: str) -> str:
  folder, name = os.path.split(path)
  digest = hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:8]
  return os.path.join(folder, f'.{atomic_files.process_name()}-{digest}.old')


def _state(path: str) -> list[int]:
  status = os.stat(path)
  return [status.st_size, status.st_mtime_ns]


def _is_whole(folder: str, row: dict, name: str) -> bool:
  """Whether a file is as it was written, or one that can be read to its end: corrected by hand, for instance."""
  path = os.path.join(folder, name)
  return os.path.isfile(path) and (_state(path) == row['files'][name] or _readable(path))


def _readable(path: str) -> bool:
  if path.lower().endswith(ENDINGS['dicom_seg']):
    return dicom_seg.is_whole(path)
  try:
    volumes.read_image(path)
  except InputError:
    return False
  return True
