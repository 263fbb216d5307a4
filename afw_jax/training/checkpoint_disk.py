"""What Orbax does not handle by itself: folder names that look like patterns, disks that refuse locks or flushing."""

import contextlib
import fcntl
import glob
import os
import tempfile
from collections.abc import Iterator

from etils.epath import gpath

from afw_jax.errors import InputError
from afw_jax.system.atomic_files import sync_folder, write_errors
from afw_jax.system.locks import WITHOUT_LOCKS


class LiteralPath(gpath.PosixGPath):
  """A path for Orbax whose own name is never a pattern: Orbax looks for files with `glob`, also in `runs/unet [2]`."""

  def glob(self, pattern: str) -> Iterator['LiteralPath']:
    """The files below this folder that fit a pattern."""
    return (type(self)(path) for path in glob.glob(os.path.join(glob.escape(os.fspath(self)), pattern)))


def literal_path(folder: str) -> LiteralPath:
  """The absolute path of a folder of checkpoints, for Orbax.

  Raises:
    InputError: Orbax and TensorStore cannot read or write in a folder of this name.
  """
  path = os.path.abspath(folder)
  try:
    path.encode()
    known = '\\' not in path and ':/' not in path
  except UnicodeEncodeError:
    known = False
  if not known:
    raise InputError(
      repr(path),
      'cannot hold checkpoints: a folder of the path has a backslash, a colon at its end, or a name that is not UTF-8',
      'Rename it, or choose another --workdir.',
    )
  return LiteralPath(path)


@contextlib.contextmanager
def usable(folder: str) -> Iterator[None]:
  """Lets Orbax write on disks that refuse locks or the flushing of folders, while the block runs.

  There its files are written without what the disk refuses. What a power failure leaves incomplete is noticed when it
  is read, as any damage.

  Args:
    folder: of the checkpoints; made if missing.

  Raises:
    InputError: the folder cannot be written.
  """
  with write_errors(folder):
    os.makedirs(folder, exist_ok=True)
    options = {}
    if not _has_locks(folder):
      options['file_io_locking'] = {'mode': 'none'}
    if not sync_folder(folder):
      options['file_io_sync'] = False
  with _tensorstore_options(options) if options else contextlib.nullcontext():
    yield


@contextlib.contextmanager
def _tensorstore_options(options: dict) -> Iterator[None]:
  # Orbax has no public way to these options; the private one is imported only where a disk needs it.
  from orbax.checkpoint._src.serialization import tensorstore_utils

  contexts = (tensorstore_utils._BASE_TS_CONTEXT, tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT)
  before = [dict(context) for context in contexts]
  for context in contexts:
    context.update(options)
  try:
    yield
  finally:
    for context, old in zip(contexts, before):
      context.clear()
      context.update(old)


def _has_locks(folder: str) -> bool:
  with tempfile.TemporaryFile(dir=folder, prefix='.locking-') as file:
    try:
      for lock in (fcntl.flock, fcntl.lockf):
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock(file, fcntl.LOCK_UN)
    except OSError as error:
      if error.errno not in WITHOUT_LOCKS:
        raise
      return False
  return True
