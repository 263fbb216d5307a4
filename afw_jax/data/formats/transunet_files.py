"""Preprocessed Synapse files of TransUNet: train_npz slices and test_vol_h5 volumes.

Chen J. et al., TransUNet, arXiv:2102.04306. Pickled content is refused, because unpickling can run code.
"""

import hashlib
import os
import re
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np

from afw_jax.data.formats.geometry import MAX_DIM, Geometry, check_memory, check_shape
from afw_jax.data.formats.label_ids import whole_ids
from afw_jax.errors import InputError

MAX_RATIO = 1100  # deflate compresses by 1032 at most
RANGE_SLACK = 1e-6  # rounding error of values scaled to [0, 1]
COPY = "Copy it again from TransUNet's preprocessed Synapse data."

Decoded = tuple[np.ndarray, Geometry, str]  # (D, H, W) array, voxel grid, SHA-256


def read_image(path: str | os.PathLike) -> Decoded:
  """Reads the image of one case.

  Args:
    path: caseXXXX.npy.h5, or the pattern FOLDER/caseXXXX_slice*.npz for all slices of a case.

  Returns:
    ((D, H, W) float32 in [0, 1], already windowed; `Geometry` without a voxel size in mm; SHA-256 of the files).

  Raises:
    InputError: missing slices, pickled or damaged content, wrong shape or type, NaN, values outside [0, 1].
  """
  array, sha256 = _read(path, 'image')
  low, high = array.min(), array.max()
  if not (low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK):  # NaN compares false
    raise InputError(path, f'its image has values from {low:g} to {high:g}, not in [0, 1]', COPY)
  return array.astype(np.float32), _geometry(array.shape), sha256


def read_label(path: str | os.PathLike) -> Decoded:
  """Reads the label map of one case as (D, H, W) uint8; see `read_image`.

  Raises:
    InputError: as `read_image`, or a value that is no integer in 0..255.
  """
  array, sha256 = _read(path, 'label')
  ids, strays = whole_ids(array)
  if strays.size or not (ids.min() >= 0 and ids.max() <= 255):  # NaN compares false
    raise InputError(
      path, f'its label has values from {array.min():g} to {array.max():g} that are not all integers in 0..255', COPY
    )
  return ids.astype(np.uint8), _geometry(array.shape), sha256


def _geometry(shape: tuple[int, int, int]) -> Geometry:
  """The grid of files without spacing and orientation: the axis order (z, y, x) is kept, lengths are in voxels."""
  return Geometry(shape=shape[::-1], affine=np.diag([-1.0, -1.0, 1.0, 1.0]).tolist(), has_mm=False)


def _read(path: str | os.PathLike, key: str) -> tuple[np.ndarray, str]:
  try:
    return _read_h5(path, key) if os.fspath(path).lower().endswith('.h5') else _read_slices(path, key)
  except MemoryError as e:
    raise InputError(path, 'does not fit into memory', 'Use a machine with more memory.') from e


def _read_h5(path: str | os.PathLike, key: str) -> tuple[np.ndarray, str]:
  try:
    with open(path, 'rb') as raw:
      sha256 = hashlib.file_digest(raw, 'sha256').hexdigest()
      n_file = raw.tell()
    with h5py.File(path, 'r', locking=False) as f:
      shapes = {name: _check_dataset(path, f, name, n_file) for name in ('image', 'label')}
      if shapes['image'] != shapes['label']:
        raise InputError(path, f'its image is {shapes["image"]}, its label {shapes["label"]}', COPY)
      return f[key][()], sha256
  except InputError:
    raise
  except (OSError, KeyError, RuntimeError, TypeError, ValueError) as e:
    raise InputError(path, f'it is not a valid HDF5 file ({e})', COPY) from e


