"""Segments many scans one after the other: what is done is kept and not done again, and no scan ends the others."""

import contextlib
import dataclasses
import datetime
import logging
import os
import time
from collections.abc import Callable, Container, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from afw_jax.data.formats import volumes
from afw_jax.data.formats.dicom_series import PassedOver
from afw_jax.data.formats.scans import Scan
from afw_jax.data.sets.channels import Channel
from afw_jax.distributed import runtime
from afw_jax.errors import InputError
from afw_jax.inference import outputs, record, statistics
from afw_jax.inference.averaging import Segmented
from afw_jax.system import terminal

_log = logging.getLogger('afw_jax')


class Outcome(NamedTuple):
  """What became of the scans.

  Attributes:
    rows: {'scan':, 'output':, 'volume_ml': {organ: mL}, 'statistics':, ...} of each scan that has a label map.
    failed: one error for each scan that has none.
    passed_over: files and folders that are not scans, with the reason.
    skipped: number of rows that were there already.
  """

  rows: list[dict]
  failed: list[InputError]
  passed_over: list[PassedOver]
  skipped: int


@dataclasses.dataclass(frozen=True)
class Job:
  """Scans to segment, and how.

  Attributes:
    source: the file or folder that they were found in.
    folder: of the label maps and of their record.
    scans: with their names.
    labels: name of each scan -> the file of its label map.
    made_by: entries of every row that say how it was made: 'checkpoint' (with 'sha256'), 'options' and others.
    ids: organ -> its id in the label maps, in the order of the classes 1, 2, ...
    file_ids: class ids -> those of the label maps.
    segment: scan -> what becomes of it.
    measured: the channel that organs are measured in.
    as_segments: opens a scan for a DICOM segmentation of it, and returns the function (path, class ids) that writes
      that; None: the label maps are NIfTI.
    probabilities: whether these are to be written.
    overwrite: make every label map again, also in place of files of others.
    resample_dicom: interpolate tilted or unevenly spaced DICOM slices to an even grid.
  """

  source: str
  folder: str
  scans: Sequence[Scan]
  labels: dict[str, str]
  made_by: dict
  ids: dict[str, int]
  file_ids: Callable[[np.ndarray], np.ndarray]
  segment: Callable[[volumes.Volume], Segmented]
  measured: Channel = Channel(None, '', True)
  as_segments: Callable[[volumes.Volume], Callable[[str, np.ndarray], None]] | None = None
  probabilities: bool = False
  overwrite: bool = False
  resample_dicom: bool = False


class _ScanError(Exception):
  """What is wrong with one scan alone; the others go on."""

  def __init__(self, error: InputError):
    super().__init__(str(error))
    self.error = error


def run(job: Job, passed_over: Sequence[PassedOver] = ()) -> Outcome:
  """Segments the scans of a job that have no label map yet; of several processes each takes a part of them.

  Args:
    job: the same in every process.
    passed_over: is recorded, and part of the outcome.

  Returns:
    The outcome, in every process that of all.

  Raises:
    InputError: the disk is full or failing, there are no more file handles, or the scans have vanished.
  """
  if runtime.process_count() > 1:
    runtime.check_same('--output', os.path.abspath(job.folder))
    runtime.on_process_zero(lambda: record.note_rest(job.source, job.folder, [], passed_over))
    runtime.check_shared(os.path.join(job.folder, record.JSON))
  there = runtime.from_process_zero(lambda: _all_finished(job))
  if there and runtime.process_index() == 0:
    _log.warning('%d of %d scans have their label map already (--overwrite makes it again)', len(there), len(job.scans))
  slices = (os.path.join(scan.path, name) for scan in job.scans for name in scan.files)
  channels = (path for scan in job.scans for path in (scan.path, *scan.others))
  taken = {os.path.realpath(path) for path in (*channels, *slices)}
  rows, failed = {}, {}
  for scan in terminal.progress_bar(
    runtime.local_items([scan for scan in job.scans if scan.name not in there]),
    desc='predict',
    unit='scan',
    disable=runtime.process_index() > 0 or (len(job.scans) == 1 and not terminal.is_interactive()),
  ):
    try:
      made = _finished(job, scan, record.read(job.folder))  # another process may have made it meanwhile
      with _memory_of(scan):
        rows[scan.name] = made or _make(job, scan, taken)
    except _ScanError as problem:
      if not os.path.exists(job.source):
        raise InputError(job.source, 'is no longer there', 'Start the same command again: it goes on.') from problem
      failed[scan.name] = (problem.error.where, problem.error.problem, problem.error.cure)
      if len(job.scans) > 1:
        _log.warning('%s failed, the others go on', scan.name)
  parts = runtime.gather([rows, failed])
  for part in (parts if runtime.process_index() == 0 else ())[1:]:  # other processes log errors only
    for row in part[0].values():
      _log_notes(row)
  rows = there | {name: row for part in parts for name, row in part[0].items()}
  failed = {name: InputError(*error) for part in parts for name, error in part[1].items()}
  runtime.on_process_zero(lambda: record.note_rest(job.source, job.folder, _failures(job, failed), passed_over))
  ordered = [_public(job, scan, rows[scan.name]) for scan in job.scans if scan.name in rows]
  errors = [failed[scan.name] for scan in job.scans if scan.name in failed]
  return Outcome(ordered, errors, list(passed_over), len(there))


