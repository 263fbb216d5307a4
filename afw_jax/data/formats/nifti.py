"""NIfTI files (.nii, .nii.gz): reads and writes scans and label maps.

A file is refused unless its header is consistent, its data end exactly where the header says, and, if it is
compressed, every gzip checksum is right.
"""

import contextlib
import gzip
import hashlib
import itertools
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from afw_jax.data.formats import nifti_header, voxels
from afw_jax.data.formats.geometry import Geometry, check_memory
from afw_jax.errors import InputError
from afw_jax.system.atomic_files import process_name, sync, write_errors
from afw_jax.system.file_names import temporary_name

CHUNK = 1 << 22  # bytes read at a time


def read_image(path: str | os.PathLike) -> voxels.Decoded:
  """Reads a scan from a .nii or .nii.gz file, as `voxels.as_image` describes.

  Raises:
    InputError: damaged or inconsistent file, NaN or infinite voxels, values beyond float32.
  """
  return voxels.as_image(path, _decode)


def read_label(path: str | os.PathLike) -> voxels.Decoded:
  """Reads a label map from a .nii or .nii.gz file, as `voxels.as_label` describes.

  Raises:
    InputError: damaged or inconsistent file, values that are not integers from 0 to 65535 (to 0.001).
  """
  return voxels.as_label(path, _decode)


def encode(array: np.ndarray, affine: np.ndarray, slope: float = 1.0, inter: float = 0.0) -> bytes:
  """An array in the internal orientation as the bytes of an uncompressed NIfTI file.

  Args:
    array: (D, H, W), of a type that NIfTI has.
    affine: 4 x 4, voxel (z, y, x, 1) -> RAS coordinates in mm.
    slope, inter: voxel * slope + inter are the intensities.
  """
  turned = np.eye(4)[[2, 1, 0, 3]]  # the file counts x first
  header = nifti_header.header_for(array.dtype, Geometry(array.shape[::-1], affine @ turned))
  header['scl_slope'], header['scl_inter'] = slope, inter
  return header.binaryblock + bytes(4) + np.ascontiguousarray(array).tobytes()


def write(path: str | os.PathLike, array: np.ndarray, geometry: Geometry) -> None:
  """Writes an array with the affine, codes and units of the source scan, atomically.

  Args:
    path: .nii or .nii.gz file.
    array: (D, H, W), of the data type to write.
    geometry: voxel grid of the source scan.

  Raises:
    InputError: another suffix, a shape that is not that of the grid, no permission, a full disk.
  """
  path = Path(path)
  if not path.name.endswith(('.nii', '.nii.gz')):
    raise InputError(path, 'not written: its name does not end in .nii or .nii.gz', 'Choose such a name.')
  if array.shape != geometry.internal_shape:
    raise InputError(
      path,
      f'not written: the array is {array.shape}, the grid of the source scan is {geometry.internal_shape} (z, y, x)',
      'Resample it to the grid of the scan first.',
    )
  native = geometry.to_native(array)
  header = nifti_header.header_for(native.dtype, geometry)
  temporary = path.with_name(os.path.basename(temporary_name(f'.{path.name}', process_name())))
  with write_errors(path):
    try:
      with open(temporary, 'wb') as raw:
        with _compressed(raw) if path.name.endswith('.gz') else contextlib.nullcontext(raw) as f:
          f.write(header.binaryblock + bytes(4))  # four zeros: no header extension
          for k in range(native.shape[2]):
            f.write(native[:, :, k].tobytes(order='F'))
        raw.flush()
        sync(raw.fileno())
      os.replace(temporary, path)
    finally:
      with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def _compressed(raw: BinaryIO) -> gzip.GzipFile:
  # Without name and time in its header, equal arrays give equal files.
  return gzip.GzipFile(filename='', mode='wb', compresslevel=4, fileobj=raw, mtime=0)


def _decode(path: str | os.PathLike) -> tuple[np.ndarray, float, float, Geometry, str]:
  """(raw voxels (i, j, k), slope, intercept, grid, SHA-256) of a file, read to its last byte."""
  is_gz = os.fspath(path).lower().endswith('.gz')
  digest = hashlib.sha256()
  with open(path, 'rb') as f:
    file_bytes = os.fstat(f.fileno()).st_size
    if file_bytes == 0:
      raise InputError(path, 'the file is empty', nifti_header.DAMAGED)
    pieces = _pieces(path, f, digest, is_gz)
    head = b''
    while len(head) < nifti_header.MAX_BYTES and (piece := next(pieces, b'')):
      head += piece
    header = nifti_header.parse(path, head)
    dtype = nifti_header.check_type(path, header)
    geometry = nifti_header.geometry_of(path, header)
    slope, inter = nifti_header.scaling(path, header)
    n_bytes = int(np.prod(geometry.shape)) * dtype.itemsize
    start = nifti_header.check_size(path, header, n_bytes, file_bytes, is_gz)
    # the raw voxels, the result (up to 4 bytes per voxel), and a few slices in float64
    check_memory(path, n_bytes + int(np.prod(geometry.shape)) * 4 + 32 * int(np.prod(geometry.shape[:2])))
    voxels = np.empty(n_bytes, np.uint8)
    at = -start  # position of the next byte relative to the first voxel
    for piece in itertools.chain([head], pieces):
      if at + len(piece) > n_bytes:
        raise InputError(path, 'it holds more bytes than its header claims', nifti_header.REWRITE)
      data = piece[max(0, -at) :]
      at += len(piece)
      if data:
        voxels[at - len(data) : at] = np.frombuffer(data, np.uint8)
  if at < n_bytes:
    raise InputError(
      path,
      f'its data end {n_bytes - at} bytes too early: it is truncated, or its header claims too many voxels',
      nifti_header.DAMAGED,
    )
  return voxels.view(dtype).reshape(geometry.shape, order='F'), slope, inter, geometry, digest.hexdigest()


def _pieces(path: str | os.PathLike, f: BinaryIO, digest: 'hashlib._Hash', is_gz: bool) -> Iterator[bytes]:
  """The content of the file in pieces, decompressed; checks the checksum and length of every gzip member."""
  inflater = None
  while chunk := f.read(CHUNK):
    digest.update(chunk)
    if not is_gz:
      yield chunk
      continue
    while chunk:
      if inflater is None or inflater.eof:
        if not chunk.startswith(b'\x1f'):
          what = 'it is not gzip-compressed' if inflater is None else 'there are bytes after its compressed data'
          cure = f'Give a NIfTI file; name an uncompressed one .nii. {nifti_header.DAMAGED}'
          raise InputError(path, f'{what}, or damaged', cure)
        inflater = zlib.decompressobj(wbits=31)
      try:
        piece = inflater.decompress(chunk, CHUNK)
      except zlib.error as e:
        raise InputError(path, f'its compressed data are damaged ({e})', nifti_header.DAMAGED) from e
      if piece:
        yield piece
      chunk = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
  if is_gz and not inflater.eof:
    raise InputError(path, 'its compressed data are truncated', nifti_header.DAMAGED)
