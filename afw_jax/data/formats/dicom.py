"""DICOM series: reads slices or frames as one volume, ordered by position and rescaled slice by slice."""

import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from afw_jax.data.formats import dicom_frames, dicom_resample
from afw_jax.data.formats.dicom_padding import without_tissue
from afw_jax.data.formats.dicom_pixels import EXPORT, check_grey, planes, rescale
from afw_jax.data.formats.dicom_series import BROKEN, is_dicom
from afw_jax.data.formats.dicom_slices import Slice, check_alike, check_order, grid, padding_fill, unevenness
from afw_jax.data.formats.geometry import Geometry
from afw_jax.errors import InputError

JUNK = ('dicomdir', '.ds_store', 'thumbs.db', 'desktop.ini')  # files that viewers and file managers leave behind
NEEDED = ('Rows', 'Columns', 'PixelSpacing', 'ImagePositionPatient', 'ImageOrientationPatient', 'PixelData')
INT16 = np.iinfo(np.int16)


def read_image(
  folder: str | os.PathLike, files: Sequence[str] = (), *, resample: bool = False
) -> tuple[np.ndarray, Geometry, str, str]:
  """Reads one series. Slices are ordered by their position along the normal of the image plane, never by file name.

  Padding outside the field of view becomes air in CT (-1000 HU), else the lowest intensity of the series.

  Args:
    folder: holds the slices of the series or its one enhanced multi-frame file, and no others unless `files` are given.
    files: names of the slices, or of the one multi-frame file, in the folder.
    resample: interpolate slices of a tilted gantry or at varying distances to an even grid (`dicom_resample`).

  Returns:
    ((D, H, W) int16 if every rescaled value is an integer that fits, else float32; `Geometry`, with the file names in
    slice order, unless it was resampled; SHA-256 of the files' SHA-256 digests in that order; what was resampled, in
    words, or '').

  Raises:
    InputError: no DICOM file, several series, slices that differ in size, orientation or spacing, a missing or
      duplicate slice, a tilted gantry or varying distances without `resample`, colour or undecodable pixels, frames of
      several stacks or times, other files.
  """
  paths = [Path(folder) / name for name in files] or list_files(folder)
  if not paths:
    raise InputError(
      folder, 'there is no DICOM file in this folder', 'Give the folder that holds the slices of one series.'
    )
  with warnings.catch_warnings():  # about elements that are not used here; those used are checked
    warnings.simplefilter('ignore')
    slices = [s for path in paths for s in _read_file(path)]
  if len(paths) > 1 and (frames := [s for s in slices if s.frame]):
    raise InputError(
      folder,
      f'it holds {frames[0].name}, a multi-frame file, which is a scan of its own, beside {len(paths) - 1} other files',
      'Put the multi-frame file into a folder of its own.',
    )
  check_alike(folder, slices)
  normal = np.cross(*slices[0].orientation)
  slices.sort(key=lambda s: float(s.position @ normal))
  check_order(folder, slices)
  digest = hashlib.sha256(b''.join(s.digest for s in slices)).hexdigest()
  fill = padding_fill(folder, slices)
  dtype = _dtype(folder, slices, fill)
  if problem := unevenness(folder, slices):
    if not resample:
      raise problem
    made = dicom_resample.evenly(folder, slices, fill)
    return made.array, made.geometry, digest, made.note
  geometry = grid(folder, slices)
  array = np.empty(geometry.internal_shape, dtype)
  target = geometry.to_native(array)
  for k, s in enumerate(slices):
    target[:, :, k] = s.values(fill).T
  return array, geometry, digest, ''


def list_files(folder: str | os.PathLike) -> list[Path]:
  """The files of a folder, sorted by name, without those that viewers and file managers leave behind.

  Raises:
    InputError: the folder cannot be read, or has subfolders.
  """
  try:
    entries = sorted(Path(folder).iterdir())
  except OSError as e:
    raise InputError(folder, f'cannot be read ({e.strerror or e})', 'Check the path and its permissions.') from e
  paths = [p for p in entries if p.name.lower() not in JUNK and not p.name.startswith('._')]
  folders = [p.name for p in paths if p.is_dir()]
  if folders:
    raise InputError(
      folder,
      f'it has subfolders ({", ".join(folders[:5])})',
      'Give the folder that directly holds the slices of one series.',
    )
  return paths


