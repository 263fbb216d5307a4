"""NRRD (.nrrd) and MetaImage (.mha, .mhd) files: reads and writes scans and label maps with SimpleITK (extra: itk)."""

import contextlib
import hashlib
import os
import re
import zlib
from pathlib import Path

import numpy as np

from afw_jax.data.formats import voxels
from afw_jax.data.formats.geometry import Geometry, check_affine, check_memory, check_shape
from afw_jax.errors import InputError
from afw_jax.system.atomic_files import process_name, sync, write_errors
from afw_jax.system.file_names import temporary_name

ENDINGS = ('.nrrd', '.mha', '.mhd')
WRITTEN = ('.nrrd', '.mha')  # those with one file for each volume
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # between ITK's patient coordinates and RAS
_HEADER = 1 << 16  # bytes in which the header of a file ends
_SIZED = {'.nrrd': rb'^(space directions|spacings):', '.mha': rb'^ElementSpacing\s*='}
_DATA = {'.nrrd': rb'^data ?file:\s*(.*?)\s*$', '.mha': rb'^ElementDataFile\s*=\s*(.*?)\s*$'}  # apart from the header
_REWRITE = 'Write the file again with the tool that made it, or convert it to NIfTI.'


def read_image(path: str | os.PathLike) -> voxels.Decoded:
  """Reads a scan, as `voxels.as_image` describes.

  Raises:
    InputError: SimpleITK is not installed, a damaged file, one without a voxel size, more or fewer than three
      dimensions, several values for each voxel, NaN or infinite voxels.
  """
  return voxels.as_image(path, _decode)


def read_label(path: str | os.PathLike) -> voxels.Decoded:
  """Reads a label map, as `voxels.as_label` describes.

  Raises:
    InputError: as `read_image`; values that are not integers from 0 to 65535.
  """
  return voxels.as_label(path, _decode)


def write(path: str | os.PathLike, array: np.ndarray, geometry: Geometry) -> None:
  """Writes an array in the geometry of its scan, atomically.

  Args:
    path: .nrrd or .mha file.
    array: (D, H, W), of the data type to write.
    geometry: voxel grid of the source scan.

  Raises:
    InputError: SimpleITK is not installed, another suffix, a shape that is not that of the grid, no permission, a full
      disk.
  """
  path, sitk = Path(path), simple_itk(path)
  if path.suffix not in WRITTEN:
    raise InputError(path, f'not written: its name does not end in {" or ".join(WRITTEN)}', 'Choose such a name.')
  if array.shape != geometry.internal_shape:
    raise InputError(
      path,
      f'not written: the array is {array.shape}, the grid of the source scan is {geometry.internal_shape} (z, y, x)',
      'Resample it to the grid of the scan first.',
    )
  image = sitk.GetImageFromArray(np.ascontiguousarray(geometry.to_native(array).T))
  affine = _LPS @ np.asarray(geometry.affine)
  spacing = np.linalg.norm(affine[:3, :3], axis=0)
  image.SetSpacing(spacing.tolist())
  image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
  image.SetOrigin(affine[:3, 3].tolist())
  name = os.path.basename(temporary_name(f'.{path.stem}', process_name()))
  temporary = path.with_name(f'{name}{path.suffix}')  # the ending chooses the format
  with write_errors(path):
    try:
      try:
        sitk.WriteImage(image, os.fspath(temporary), useCompression=True)
      except RuntimeError as error:
        raise OSError(_last_line(error)) from error
      with open(temporary, 'rb') as file:
        sync(file.fileno())
      os.replace(temporary, path)
    finally:
      with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def simple_itk(path: object):
  """SimpleITK, imported on use.

  Raises:
    InputError: it is not installed.
  """
  try:
    import SimpleITK
  except ImportError as error:
    cure = "Run pip install 'afw_jax[itk]', or convert the file to NIfTI."
    raise InputError(path, 'needs SimpleITK, which is not installed', cure) from error
  return SimpleITK


def _decode(path: str | os.PathLike) -> tuple[np.ndarray, float, float, Geometry, str]:
  sitk = simple_itk(path)
  sha256 = _digest(path)
  reader = sitk.ImageFileReader()
  reader.SetFileName(os.fspath(path))
  try:
    reader.ReadImageInformation()
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
      what = f'it has {reader.GetDimension()} dimensions and {reader.GetNumberOfComponents()} value(s) for each voxel'
      raise InputError(path, what, 'Give three dimensions and one value for each voxel.')
    shape = reader.GetSize()
    check_shape(path, shape)
    check_memory(path, 16 * int(np.prod(shape)))  # ITK's image, the result, and a few slices in float64
    image = reader.Execute()
  except RuntimeError as error:
    raise InputError(path, f'is damaged, or of a kind that is not read ({_last_line(error)})', _REWRITE) from error
  affine = np.eye(4)
  affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
  affine[:3, 3] = image.GetOrigin()
  affine = _LPS @ affine
  check_affine(path, affine)
  return sitk.GetArrayFromImage(image).T, 1.0, 0.0, Geometry(shape, affine), sha256


def _digest(path: str | os.PathLike) -> str:
  """SHA-256 of a file, and of the data file that an .mhd names; refuses headers without a voxel size."""
  path = Path(path)
  kind = '.nrrd' if path.suffix.lower() == '.nrrd' else '.mha'
  with open(path, 'rb') as file:
    head = file.read(_HEADER)
  if kind == '.nrrd':
    head = re.split(rb'\r?\n\r?\n', head)[0]
  if not re.search(_SIZED[kind], head, re.M):
    raise InputError(path, 'its header has no voxel size', _REWRITE)
  digest, files = hashlib.sha256(), [path]
  named = re.search(_DATA[kind], head, re.M)
  if named and named[1].upper() != b'LOCAL':
    data = path.parent / os.fsdecode(named[1])
    if data.parent != path.parent or not data.is_file():
      raise InputError(path, f'its data file {os.fsdecode(named[1])} is not one file beside it', _REWRITE)
    files.append(data)
  if kind == '.mha' and named:
    _check_compressed(path, head, files[-1], named.end() + 1 if len(files) == 1 else 0)
  for one in files:
    with open(one, 'rb') as file:
      digest.update(hashlib.file_digest(file, 'sha256').digest())
  return digest.hexdigest()


def _check_compressed(path: Path, head: bytes, data: Path, start: int) -> None:
  """Refuses a MetaImage whose compressed voxels are damaged: on some of these ITK 5.4 never ends.

  Args:
    path: of the file.
    head: its first bytes.
    data: the file of the voxels.
    start: where they begin in it.
  """
  if not re.search(rb'^CompressedData\s*=\s*[Tt1]', head, re.M):
    return
  size = re.search(rb'^CompressedDataSize\s*=\s*(\d{1,18})\s*$', head, re.M)
  stream, left = zlib.decompressobj(zlib.MAX_WBITS | 32), int(size[1]) if size else data.stat().st_size
  with open(data, 'rb') as file:
    file.seek(start)
    try:
      while not stream.eof and (part := file.read(min(left, 1 << 16))):
        left -= len(part)
        stream.decompress(part)
    except zlib.error as error:
      raise InputError(path, f'its compressed voxels are damaged ({error})', _REWRITE) from error
  if not stream.eof:
    raise InputError(path, 'its compressed voxels are damaged (they end early)', _REWRITE)


def _last_line(error: Exception) -> str:
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return lines[-1][:200] if lines else type(error).__name__
