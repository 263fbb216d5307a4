"""NRRD (.nrrd) and MetaImage (.mha, .mhd) files: reads and writes scans and label maps with SimpleITK (extra: itk)."""

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np

from afw_jax.data.formats import itk_header, voxels
from afw_jax.data.formats.geometry import Geometry, check_affine, check_memory, check_shape
from afw_jax.errors import InputError
from afw_jax.system.atomic_files import process_name, sync, write_errors
from afw_jax.system.file_names import temporary_name

ENDINGS = ('.nrrd', '.mha', '.mhd')
WRITTEN = ('.nrrd', '.mha')  # those with one file for each volume
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # between ITK's patient coordinates and RAS


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
  header = itk_header.read(path)
  sha256, stored = _digest(header), itk_header.digest_of_compressed(header)
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
    raise InputError(
      path, f'is damaged, or of a kind that is not read ({_last_line(error)})', itk_header.REWRITE
    ) from error
  affine = np.eye(4)
  affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
  affine[:3, 3] = image.GetOrigin()
  affine = _LPS @ affine
  check_affine(path, affine)
  array = sitk.GetArrayFromImage(image)
  if stored and stored not in (hashlib.sha256(a).digest() for a in (array, array.byteswap())):
    raise InputError(path, 'ITK reads other voxels than those that are compressed in it', itk_header.REWRITE)
  return array.T, 1.0, 0.0, Geometry(shape, affine), sha256


def _digest(header: itk_header.Header) -> str:
  """SHA-256 of a file, and of the data file that its header names."""
  digest = hashlib.sha256()
  for one in dict.fromkeys((header.path, header.data)):
    with open(one, 'rb') as file:
      digest.update(hashlib.file_digest(file, 'sha256').digest())
  return digest.hexdigest()


def _last_line(error: Exception) -> str:
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return lines[-1][:200] if lines else type(error).__name__
