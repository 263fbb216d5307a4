"""Reads and writes volumes of any supported format as (D, H, W) arrays in the internal orientation."""

import os
import stat
from collections.abc import Sequence
from typing import Any

import numpy as np

from afw_jax.data.formats import channel_scans, dicom, itk_files, nifti, png_masks, transunet_files
from afw_jax.data.formats.dicom_series import is_dicom_file
from afw_jax.data.formats.geometry import MAX_DISPLACEMENT, NOTED_DISPLACEMENT, Geometry, displacement
from afw_jax.data.formats.volume import Volume
from afw_jax.errors import InputError

READABLE = (
  'Give a NIfTI file (.nii, .nii.gz), .nrrd, .mha or .mhd, a folder with one DICOM series, '
  "TransUNet's caseXXXX.npy.h5, or caseXXXX_slice*.npz for its slices."
)
INT16 = np.iinfo(np.int16)


def read_image(path: str | os.PathLike, files: Sequence[str] = (), *, resample_dicom: bool = False) -> Volume:
  """Reads a scan, and refuses files that could be read wrongly without notice.

  Args:
    path: a .nii, .nii.gz, .nrrd, .mha or .mhd file, a folder with one DICOM series (its slices, or one enhanced
      multi-frame file), such a multi-frame file, a TransUNet caseXXXX.npy.h5, or the pattern
      FOLDER/caseXXXX_slice*.npz (with the asterisk) for TransUNet's slices of one case.
    files: names of the slices, for a folder that holds more than one DICOM series (`scans.find_scans` gives them).
    resample_dicom: interpolate DICOM slices of a tilted gantry or at varying distances, which are refused otherwise, to
      an even grid: parallel to the slices, at their median distance, with padding (air) where no slice is.

  Returns:
    A `Volume`: int16 if every value is an integer that fits, else float32.

  Raises:
    InputError: no such file, an unsupported format, or a damaged or inconsistent file.
  """
  kind = _kind(path)
  if kind == 'dicom':
    folder, name = os.path.split(path)
    return read_image(folder or os.curdir, (name,), resample_dicom=resample_dicom)
  if kind == 'folder':
    return _volume(path, dicom.read_image(path, files, resample=resample_dicom))
  if kind == 'nifti':
    return _volume(path, nifti.read_image(path))
  if kind == 'itk':
    return _volume(path, itk_files.read_image(path))
  return _volume(path, transunet_files.read_image(path))


def read_channels(paths: Sequence[str | os.PathLike], *, resample_dicom: bool = False) -> Volume:
  """Reads a scan of several channels.

  Args:
    paths: as `read_image` takes them, one for each channel in their order.
    resample_dicom: see `read_image`.

  Returns:
    A `Volume` with the array (D, H, W, channels); of one path as `read_image`.

  Raises:
    InputError: as `read_image`; or a channel is not on the grid of the first one.
  """
  return channel_scans.joined([read_image(path, resample_dicom=resample_dicom) for path in paths])


def read_label(path: str | os.PathLike, *, geometry: Geometry | None = None) -> Volume:
  """Reads a label map with the ids of the file; `DatasetSpec.raw_ids` says which id is which organ.

  Args:
    path: a .nii, .nii.gz, .nrrd, .mha or .mhd file, a folder of CHAOS PNG masks (one greyscale image per slice), or
      TransUNet's files as in `read_image`.
    geometry: of the DICOM series that PNG masks were drawn on; unused for other formats.

  Returns:
    A `Volume`: uint8, or uint16 if an id exceeds 255.

  Raises:
    InputError: as `read_image`; also for ids that are fractional, negative or above 65535.
  """
  kind = _kind(path)
  if kind == 'folder':
    if geometry is None:
      raise InputError(
        path,
        'a folder of PNG masks has no geometry',
        'Give that of its scan: read_label(folder, geometry=read_image(dicom_folder).geometry).',
      )
    return _volume(path, png_masks.read_label(path, geometry))
  if kind == 'nifti':
    return _volume(path, nifti.read_label(path))
  if kind == 'itk':
    return _volume(path, itk_files.read_label(path))
  return _volume(path, transunet_files.read_label(path))


def write_label(path: str | os.PathLike, array: np.ndarray, geometry: Geometry) -> None:
  """Writes a label map on the grid of its scan, atomically.

  Args:
    path: .nii, .nii.gz, .nrrd or .mha.
    array: (D, H, W) integers or bool, 0..65535, in the internal orientation.
    geometry: grid of the scan, whose affine, codes and units are written.

  The file is uint16 if the array is, or has an id above 255, else uint8.

  Raises:
    InputError: values or shape that do not fit, no permission, a full disk.
  """
  _write(path, _as_label(path, array), geometry)