def _read_file(path: Path) -> list[Slice]:
  """The slices of a file: one, or the frames of an enhanced multi-frame file."""
  try:
    data = path.read_bytes()
    ds = pydicom.dcmread(io.BytesIO(data), force=is_dicom(data[:132]))
    slices = list(_slices(path, ds, hashlib.sha256(data).digest()))
  except InputError:
    raise
  except InvalidDicomError as e:
    raise InputError(path, 'it is not a DICOM file', 'Leave only the slices of one series in the folder.') from e
  except OSError as e:
    raise InputError(path, f'cannot be read ({e.strerror or e})', 'Check the path and its permissions.') from e
  except MemoryError as e:
    raise InputError(path, 'does not fit into memory', EXPORT) from e
  except BROKEN as e:
    raise InputError(path, f'its DICOM content is damaged ({str(e)[:200]})', 'Copy it again. ' + EXPORT) from e
  for s in slices:
    where = f'in frame {s.frame} ' if s.frame else ''
    numbers = np.concatenate([s.position, s.orientation.ravel(), s.pixel_spacing])
    if not np.all(np.isfinite(numbers)) or s.pixel_spacing.min() <= 0:
      raise InputError(path, f'{where}its position, orientation or pixel spacing is invalid', EXPORT)
    if np.abs(s.orientation @ s.orientation.T - np.eye(2)).max() > 1e-3:
      what = f'{where}the directions of its rows and columns are not perpendicular unit vectors'
      raise InputError(path, what, EXPORT)
  return slices


def _slices(path: Path, ds: pydicom.Dataset, digest: bytes) -> Iterator[Slice]:
  if dicom_frames.is_multi_frame(ds):
    n = dicom_frames.check_file(path, ds)
    groups = dicom_frames.groups(ds)
    places = [dicom_frames.plane(path, number, frame) for number, frame in enumerate(groups, 1)]
    scales = [dicom_frames.macro(frame, 'PixelValueTransformationSequence') for frame in groups]
  else:
    n = 1
    _check_kind(path, ds)
    places, scales = [(ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing)], [ds]
  if missing := [name for name in ('Rows', 'Columns', 'PixelData') if name not in ds or ds[name].is_empty]:
    raise InputError(path, f'{", ".join(missing)} missing', 'Copy it again. ' + EXPORT)
  check_grey(path, ds, n)
  series, modality = (str(ds.get(name) or '') for name in ('SeriesInstanceUID', 'Modality'))
  for k, ((pixels, padding), place, scale) in enumerate(zip(planes(path, ds, n), places, scales, strict=True), 1):
    slope, intercept = rescale(path, scale, modality)
    position, orientation, spacing = (
      np.array(values, np.float64).reshape(shape) for values, shape in zip(place, ((3,), (2, 3), (2,)), strict=True)
    )
    if modality == 'CT':
      padding = without_tissue(padding, pixels * slope + intercept)
    frame = k if dicom_frames.is_multi_frame(ds) else 0
    yield Slice(
      *(path.name, series, modality, pixels, padding, position, orientation, spacing, slope, intercept, digest, frame)
    )


def _check_kind(path: Path, ds: pydicom.Dataset) -> None:
  if int(ds.get('NumberOfFrames') or 1) != 1:
    raise InputError(
      path, f'it holds {ds.NumberOfFrames} frames (multi-frame DICOM, but not enhanced CT or MR)', EXPORT
    )
  missing = [name for name in NEEDED if name not in ds or ds[name].is_empty]
  if missing:
    raise InputError(
      path,
      f'it is not a slice of a scan: {", ".join(missing)} missing',
      'Remove it from the folder if it is a report or a dose sheet; else export the series again.',
    )


def _dtype(folder: str | os.PathLike, slices: list[Slice], fill: float) -> type:
  fits = True
  for s in slices:
    values = s.values(fill)
    low, high = values.min().item(), values.max().item()
    if not max(abs(low), abs(high)) <= float(np.finfo(np.float32).max):
      raise InputError(folder, f'{s.place} has values that are not finite in float32', EXPORT)
    fits = fits and low >= INT16.min and high <= INT16.max and bool(np.all(values == np.rint(values)))
  return np.int16 if fits else np.float32
