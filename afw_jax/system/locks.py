"""Locks between processes, as files on a disk that they share; the operating system frees them when a process ends."""

import contextlib
import errno
import fcntl
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator

from afw_jax.errors import InputError
from afw_jax.system.atomic_files import process_name, write_errors

_log = logging.getLogger('afw_jax')

# What network disks and file systems of virtual machines without locks answer; 524 is the ENOTSUPP of the Linux kernel.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, 524)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5
_SAY_AFTER_S = 0.3


class InUse(InputError):
  """The lock is held by another process."""


@contextlib.contextmanager
def probed(path: str | os.PathLike) -> Iterator[bool]:
  """Yields whether another process holds the lock of a file; while the block runs, no other takes a free one.

  Nothing is written. Where there is no such file, or the file system has no locks, nobody holds it.

  Raises:
    InputError: the file cannot be read.
  """
  try:
    file = os.open(path, os.O_RDONLY)
  except FileNotFoundError:
    yield False
    return
  except OSError as error:
    raise InputError(path, f'cannot be read ({error.strerror})', 'Check its permissions.') from error
  held = False
  try:
    try:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      held = True
    except OSError as error:
      if error.errno not in WITHOUT_LOCKS:
        raise InputError(path, f'cannot be locked ({error.strerror})', 'Check the disk.') from error
    yield held
  finally:
    os.close(file)


@contextlib.contextmanager
def locked(
  path: str | os.PathLike,
  *,
  shared: bool = False,
  named: bool = True,
  patience_s: float = math.inf,
  cure: str = 'Wait until it ends, or choose another folder.',
  waiting: Callable[[str], None] | None = None,
) -> Iterator[bool]:
  """Holds the lock of a file while the block runs; waits for other processes that hold it.

  The file says who holds the lock and since when. It stays when the lock is freed.

  Args:
    path: of the file; made if missing, with its folder.
    shared: share the lock with others that do so.
    named: write into the file who holds the lock.
    patience_s: how long to wait; 0: not at all.
    cure: what to do where the wait was in vain.
    waiting: called once, with the name of the holder, where the lock is not free after a moment.

  Yields:
    Whether the lock is held. False on a file system that has no locks, which gives one warning for each folder.

  Raises:
    InUse: the lock was not free in time.
    InputError: the file cannot be written.
  """
  path = os.fspath(path)
  with write_errors(os.path.dirname(path) or '.'):
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
  with write_errors(path):
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
  try:
    held = _acquire(file, path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, patience_s, cure, waiting)
    if named:
      with write_errors(path):
        os.ftruncate(file, 0)
        os.pwrite(file, f'{process_name()}, since {time.strftime("%Y-%m-%d %H:%M:%S")}'.encode(), 0)
    yield held
  finally:
    os.close(file)


def _acquire(file: int, path: str, kind: int, patience_s: float, cure: str, waiting) -> bool:
  folder, begun, pause_s = os.path.dirname(path), time.monotonic(), _FIRST_PAUSE_S
  deadline = begun + patience_s
  while True:
    try:
      fcntl.flock(file, kind | fcntl.LOCK_NB)
      return True
    except BlockingIOError as error:
      holder = os.pread(file, 200, 0).decode(errors='replace') or 'which has just started'
      if time.monotonic() >= deadline:
        raise InUse(folder, f'is in use by another process ({holder})', cure) from error
    except OSError as error:
      if error.errno not in WITHOUT_LOCKS:
        raise InputError(
          path, f'cannot be locked ({error.strerror})', 'Check the disk, or use another folder.'
        ) from error
      _warn(folder)
      return False
    if waiting and time.monotonic() - begun > _SAY_AFTER_S:  # others may only have looked whether it is free
      waiting(holder)
      waiting = None
    time.sleep(pause_s)
    if math.isinf(patience_s):  # who waits for seconds only must not sleep through the moment when it is free
      pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)


@functools.cache  # once for each folder
def _warn(folder: str) -> None:
  _log.warning('%s cannot be locked on this file system: make sure that no two runs use it', folder)