def write_image(path: str | os.PathLike, array: np.ndarray, geometry: Geometry) -> None:
  """Writes a scan as int16 or float32, atomically.

  Args:
    path: .nii, .nii.gz, .nrrd or .mha.
    array: (D, H, W) integers that fit int16, or floats (written as float32), in the internal orientation.
    geometry: grid, affine, codes and units to write.

  Raises:
    InputError: values or shape that do not fit, no permission, a full disk.
  """
  _write(path, _as_image(path, array), geometry)


def check_pair(image: Volume, label: Volume) -> list[str]:
  """Checks that a scan and a label map have the same voxel grid (in the internal orientation).

  Returns:
    A remark for the user if a corner of the label map is more than 0.01 voxels from that of the scan, else nothing.

  Raises:
    InputError: they differ in shape, or a corner of the label map is more than 0.1 voxels from that of the scan.
  """
  if image.array.shape[:3] != label.array.shape:
    raise InputError(
      label.source,
      f'its shape {label.array.shape} (z, y, x) differs from that of the scan {image.source}, {image.array.shape[:3]}',
      'Use the label map drawn on this scan, or resample it to the grid of the scan.',
    )
  voxels, mm = displacement(image.geometry, label.geometry)
  if not voxels <= MAX_DISPLACEMENT:
    raise InputError(
      label.source,
      f'by its affine a corner lies {voxels:.2g} voxels ({mm:.3g} mm) from that of the scan {image.source}',
      'Use the label map drawn on this scan; if only its header is wrong, copy the affine of the scan into it.',
    )
  if voxels <= NOTED_DISPLACEMENT:
    return []
  return [f'by its affine the label map lies up to {voxels:.2g} voxels ({mm:.2g} mm) beside the scan']


def _volume(path: str | os.PathLike, parts: tuple[Any, ...]) -> Volume:
  array, geometry, sha256, *resampled = parts
  return Volume(array, geometry, os.fspath(path), sha256, *resampled)


def _kind(path: str | os.PathLike) -> str:
  """'folder', 'nifti', 'itk', 'transunet' or 'dicom'; InputError for a missing path or an unsupported file."""
  name = os.path.basename(os.fspath(path)).lower()
  if name.endswith('_slice*.npz'):
    return 'transunet'
  try:
    mode = os.stat(path).st_mode
  except FileNotFoundError as e:
    raise InputError(path, 'no such file or folder', 'Check the path; ' + READABLE) from e
  except (OSError, ValueError) as e:
    raise InputError(path, f'cannot be read ({e})', 'Check the path and its permissions.') from e
  if stat.S_ISDIR(mode):
    return 'folder'
  if not stat.S_ISREG(mode):
    raise InputError(path, 'is neither a file nor a folder', READABLE)
  if name.endswith(('.nii', '.nii.gz')):
    return 'nifti'
  if name.endswith(itk_files.ENDINGS):
    return 'itk'
  if name.endswith('.h5'):
    return 'transunet'
  if is_dicom_file(path):
    return 'dicom'
  raise InputError(path, 'is not a supported file format', READABLE)


def _write(path: str | os.PathLike, array: np.ndarray, geometry: Geometry) -> None:
  (itk_files if os.fspath(path).endswith(itk_files.ENDINGS) else nifti).write(path, array, geometry)


def _as_label(path: str | os.PathLike, array: np.ndarray) -> np.ndarray:
  """The array as uint8 or uint16; InputError unless it holds integers or bools from 0 to 65535."""
  array = np.asarray(array)
  if array.dtype.kind not in 'biu' or (array.size and (array.min() < 0 or array.max() > 65535)):
    raise InputError(
      path,
      f'not written: a label map needs integers from 0 to 65535, but the array is {_describe(array)}',
      'Map the classes to ids from 0 to 65535 first.',
    )
  wide = array.dtype == np.uint16 or (array.size and array.max() > 255)
  return array.astype(np.uint16 if wide else np.uint8, copy=False)


def _as_image(path: str | os.PathLike, array: np.ndarray) -> np.ndarray:
  """The array as int16 (from integers) or float32 (from floats); InputError if its values do not fit."""
  array = np.asarray(array)
  limit = float(np.finfo(np.float32).max) if array.dtype.kind == 'f' else INT16.max
  fits = array.dtype.kind in 'biuf' and (not array.size or (-limit - 1 <= array.min() and array.max() <= limit))
  if not fits:  # also for NaN, which compares false
    raise InputError(
      path,
      f'not written: a scan needs int16 or finite float32 values, but the array is {_describe(array)}',
      'Rescale the values, or give them as finite floats.',
    )
  return array.astype(np.float32 if array.dtype.kind == 'f' else np.int16, copy=False)


def _describe(array: np.ndarray) -> str:
  if array.size and array.dtype.kind in 'biuf':
    return f'{array.dtype} from {array.min():g} to {array.max():g}'
  return f'{array.dtype} of shape {array.shape}'