def _all_finished(job: Job) -> dict[str, dict]:
  """Name of a scan -> the row of its label map, where that need not be made again."""
  content = record.read(job.folder)
  return {scan.name: row for scan in job.scans if (row := _finished(job, scan, content))}


def _finished(job: Job, scan: Scan, content: dict) -> dict | None:
  """The row of a label map that need not be made again, from the content of the record."""
  label = job.labels[scan.name]
  beside = outputs.probability_paths(label, job.ids).values() if job.probabilities else ()
  return None if job.overwrite else outputs.finished(content, job.folder, label, scan, job.made_by, beside)


def _make(job: Job, scan: Scan, taken: Container[str]) -> dict:
  """Segments a scan, writes its files, and returns its row; `taken` are the real paths of all scans and slices."""
  label = job.labels[scan.name]
  probabilities_at = outputs.probability_paths(label, job.ids) if job.probabilities else {}
  paths = (label, *probabilities_at.values())
  check = lambda: outputs.check_free(job.folder, paths, scan, taken, overwrite=job.overwrite)
  began = time.monotonic()
  try:
    check()
    stamp = outputs.stamp(scan)  # before it is read: if it is changed meanwhile, it is segmented again
    image = _read(scan, job.resample_dicom)
    write = job.as_segments(image) if job.as_segments else _nifti_writer(job, image)
    labels, probabilities, notes = job.segment(image)
    notes = [image.resampled, *notes] if image.resampled else notes
  except InputError as error:
    if outputs.ends_everything(error, writing=False):
      raise
    raise _ScanError(error) from error
  found = statistics.of_organs(labels, job.measured.voxels(image.array), image.geometry, tuple(job.ids))
  ids = job.ids
  if job.as_segments:  # these are numbered without gaps
    ids = {organ: n for n, organ in enumerate((organ for organ in ids if found[organ].voxels), 1)}
    if absent := [organ for organ in job.ids if organ not in ids]:
      notes = [*notes, f'the segmentation has no segment of what was not found: {", ".join(absent)}']
  row = {
    'scan': scan.name,
    'output': os.path.relpath(label, job.folder),
    'source': os.path.abspath(scan.path),
    'bytes': outputs.size(scan),
    'stamp': stamp,
    'sha256': image.sha256,
    **({'others': [os.path.abspath(path) for path in scan.others]} if scan.others else {}),
    'label_ids': ids,
    'volume_ml': {organ: round(one.volume_ml, 3) for organ, one in found.items()},
    'statistics': {organ: one.to_json() for organ, one in found.items()},
    'intensity_unit': 'HU' if job.measured.in_hu else 'raw',
    'notes': notes,
    'made_at': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'seconds': round(time.monotonic() - began, 3),
    **job.made_by,
  }
  _log_notes(row)
  files = {label: lambda path: write(path, labels)}
  if probabilities is not None:
    for c, path in enumerate(probabilities_at.values(), 1):
      one = lambda path, c=c: volumes.write_image(path, probabilities[..., c].astype(np.float32), image.geometry)
      files[path] = one
  try:
    return outputs.publish(job.folder, row, files, check)
  except InputError as error:
    if outputs.ends_everything(error, writing=True):
      raise
    raise _ScanError(error) from error


def _nifti_writer(job: Job, image: volumes.Volume) -> Callable[[str, np.ndarray], None]:
  return lambda path, labels: volumes.write_label(path, job.file_ids(labels), image.geometry)


def _log_notes(row: dict) -> None:
  for note in row.get('notes', ()):  # older rows have none
    _log.warning('%s: %s', row['scan'], note)


@contextlib.contextmanager
def _memory_of(scan: Scan) -> Iterator[None]:
  """Memory that is used up within the block is the scan's own failure: the others may be smaller."""
  try:
    yield
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    if isinstance(error, jax.errors.JaxRuntimeError) and 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    cure = 'Close other programs, lower eval.batch_size, or use a machine with more memory, then start the same '
    cure += 'command again: it goes on.'
    raise _ScanError(InputError(scan.path, 'the memory was used up while it was segmented', cure)) from error


def _read(scan: Scan, resample_dicom: bool) -> volumes.Volume:
  """Reads a scan; whatever its damage makes a library raise becomes an InputError."""
  try:
    if scan.others:
      return volumes.read_channels((scan.path, *scan.others))
    return volumes.read_image(scan.path, scan.files, resample_dicom=resample_dicom)
  except (InputError, MemoryError):
    raise
  except Exception as error:
    _log.warning('%s: an error that reading a scan should not raise', scan.path, exc_info=True)
    what = f'could not be read ({type(error).__name__}: {str(error)[:200]})'
    raise InputError(scan.path, what, 'Copy or export it again.') from error


def _failures(job: Job, failed: dict[str, InputError]) -> list[dict]:
  return [
    {
      'scan': scan.name,
      'output': os.path.relpath(job.labels[scan.name], job.folder),
      'source': os.path.abspath(scan.path),
      'problem': str(failed[scan.name]),
    }
    for scan in job.scans
    if scan.name in failed
  ]


def _public(job: Job, scan: Scan, row: dict) -> dict:
  """A row with the label map's path as it was asked for, and the organs in the order of their classes."""
  volume_ml = {organ: row['volume_ml'][organ] for organ in job.ids}
  return {**row, 'output': job.labels[scan.name], 'volume_ml': volume_ml}
