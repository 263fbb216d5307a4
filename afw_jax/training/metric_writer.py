"""Training metrics: metrics.jsonl, TensorBoard events where tensorboardX is installed, and an experiment tracker."""

import errno
import importlib.util
import json
import os
import shutil
from collections.abc import Callable

from afw_jax.distributed import runtime
from afw_jax.system import atomic_files
from afw_jax.training.tracker import Tracker


def read_metrics(workdir: str) -> list[dict]:
  """The records of WORKDIR/metrics.jsonl, oldest first; a last line that was not written to its end is left out."""
  path = os.path.join(workdir, 'metrics.jsonl')
  if not os.path.exists(path):
    return []
  with open(path, 'rb') as file:  # bytes: an unfinished line may end within a character
    return [json.loads(line) for line in file if line.endswith(b'\n')]


class MetricWriter:
  """Appends one JSON line per record to metrics.jsonl, and writes the same scalars to TensorBoard and a tracker.

  Of several processes only process 0 writes.

  Args:
    workdir: folder of the run.
    start_step: the step that training starts from. The records of later steps are removed first, because the run makes
      them again; so whenever a run was killed, no value is recorded twice.
    validation_due: the validation of `start_step` is still to be done: a record of it is removed too.
    open_tracker: opens the experiment tracker, for which nothing is removed; None for no tracker.

  Raises:
    InputError: the disk is full, or the file cannot be written.
  """

  def __init__(
    self,
    workdir: str,
    *,
    start_step: int,
    validation_due: bool = False,
    open_tracker: Callable[[], Tracker] | None = None,
  ):
    self._file = self._tensorboard = self._tracker = None
    if runtime.process_index():
      return
    kept = [r for r in read_metrics(workdir) if r['step'] <= start_step]
    if validation_due:
      kept = [r for r in kept if r['step'] < start_step or not any(key.startswith('val/') for key in r)]
    self._path = os.path.join(workdir, 'metrics.jsonl')
    with atomic_files.replace_atomically(self._path) as file:
      file.writelines(atomic_files.to_json(r) + '\n' for r in kept)
    with atomic_files.write_errors(self._path):
      self._file = open(self._path, 'a', encoding='utf-8', buffering=1)  # noqa: SIM115 (open for the whole run)
      if importlib.util.find_spec('tensorboardX'):
        import tensorboardX

        folder = os.path.join(workdir, 'tensorboard')
        self._tensorboard = tensorboardX.SummaryWriter(folder, purge_step=start_step + (not validation_due))
        for record in kept if validation_due else ():
          if record['step'] == start_step:  # purged with the validation of the same step
            self._draw(record)
    if open_tracker:
      self._tracker = open_tracker()

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Appends the record of a step; a value that is not finite becomes null."""
    if self._file is None:
      return
    record = {'step': step, **scalars}
    with atomic_files.write_errors(self._path):
      self._file.write(atomic_files.to_json(record) + '\n')
      self._draw(record)
    if self._tracker:
      self._tracker.write(record)

  def _draw(self, record: dict) -> None:
    if self._tensorboard is None:
      return
    if shutil.disk_usage(self._path).free < 1 << 20:  # its thread would die, and this one wait for it forever
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for name, value in record.items():
      if name != 'step' and value is not None:
        self._tensorboard.add_scalar(name, value, record['step'])

  def close(self, *, finished: bool = False) -> None:
    """Writes what is buffered and closes the files and the tracker.

    Args:
      finished: the training is complete, which the tracker shows.
    """
    if self._file is None:
      return
    if self._tracker:
      self._tracker.close(finished=finished)
    with atomic_files.write_errors(self._path):
      self._file.close()
      if self._tensorboard:
        self._tensorboard.close()
