"""Headers of NRRD and MetaImage files: where the voxels are, and whether compressed ones are whole.

ITK checks too little: of a damaged file it may return voxels that are not in it, and on some MetaImages it never ends.
"""

import hashlib
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from afw_jax.errors import InputError

REWRITE = 'Write the file again with the tool that made it, or convert it to NIfTI.'
_LONGEST = 1 << 24  # bytes in which the header of a file ends; those of segmentations may have a line for each organ
_DATA = ('data file', 'datafile', 'ElementDataFile')  # fields that name the file of the voxels
_GZIP, _MEMBER = ('gz', 'gzip'), b'\x1f\x8b'  # names of this encoding, and how its files and their members begin
_SIZES = ('space directions', 'spacings', 'ElementSpacing')


class Header(NamedTuple):
  """What the header of a file says.

  Attributes:
    path: of the file.
    fields: name -> value; names of NRRD in lower case.
    data: the file of the voxels: itself, or one beside it.
    start: where they begin there.
  """

  path: Path
  fields: dict[str, str]
  data: Path
  start: int


def read(path: str | os.PathLike) -> Header:
  """Reads the header of an .nrrd, .mha or .mhd file.

  Raises:
    InputError: it has no voxel size, has no end, gives a field twice, or names a file of voxels that is not beside it.
  """
  path = Path(path)
  with open(path, 'rb') as file:
    fields, start = (_nrrd if path.suffix.lower() == '.nrrd' else _meta_image)(path, file)
  if not any(name in fields for name in _SIZES):
    raise InputError(path, 'its header has no voxel size', REWRITE)
  if start is None:
    raise InputError(path, 'its header has a line that is no name with a value, or has no end', REWRITE)
  named = next((fields[name] for name in _DATA if name in fields), 'LOCAL')
  if named.upper() == 'LOCAL':
    return Header(path, fields, path, start)
  data = path.parent / named
  if data.parent != path.parent or not data.is_file():
    raise InputError(path, f'its data file {named} is not one file beside it', REWRITE)
  return Header(path, fields, data, 0)


def _nrrd(path: Path, file: BinaryIO) -> tuple[dict[str, str], int]:
  """(fields, where the header ends): lines of `name: value` up to an empty one, comments, pairs of `key:=value`."""
  fields: dict[str, str] = {}
  while (line := file.readline(_LONGEST - file.tell())).strip():
    name, colon, value = (os.fsdecode(part).strip() for part in line.partition(b':'))
    if colon and not name.startswith('#') and not value.startswith('='):
      _add(path, fields, name.lower(), value)
  return fields, file.tell()


def _meta_image(path: Path, file: BinaryIO) -> tuple[dict[str, str], int | None]:
  """(fields, where the header ends): lines of `name = value`; ITK takes a colon, too. The data file is the last.

  None: it has no end, or has a line of another kind, at which ITK may read on in another way than this.
  """
  fields: dict[str, str] = {}
  while line := file.readline(_LONGEST - file.tell()):
    found = re.fullmatch(rb'\s*([^=:\s][^=:]*?)\s*[=:]\s*(.*?)\s*', line, re.S)
    if found:
      name, value = map(os.fsdecode, found.groups())
      _add(path, fields, name, value)
      if name == 'ElementDataFile':
        return fields, file.tell()
    elif line.strip():
      break
  return fields, None


def _add(path: Path, fields: dict[str, str], name: str, value: str) -> None:
  if fields.setdefault(name, value) != value:
    raise InputError(path, f'its header has {name!r} twice', REWRITE)


def digest_of_compressed(header: Header) -> bytes | None:
  """SHA-256 of the voxels of a file that are compressed, as they were before; None where they are not.

  Raises:
    InputError: they are damaged, by their checksum, or end early.
  """
  fields = header.fields
  if fields.get('CompressedData', '')[:1] not in ('T', 't', '1') and fields.get('encoding', '').lower() not in _GZIP:
    return None
  size, skip = (fields.get(name, '') for name in ('CompressedDataSize', 'byte skip'))
  most = int(size) if re.fullmatch(r'\d{1,18}', size) else header.data.stat().st_size
  skipped = int(skip) if re.fullmatch(r'\d{1,18}', skip) else 0
  digest = hashlib.sha256()
  with open(header.data, 'rb') as file:
    file.seek(header.start)
    try:
      for part in _decompressed(file, most):
        digest.update(part[skipped:])
        skipped = max(skipped - len(part), 0)
    except (zlib.error, EOFError) as error:
      raise InputError(header.path, f'its compressed voxels are damaged ({error})', REWRITE) from error
  return digest.digest()


def _decompressed(file: BinaryIO, most: int) -> Iterator[bytes]:
  """The content of a zlib stream or of gzip members, from at most so many bytes; what follows them is not read."""
  read = lambda count: file.read(min(count, end - file.tell()))
  end, part, stream = file.tell() + most, b'', zlib.decompressobj(zlib.MAX_WBITS | 32)
  while part := part or read(1 << 16):
    yield stream.decompress(part)
    part = b''
    if stream.eof:
      part = stream.unused_data
      part += read(max(len(_MEMBER) - len(part), 0))
      if not part.startswith(_MEMBER):
        return
      stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
  raise EOFError('they end early')
