"""The terminal of this process, which it may not have: standard streams that are closed or missing, progress bars."""

import os
import sys
from typing import Any, TextIO

import tqdm


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


def is_interactive() -> bool:
  """Whether stderr is a terminal, so that progress bars are drawn often."""
  return _is_open(sys.stderr) and sys.stderr.isatty()


def progress_bar(iterable: Any = None, *, disable: bool = False, **options) -> tqdm.tqdm:
  """`tqdm.tqdm`, disabled where there is no stderr to draw on."""
  return tqdm.tqdm(iterable, disable=disable or not _is_open(sys.stderr), **options)


def say(text: str) -> None:
  """Prints a line on stdout between progress bars; nothing where stdout is closed."""
  if _is_open(sys.stdout):
    tqdm.tqdm.write(text)


def _is_open(stream: TextIO | None) -> bool:
  return stream is not None and not getattr(stream, 'closed', False)
