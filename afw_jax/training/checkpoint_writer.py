"""Saves checkpoints in the background with Orbax; `checkpoint` says what they hold and reads them."""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp

from afw_jax.distributed import termination
from afw_jax.errors import InputError
from afw_jax.system import atomic_files
from afw_jax.training import checkpoint, checkpoint_disk
from afw_jax.training.fingerprint import fingerprint
from afw_jax.training.step import TrainState

_log = logging.getLogger('afw_jax')

_WRITE_ERRORS = (OSError, ValueError, RuntimeError)  # Orbax raises any of these where the disk is full


@contextlib.contextmanager
def opened(folder: str, *, keep: int) -> Iterator[ocp.CheckpointManager]:
  """A manager of FOLDER for the block; a save under way is finished before the block is left, after an error too.

  It keeps the newest checkpoints and removes what an interrupted save left behind. Only after a second Ctrl-C, or where
  another process of the run was lost, without which no save can end, nothing is waited for.

  Args:
    folder: of the checkpoints.
    keep: how many of the newest to keep.

  Yields:
    The manager, for `save` and `finish`.

  Raises:
    InputError: a checkpoint cannot be written.
  """
  path = checkpoint_disk.literal_path(folder)
  with checkpoint_disk.usable(folder):
    try:
      manager = ocp.CheckpointManager(
        path,
        item_names=('model', 'train', 'meta'),
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
      )
    except OSError as error:
      raise InputError(
        folder, f'checkpoints cannot be kept here ({error})', 'Free space or choose another --workdir.'
      ) from error
    try:
      yield manager
    except BaseException as error:
      if not (isinstance(error, KeyboardInterrupt) or termination.lost_another(error)):
        try:
          finish(manager)
        except InputError as second:  # the first error is the one to report
          _log.warning('%s', second)
      raise
    finish(manager)
    manager.close()


def save(manager: ocp.CheckpointManager, state: TrainState, meta: dict) -> None:
  """Starts a save in the background, under the state's own step; one already saved is not saved again.

  Args:
    manager: from `opened`.
    state: of training.
    meta: anything JSON holds; 'step' and 'fingerprint' are added.

  Raises:
    InputError: the disk has too little space, or an earlier save could not be written.
  """
  if any(saved >= int(state.step) for saved in manager.all_steps()):
    return  # a run that was killed between two saves makes the same bits again
  trees = checkpoint.split(state)
  _check_space(manager.directory, sum(a.nbytes for a in jax.tree.leaves(trees)))
  meta = json.loads(atomic_files.to_json({**meta, 'step': int(state.step), 'fingerprint': fingerprint(trees)}))
  meta['sha256'] = checkpoint.digest(meta)
  try:
    manager.check_for_errors()
    manager.save(
      int(state.step),
      force=True,
      args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **{k: ocp.args.StandardSave(v) for k, v in trees.items()}),
    )
  except _WRITE_ERRORS as error:
    raise _unwritable(manager, error) from error


def _check_space(folder: os.PathLike, needed: int) -> None:
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise InputError(
      folder,
      f'{free >> 20} MiB are free on this disk, a checkpoint needs {needed >> 20} MiB',
      'Free space, then start the same command again: the checkpoints before it are kept.',
    )


def finish(manager: ocp.CheckpointManager) -> None:
  """Waits for the save under way; raises InputError where it could not be written."""
  try:
    manager.wait_until_finished()
    manager.check_for_errors()
  except _WRITE_ERRORS as error:
    raise _unwritable(manager, error) from error


def _unwritable(manager, error) -> InputError:
  return InputError(
    manager.directory,
    f'the checkpoint could not be written (... {str(error)[-120:]})',
    'Free space on the disk or fix the permissions, then start the same command again.',
  )
