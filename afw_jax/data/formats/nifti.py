"""NIfTI files (.nii, .nii.gz): the header is checked before anything is decoded, the stream is read to its very end."""

import contextlib
import gzip
import hashlib
import itertools
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from afw_jax.data.formats.geometry import Geometry, check_affine, check_agreement, check_memory, check_shape
from afw_jax.errors import InputError

# NIfTI datatype codes that hold one real number per voxel
DTYPES = {2: 'u1', 4: 'i2', 8: 'i4', 16: 'f4', 64: 'f8', 256: 'i1', 512: 'u2', 768: 'u4', 1024: 'i8', 1280: 'u8'}
MAX_DEFLATE_RATIO = 1100  # deflate cannot do better than 1032
CHUNK = 1 << 22
INT16 = np.iinfo(np.int16)
DAMAGED = 'Copy or download it again: it is incomplete or damaged.'
REWRITE = 'Export it again from the original scan, or correct the header.'

Decoded = tuple[np.ndarray, Geometry, str]  # array (D, H, W), grid, sha256 of the file


def read_image(path: str | os.PathLike) -> Decoded:
  """One scan: int16 where all (scaled) values are integral and fit, else float32; InputError where not to be trusted."""

  def choose(low: float, high: float, integral: bool) -> np.dtype:
    if max(abs(low), abs(high)) > float(np.finfo(np.float32).max):
      raise InputError(path, f'its values reach {high:g}, more than float32 can hold', REWRITE)
    return np.dtype(np.int16 if integral and INT16.min <= low and high <= INT16.max else np.float32)

  return _read(path, choose)


def read_label(path: str | os.PathLike) -> Decoded:
  """One label map: uint8 or uint16 (the smallest that holds it); InputError where its values are no label ids."""

  def choose(low: float, high: float, integral: bool) -> np.dtype:
    if not integral:
      raise InputError(
        path,
        'its values are not all integers, so it is no label map',
        'Give the label file; a resampled one must be resampled with nearest neighbour, and must not '
        'carry a scale factor (scl_slope).',
      )
    if low < 0 or high > 65535:
      raise InputError(
        path,
        f'its label ids run from {low:g} to {high:g}; 0 to 65535 are possible',
        'Give the label file (not the scan), with ids that are not negative.',
      )
    return np.dtype(np.uint8 if high <= 255 else np.uint16)

  return _read(path, choose)


def write(path: str | os.PathLike, array: np.ndarray, geometry: Geometry) -> None:
  """Writes a (D, H, W) array with the source's affine, codes and units, under a temporary name first."""
  path = Path(path)
  if not path.name.endswith(('.nii', '.nii.gz')):
    raise InputError(path, 'not written: the name does not end in .nii or .nii.gz', 'Choose such a name.')
  if array.shape != geometry.internal_shape:
    raise InputError(
      path,
      f'not written: the array is {array.shape}, the grid of the source scan is {geometry.internal_shape} (z, y, x)',
      'Bring it back to the grid of the scan first.',
    )
  native = geometry.to_native(array)
  header = _header_to_write(native.dtype, geometry)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    with open(temporary, 'wb') as raw:
      with _compressed(raw) if path.name.endswith('.gz') else contextlib.nullcontext(raw) as f:
        f.write(header.binaryblock + bytes(4))  # four zeros: no extension
        for k in range(native.shape[2]):
          f.write(native[:, :, k].tobytes(order='F'))
      raw.flush()
      os.fsync(raw.fileno())
    os.replace(temporary, path)
  except OSError as e:
    raise InputError(
      path,
      f'cannot be written ({e.strerror or e})',
      'Check that the folder exists, that you may write there, and that the disk is not full.',
    ) from e
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


def _compressed(raw: BinaryIO) -> gzip.GzipFile:
  return gzip.GzipFile(filename='', mode='wb', compresslevel=4, fileobj=raw, mtime=0)  # equal input, equal bytes


def _header_to_write(dtype: np.dtype, geometry: Geometry) -> nib.Nifti1Header:
  header = nib.Nifti1Header()
  header.set_data_dtype(dtype)
  header.set_data_shape(geometry.shape)
  header.set_qform(np.array(geometry.affine), code=geometry.qform_code)
  if geometry.qform is not None:  # bit for bit as in the source
    header['pixdim'][:4] = geometry.qform[:4]
    for name, value in zip(
      ('quatern_b', 'quatern_c', 'quatern_d', 'qoffset_x', 'qoffset_y', 'qoffset_z'), geometry.qform[4:]
    ):
      header[name] = value
  header.set_sform(np.array(geometry.affine), code=geometry.sform_code)
  header['xyzt_units'] = geometry.xyzt_units
  header['vox_offset'], header['scl_slope'], header['scl_inter'] = 352, 1, 0
  return header


