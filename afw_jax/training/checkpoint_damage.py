"""Whether a checkpoint that cannot be read is damaged, or this machine or program cannot read it."""

import errno
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator

import jax

from afw_jax.errors import InputError

# A file that is missing, or not a file, means damage; any other error of the system (file handles, permissions, the
# network) says nothing about the checkpoint.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
# TensorStore's words for it.
_TORN = re.compile(r'\b(NOT_FOUND|OUT_OF_RANGE|DATA_LOSS|FAILED_PRECONDITION|Error decoding|[Cc]orrupt\w*|CRC-32C)\b')


class Damaged(Exception):
  """What a checkpoint holds is not what was saved."""


def is_proven(path: pathlib.Path, error: Exception, verify: Callable[[pathlib.Path], None]) -> bool:
  """Whether a checkpoint that could not be read is damaged.

  Damage is proven: the system delivers every byte of the files, and reading the checkpoint once more, as it was saved,
  finds something missing or altered.

  Args:
    path: of the checkpoint.
    error: that reading it raised.
    verify: reads the checkpoint at a path as it was saved, and raises what is wrong with it.
  """
  if lies_in_machine(error):
    return False
  try:
    _read_every_byte(path)
  except OSError:
    return False
  try:
    verify(path)
  except Exception as again:
    return not lies_in_machine(again) and _says_damage(again)
  return False


def lies_in_machine(error: BaseException) -> bool:
  """Whether an error, or one that caused it, is of memory, file handles, permissions or the disk."""
  return any(
    isinstance(link, MemoryError | jax.errors.JaxRuntimeError) or (_code(link) or errno.ENOENT) not in _DAMAGE
    for link in _chain(error)
  )


def _says_damage(error: BaseException) -> bool:
  """Whether an error says that something is missing or torn; errors of a program say something else."""
  return any(
    isinstance(link, Damaged | FileNotFoundError | json.JSONDecodeError | UnicodeDecodeError)
    or _code(link) in _DAMAGE
    or (type(link) in (ValueError, Exception) and _TORN.search(str(link)))
    for link in _chain(error)
  )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  """An error and those that caused it: Orbax raises a bare Exception from some errors of TensorStore."""
  while error is not None:
    yield error
    error = error.__cause__


def _code(error: BaseException) -> int | None:
  """The number of an error of the system, also where TensorStore tells it in words."""
  by_tensorstore = re.search(r"os_error_code='(\d+)'", str(error))
  return error.errno if isinstance(error, OSError) else by_tensorstore and int(by_tensorstore[1])


def _read_every_byte(path: pathlib.Path) -> None:
  """Raises the OSError of a file or folder that the system does not deliver, or that is gone."""

  def fail(error: OSError) -> None:
    raise error

  for folder, _, names in os.walk(path, onerror=fail):
    for name in names:
      with open(os.path.join(folder, name), 'rb') as file:
        while file.read(1 << 20):
          pass


def unreadable(path: pathlib.Path, error: Exception) -> InputError:
  """The error for a checkpoint that is not proven to be damaged."""
  return InputError(
    path,
    f'this checkpoint could not be read here ({str(error)[:300] or type(error).__name__})',
    'It may be whole: free memory or file handles, or mend the permissions, then start the same command again. '
    'If it is damaged, rename its folder: the run goes on from the checkpoint before it.',
  )


def set_aside(path: str) -> None:
  """Renames a checkpoint to PATH.corrupt, or PATH.corrupt-2 and so on."""
  names = itertools.chain([f'{path}.corrupt'], (f'{path}.corrupt-{i}' for i in itertools.count(2)))
  os.rename(path, next(name for name in names if not os.path.exists(name)))