def _check_dataset(path: str | os.PathLike, f: h5py.File, name: str, n_file: int) -> tuple[int, ...]:
  if not isinstance(f.get(name, getlink=True), h5py.HardLink) or not isinstance(f[name], h5py.Dataset):
    raise InputError(path, f'it has no dataset "{name}"', COPY)
  dataset = f[name]
  if dataset.dtype.kind not in 'biuf':
    raise InputError(path, f'its "{name}" is of type {dataset.dtype}, not numbers', COPY)
  check_shape(path, dataset.shape)
  if dataset.external or dataset.is_virtual or dataset.id.get_storage_size() == 0:
    raise InputError(path, f'its "{name}" was never written, or is stored in another file', COPY)
  n_bytes = dataset.size * dataset.dtype.itemsize
  if n_bytes > MAX_RATIO * n_file:
    raise InputError(path, f'its "{name}" claims {n_bytes} bytes, more than a file of {n_file} bytes can hold', COPY)
  check_memory(path, n_bytes + 8 * dataset.size)
  return dataset.shape


def _read_slices(pattern: str | os.PathLike, key: str) -> tuple[np.ndarray, str]:
  folder, case = Path(pattern).parent, Path(pattern).name.removesuffix('_slice*.npz')
  try:
    names = sorted(p.name for p in folder.iterdir() if re.fullmatch(re.escape(case) + r'_slice\d{3}\.npz', p.name))
  except OSError as e:
    raise InputError(
      pattern, f'its folder cannot be read ({e.strerror or e})', 'Check the path and its permissions.'
    ) from e
  wanted = [f'{case}_slice{n:03d}.npz' for n in range(len(names))]
  if not names or names != wanted:
    absent = sorted(set(wanted) - set(names))
    raise InputError(
      folder / (absent[0] if absent else f'{case}_slice000.npz'),
      'this slice of the case is missing',
      'Copy all slices of the case; they are numbered from 000 without a gap.',
    )
  slices = [_read_npz(folder / name, key) for name in names]
  for name, (array, _) in zip(names, slices):
    if array.shape != slices[0][0].shape:
      raise InputError(
        folder / name, f'its size {array.shape} differs from that of the first slice, {slices[0][0].shape}', COPY
      )
  check_shape(pattern, (len(slices), *slices[0][0].shape))
  return np.stack([array for array, _ in slices]), hashlib.sha256(b''.join(digest for _, digest in slices)).hexdigest()


def _read_npz(path: Path, key: str) -> tuple[np.ndarray, bytes]:
  """((H, W) slice, SHA-256 of its file); reading checks the CRC of the zip archive."""
  try:
    with open(path, 'rb') as raw:
      digest = hashlib.file_digest(raw, 'sha256').digest()
    with zipfile.ZipFile(path) as archive:
      shapes = {name: _check_member(path, archive, name) for name in ('image', 'label')}
      if shapes['image'] != shapes['label']:
        raise InputError(path, f'its image is {shapes["image"]}, its label {shapes["label"]}', COPY)
      with archive.open(f'{key}.npy') as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):
          raise InputError(path, f'its "{key}" has bytes after its data', COPY)
    return array, digest
  except InputError:
    raise
  except (
    OSError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
  ) as e:
    raise InputError(path, f'it is not a valid .npz file ({e})', COPY) from e


def _check_member(path: Path, archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
  if f'{name}.npy' not in archive.namelist():
    raise InputError(path, f'it has no array "{name}"', COPY)
  with archive.open(f'{name}.npy') as member:
    version = np.lib.format.read_magic(member)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(member)
  if dtype.hasobject:
    raise InputError(
      path,
      f'its "{name}" is pickled, which is refused because unpickling can run code',
      'Save plain arrays of numbers (np.savez without objects).',
    )
  if dtype.kind not in 'biuf' or len(shape) != 2 or not all(1 <= n <= MAX_DIM for n in shape):
    raise InputError(path, f'its "{name}" is {dtype} of shape {shape}, not one slice of numbers', COPY)
  return shape