def _read(path: str | os.PathLike, choose: Callable[[float, float, bool], np.dtype]) -> Decoded:
  try:
    native, slope, inter, geometry, sha256 = _decode(path)
    low, high, integral = _extent(path, native, slope, inter)
    array = np.empty(geometry.internal_shape, choose(low, high, integral))
    target = geometry.to_native(array)
    for k in range(native.shape[2]):
      target[:, :, k] = _scaled(native[:, :, k], slope, inter)
  except OSError as e:
    raise InputError(path, f'cannot be read ({e.strerror or e})', 'Check the path and its permissions.') from e
  except MemoryError as e:
    raise InputError(path, 'does not fit into memory', 'Crop or resample the scan, or use a larger machine.') from e
  return array, geometry, sha256


def _scaled(slab: np.ndarray, slope: float, inter: float) -> np.ndarray:
  if (slope, inter) == (1.0, 0.0):
    return slab
  with np.errstate(over='ignore', invalid='ignore'):  # what overflows is refused by _extent
    return slab * np.float64(slope) + np.float64(inter)


def _extent(path: str | os.PathLike, native: np.ndarray, slope: float, inter: float) -> tuple[float, float, bool]:
  """Smallest and largest scaled value, and whether all are integral; raises on NaN and infinity."""
  lows, highs, integral = [], [], True
  for k in range(native.shape[2]):
    slab = _scaled(native[:, :, k], slope, inter)
    lows.append(slab.min().item())
    highs.append(slab.max().item())
    if not (np.isfinite(lows[-1]) and np.isfinite(highs[-1])):
      raise InputError(
        path,
        f'slice {k} (counted from 0) has NaN or infinite voxels',
        'Replace them, knowing what they stand for, and write the file again.',
      )
    integral = integral and (slab.dtype.kind in 'iu' or bool(np.all(slab == np.rint(slab))))
  return min(lows), max(highs), integral


def _decode(path: str | os.PathLike) -> tuple[np.ndarray, float, float, Geometry, str]:
  """Raw voxels (i, j, k), scale, grid and checksum of a file whose every byte was read and accounted for."""
  is_gz = os.fspath(path).lower().endswith('.gz')
  digest = hashlib.sha256()
  with open(path, 'rb') as f:
    file_bytes = os.fstat(f.fileno()).st_size
    if file_bytes == 0:
      raise InputError(path, 'the file is empty', DAMAGED)
    pieces = _pieces(path, f, digest, is_gz)
    head = b''
    while len(head) < 540 and (piece := next(pieces, b'')):
      head += piece
    header = _parse(path, head)
    dtype = _check_type(path, header)
    geometry = _geometry(path, header)
    slope, inter = _scale(path, header)
    n_bytes = int(np.prod(geometry.shape)) * dtype.itemsize
    start = _check_size(path, header, n_bytes, file_bytes, is_gz)
    # the raw voxels, the result (4 bytes at most), and some slices in float64
    check_memory(path, n_bytes + int(np.prod(geometry.shape)) * 4 + 32 * int(np.prod(geometry.shape[:2])))
    voxels = np.empty(n_bytes, np.uint8)
    at = -start  # position of the next byte relative to the first voxel
    for piece in itertools.chain([head], pieces):
      if at + len(piece) > n_bytes:
        raise InputError(
          path, 'it holds more bytes than its header accounts for: header and data do not belong together', REWRITE
        )
      data = piece[max(0, -at) :]
      at += len(piece)
      if data:
        voxels[at - len(data) : at] = np.frombuffer(data, np.uint8)
  if at < n_bytes:
    raise InputError(
      path,
      f'its data end {n_bytes - at} bytes too early: it is truncated, or its header claims too many voxels',
      DAMAGED,
    )
  return voxels.view(dtype).reshape(geometry.shape, order='F'), slope, inter, geometry, digest.hexdigest()


def _pieces(path: str | os.PathLike, f: BinaryIO, digest: 'hashlib._Hash', is_gz: bool) -> Iterator[bytes]:
  """The file's content in pieces; of gzip, the checksum and length of every member are verified."""
  inflater = None
  while chunk := f.read(CHUNK):
    digest.update(chunk)
    if not is_gz:
      yield chunk
      continue
    while chunk:
      if inflater is None or inflater.eof:
        if not chunk.startswith(b'\x1f'):
          what = 'it is not gzip-compressed' if inflater is None else 'there are stray bytes after its compressed data'
          raise InputError(path, what + ', or damaged', 'Give a NIfTI file; name an uncompressed one .nii. ' + DAMAGED)
        inflater = zlib.decompressobj(wbits=31)
      try:
        piece = inflater.decompress(chunk, CHUNK)
      except zlib.error as e:
        raise InputError(path, f'its compressed data are damaged ({e})', DAMAGED) from e
      if piece:
        yield piece
      chunk = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
  if is_gz and not inflater.eof:
    raise InputError(path, 'its compressed data are truncated', DAMAGED)


