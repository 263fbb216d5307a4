"""File names made from names that people chose: organs, cases, DICOM series. Every disk takes them."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable

MAX_BYTES = 255  # of a file name, on nearly every file system
_NAME_BYTES = 160  # leaves room for what is put before and behind the name, temporary files included
_DIGEST = 9  # '~' and eight digits
# Also what no disk can encode: surrogates, but those that stand for the raw bytes of a file name.
_REFUSED = re.compile('[<>:"/\\\\|?*\x00-\x1f\x7f\ud800-\udc7f\udd00-\udfff]|^[. ]|[. ]$|%(?=[0-9A-Fa-f]{2})')
_DEVICE = re.compile(r'(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?= *(\.|$))', re.IGNORECASE)  # on Windows


def file_name(name: str) -> str:
  """A file name for `name`, without an ending.

  Most names are their own file names. Characters that some file system refuses are written as in a URL (`/` as %2F), so
  are a leading or trailing dot or space and the first letter of a device name of Windows (CON, NUL, ...). Different
  names get different file names, which a disk that ignores case may yet take for one (see `file_names`). A name of more
  than 160 bytes is cut, and ends in a digest of the whole.

  Args:
    name: any text.
  """
  text = _REFUSED.sub(_escaped, name)
  if _DEVICE.match(text):
    text = _escaped(text[0]) + text[1:]
  return shortened(text, _NAME_BYTES) if text else f'~{_digest(name)}'


def file_names(names: Iterable[str]) -> dict[str, str]:
  """Name -> its file name, `file_name`, also where a disk ignores case or the Unicode form.

  Names whose file names such a disk would take for one (Liver and liver) get a digest of the name behind them.
  """
  names = list(dict.fromkeys(names))
  keys = [same_on_disk(file_name(name)) for name in names]
  return {
    name: file_name(name)
    if keys.count(key) == 1
    else f'{shortened(file_name(name), _NAME_BYTES - _DIGEST)}~{_digest(name)}'
    for name, key in zip(names, keys)
  }


def same_on_disk(name: str) -> str:
  """A key that two names share if a disk that ignores case and Unicode form takes them for one."""
  return unicodedata.normalize('NFC', unicodedata.normalize('NFC', name).casefold())


def shortened(name: str, limit: int = MAX_BYTES) -> str:
  """A name of at most `limit` bytes: the name itself, or its beginning and a digest of the whole."""
  data = name.encode(errors='surrogateescape')
  if len(data) <= limit:
    return name
  return f'{data[: limit - _DIGEST].decode(errors="ignore")}~{_digest(name)}'


def temporary_name(path: str | os.PathLike, process: str) -> str:
  """`path` with another file name, for a file that is to take its place; never too long where that of `path` is not.

  Args:
    path: of the file.
    process: name of this process, which no other living process has.
  """
  folder, name = os.path.split(os.fspath(path))
  return os.path.join(folder, f'{shortened(name, MAX_BYTES - len(f".{process}.tmp"))}.{process}.tmp')


def _digest(name: str) -> str:
  return hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[: _DIGEST - 1]


def _escaped(found: re.Match | str) -> str:
  text = found if isinstance(found, str) else found[0]
  return ''.join(f'%{byte:02X}' for byte in text.encode(errors='surrogatepass'))
