"""The terminal of this process, which it may not have: standard streams that are closed or missing, progress bars."""

import contextlib
import errno
import io
import logging
import os
import select
import stat
import sys
from typing import Any, NoReturn, TextIO

try:
  import tqdm
except ImportError:  # in a model file, whose program needs jax and nibabel alone
  tqdm = None


def open_missing_streams() -> None:
  """Points closed standard streams to nowhere. Call it before any file is opened.

  A file that is opened while descriptor 2 is closed gets that number, and libraries would write their messages into it.
  """
  for number, name, mode in ((0, 'stdin', 'r'), (1, 'stdout', 'w'), (2, 'stderr', 'w')):
    try:
      os.fstat(number)
    except OSError:
      opened = os.open(os.devnull, os.O_RDWR)
      if opened != number:
        os.dup2(opened, number)
        os.close(opened)
      os.set_inheritable(number, True)  # so that processes that are started have it too
    if getattr(sys, name) is None:
      setattr(sys, name, open(number, mode, encoding='utf-8', closefd=False))  # noqa: SIM115 (open until the end)


class _Output(io.FileIO):
  """A standard stream whose reader may go away (a closed pager or connection, a full disk): the work goes on.

  Attributes:
    lost: why a file could not be written that somebody may want to read later.
  """

  lost: str | None = None

  def write(self, data) -> int:
    rest = memoryview(data)
    try:
      while len(rest):
        written = super().write(rest)
        if written is None:  # it does not block: until there is room
          select.select([], [self], [])
        rest = rest[written or 0 :]
    except OSError as error:  # from now on nothing is written, by whichever library
      hung_up = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode)
      self.lost = None if error.errno == errno.EPIPE or hung_up else error.strerror
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, self.fileno())
      os.close(nowhere)
    return len(data)


def keep_streams_open() -> None:
  """Lets stdout and stderr outlive those who read them, and show the code of what a terminal cannot show."""
  for name in ('stdout', 'stderr'):
    stream = getattr(sys, name)
    raw = io.BufferedWriter(_Output(stream.fileno(), 'w', closefd=False))
    options = {'line_buffering': stream.line_buffering, 'write_through': stream.write_through}
    stream.flush()
    kept = io.TextIOWrapper(raw, encoding=stream.encoding, errors='backslashreplace', **options)
    setattr(sys, name, kept)
    for handler in logging.root.handlers:  # of libraries that were imported before
      if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
        handler.setStream(kept)


def lost_output() -> str | None:
  """Why what was printed on stdout is not in the file that it was sent to; None if it is, or nobody reads it."""
  sys.stdout.flush()
  raw = getattr(getattr(sys.stdout, 'buffer', None), 'raw', None)
  return raw.lost if isinstance(raw, _Output) else None


def fail(message: str) -> NoReturn:
  """Ends the process with one line on stderr and exit code 2, as the last that it prints."""
  sys.stdout.flush()
  sys.stderr.flush()
  # Threads that still read or write (checkpoints, events) could print into this line: their stderr is closed first.
  stderr = os.dup(2)
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  with contextlib.suppress(OSError):  # the disk of a log is full, perhaps: the exit code says it
    os.write(stderr, f'\nerror: {message}\n'.encode(sys.stderr.encoding or 'utf-8', 'backslashreplace'))
  os._exit(2)


def is_interactive() -> bool:
  """Whether stderr is a terminal, so that progress bars are drawn often."""
  return _is_open(sys.stderr) and sys.stderr.isatty()


class _NoBar:
  """Takes the place of a progress bar and draws nothing."""

  def __init__(self, iterable: Any = None):
    self.iterable = iterable

  def __iter__(self):
    return iter(self.iterable)

  def __enter__(self) -> '_NoBar':
    return self

  def __exit__(self, *error: object) -> None:
    pass

  def update(self, n: int = 1) -> None:
    """Does nothing."""


def progress_bar(iterable: Any = None, *, disable: bool = False, **options) -> Any:
  """`tqdm.tqdm`, disabled where there is no stderr to draw on; nothing is drawn where tqdm is not installed."""
  if tqdm is None:
    return _NoBar(iterable)
  return tqdm.tqdm(iterable, disable=disable or not _is_open(sys.stderr), **options)


def say(text: str) -> None:
  """Prints a line on stdout between progress bars; nothing where stdout is closed."""
  if _is_open(sys.stdout):
    tqdm.tqdm.write(text)
    sys.stdout.flush()  # into a log, too


def _is_open(stream: TextIO | None) -> bool:
  return stream is not None and not getattr(stream, 'closed', False)