def _parse(path: str | os.PathLike, head: bytes) -> nib.Nifti1Header:
  """The header as it is in the file, nothing repaired."""
  for order, name in (('<', 'little'), ('>', 'big')):
    for kind, length, magic in ((nib.Nifti1Header, 348, b'n+1\0'), (nib.Nifti2Header, 540, b'n+2\0\r\n\x1a\n')):
      if len(head) >= length and int.from_bytes(head[:4], name) == length:
        if magic not in (head[344:348], head[4:12]):
          raise InputError(
            path,
            'it is not a single-file NIfTI image (Analyze, a .hdr/.img pair, or damaged)',
            'Convert it to .nii.gz.',
          )
        return kind(head[:length], endianness=order, check=False)
  raise InputError(path, 'it is not a NIfTI file', 'Give a .nii or .nii.gz image. ' + DAMAGED)


def _check_type(path: str | os.PathLike, header: nib.Nifti1Header) -> np.dtype:
  code, bits = int(header['datatype']), int(header['bitpix'])
  if code not in DTYPES:
    raise InputError(
      path,
      f'its data type (NIfTI code {code}) is not one real number per voxel: complex, RGB and the like are not read',
      'Give a greyscale scan or a label map.',
    )
  dtype = np.dtype(DTYPES[code]).newbyteorder(header.endianness)
  if bits != 8 * dtype.itemsize:
    raise InputError(path, f'its header says {bits} bits per voxel, its data type has {8 * dtype.itemsize}', REWRITE)
  return dtype


def _scale(path: str | os.PathLike, header: nib.Nifti1Header) -> tuple[float, float]:
  slope, inter = float(header['scl_slope']), float(header['scl_inter'])
  if not (np.isfinite(slope) and np.isfinite(inter)) or (slope == 0 and inter != 0):
    raise InputError(
      path,
      f'its scaling is undefined (scl_slope {slope:g}, scl_inter {inter:g}): the intensities '
      'could be off by any amount',
      REWRITE,
    )
  return (slope, inter) if slope else (1.0, 0.0)  # slope 0 means "not scaled" in the standard


def _check_size(path: str | os.PathLike, header: nib.Nifti1Header, n_bytes: int, file_bytes: int, is_gz: bool) -> int:
  """The offset of the first voxel, having checked that the file can hold what its header claims."""
  offset = float(header['vox_offset'])
  first = 352 if int(header['sizeof_hdr']) == 348 else 544
  if not (np.isfinite(offset) and offset.is_integer() and offset >= first):
    raise InputError(path, f'its header puts the first voxel at byte {offset:g}; {first} is the least', REWRITE)
  claimed = int(offset) + n_bytes
  if claimed > file_bytes * (MAX_DEFLATE_RATIO if is_gz else 1):
    raise InputError(
      path, f'its header claims {claimed} bytes, more than a file of {file_bytes} bytes can hold', DAMAGED
    )
  return int(offset)


def _geometry(path: str | os.PathLike, header: nib.Nifti1Header) -> Geometry:
  dim = [int(n) for n in header['dim']]
  if not 3 <= dim[0] <= 7 or any(n != 1 for n in dim[4 : dim[0] + 1]):
    raise InputError(
      path,
      f'it is not one 3D volume (dim = {dim[: max(1, min(dim[0], 7)) + 1]})',
      'Split a series into 3D files; stack 2D slices into one.',
    )
  shape = tuple(dim[1:4])  # a fourth dimension of 1 is the same single volume
  check_shape(path, shape)
  pixdim = header['pixdim'][1:4].astype(np.float64)
  if not np.all(np.isfinite(pixdim)) or pixdim.min() <= 0:
    raise InputError(path, f'its voxel size (pixdim) is {pixdim.tolist()}', REWRITE)
  units = int(header['xyzt_units'])
  if units & 7 not in (0, 2):
    raise InputError(path, 'its lengths are not in mm (xyzt_units)', 'Write its geometry in mm.')
  sform_code, qform_code = int(header['sform_code']), int(header['qform_code'])
  if not (0 <= sform_code <= 5 and 0 <= qform_code <= 5) or sform_code == qform_code == 0:
    raise InputError(
      path,
      f'it does not say where it lies (sform_code {sform_code}, qform_code {qform_code})',
      'Write it again with a valid affine; orientation and left/right would be guesses.',
    )
  qform = _qform(path, header) if qform_code else None
  with np.errstate(invalid='ignore'):  # NaN is refused by check_affine
    affine = header.get_sform().astype(np.float64) if sform_code else qform
  check_affine(path, affine)
  check_agreement(path, affine, pixdim, qform)
  raw = [*header['pixdim'][:4], *(header[f'quatern_{n}'] for n in 'bcd'), *(header[f'qoffset_{n}'] for n in 'xyz')]
  return Geometry(
    shape=shape,
    affine=affine.tolist(),
    sform_code=sform_code,
    qform_code=qform_code,
    xyzt_units=units,
    qform=[float(v) for v in raw] if np.all(np.isfinite(raw)) else None,
  )


def _qform(path: str | os.PathLike, header: nib.Nifti1Header) -> np.ndarray:
  header['pixdim'][0] = header['pixdim'][0] or 1  # the standard: 0 is to be read as 1
  try:
    qform = header.get_qform()
  except (HeaderDataError, ValueError) as e:
    raise InputError(path, f'its qform is invalid ({e})', REWRITE) from e
  check_affine(path, qform)
  return qform
