"""DICOM series: reads the slices in a folder as one volume, ordered by position and rescaled slice by slice."""

import hashlib
import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from afw_jax.data.formats.dicom_padding import padding_of, without_tissue
from afw_jax.data.formats.dicom_series import BROKEN, is_dicom
from afw_jax.data.formats.dicom_slices import Slice, check_alike, grid, padding_fill
from afw_jax.data.formats.geometry import Geometry, check_shape
from afw_jax.errors import InputError

JUNK = ('dicomdir', '.ds_store', 'thumbs.db', 'desktop.ini')  # files that viewers and file managers leave behind
NEEDED = ('Rows', 'Columns', 'PixelSpacing', 'ImagePositionPatient', 'ImageOrientationPatient', 'PixelData')
INT16 = np.iinfo(np.int16)
EXPORT = 'Export the series again, uncompressed, one slice per file.'


def read_image(folder: str | os.PathLike, files: Sequence[str] = ()) -> tuple[np.ndarray, Geometry, str]:
  """Reads one series. Slices are ordered by their position along the normal of the image plane, never by file name.

  Padding outside the field of view becomes air in CT (-1000 HU), else the lowest intensity of the series.

  Args:
    folder: holds the slices of the series, and no other files unless `files` are given.
    files: names of the slices in the folder.

  Returns:
    ((D, H, W) int16 if every rescaled value is an integer that fits, else float32; `Geometry`, with the file names in
    slice order; SHA-256 of the files' SHA-256 digests in that order).

  Raises:
    InputError: no DICOM file, several series, slices that differ in size, orientation or spacing, a missing or
      duplicate slice, a tilted gantry, colour, multi-frame or undecodable pixels, other files.
  """
  paths = [Path(folder) / name for name in files] or list_files(folder)
  if not paths:
    raise InputError(
      folder, 'there is no DICOM file in this folder', 'Give the folder that holds the slices of one series.'
    )
  with warnings.catch_warnings():  # about elements that are not used here; those used are checked
    warnings.simplefilter('ignore')
    slices = [_read_slice(path) for path in paths]
  check_alike(folder, slices)
  normal = np.cross(*slices[0].orientation)
  slices.sort(key=lambda s: float(s.position @ normal))
  geometry = grid(folder, slices)
  fill = padding_fill(folder, slices)
  array = np.empty(geometry.internal_shape, _dtype(folder, slices, fill))
  target = geometry.to_native(array)
  for k, s in enumerate(slices):
    target[:, :, k] = s.values(fill).T
  return array, geometry, hashlib.sha256(b''.join(s.digest for s in slices)).hexdigest()


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


def _read_slice(path: Path) -> Slice:
  try:
    data = path.read_bytes()
    ds = pydicom.dcmread(io.BytesIO(data), force=is_dicom(data[:132]))
    _check_kind(path, ds)
    pixels, padding = _pixels(path, ds)
    slope, intercept = _rescale(path, ds)
    position = np.array(ds.ImagePositionPatient, np.float64).reshape(3)
    orientation = np.array(ds.ImageOrientationPatient, np.float64).reshape(2, 3)
    spacing = np.array(ds.PixelSpacing, np.float64).reshape(2)
    if str(ds.get('Modality')) == 'CT':
      padding = without_tissue(padding, pixels * slope + intercept)
    series, modality = (str(ds.get(name) or '') for name in ('SeriesInstanceUID', 'Modality'))
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
  numbers = np.concatenate([position, orientation.ravel(), spacing])
  if not np.all(np.isfinite(numbers)) or spacing.min() <= 0:
    raise InputError(path, 'its position, orientation or pixel spacing is invalid', EXPORT)
  if np.abs(orientation @ orientation.T - np.eye(2)).max() > 1e-3:
    raise InputError(path, 'the directions of its rows and columns are not perpendicular unit vectors', EXPORT)
  digest = hashlib.sha256(data).digest()
  return Slice(path.name, series, modality, pixels, padding, position, orientation, spacing, slope, intercept, digest)


def _check_kind(path: Path, ds: pydicom.Dataset) -> None:
  if int(ds.get('NumberOfFrames') or 1) != 1:
    raise InputError(path, f'it holds {ds.NumberOfFrames} frames (multi-frame DICOM)', EXPORT)
  missing = [name for name in NEEDED if name not in ds or ds[name].is_empty]
  if missing:
    raise InputError(
      path,
      f'it is not a slice of a scan: {", ".join(missing)} missing',
      'Remove it from the folder if it is a report or a dose sheet; else export the series again.',
    )
  if ds.get('SamplesPerPixel', 1) != 1 or ds.get('PhotometricInterpretation') != 'MONOCHROME2':
    raise InputError(path, f'its pixels are {ds.get("PhotometricInterpretation")}, not MONOCHROME2 (greyscale)', EXPORT)
  if 'ModalityLUTSequence' in ds:
    raise InputError(path, 'its intensities need a modality lookup table, which is not supported', EXPORT)
  check_shape(path, (int(ds.Columns), int(ds.Rows), 1))


def _pixels(path: Path, ds: pydicom.Dataset) -> tuple[np.ndarray, np.ndarray]:
  """(rows, columns) pixels as integers, and which of them are padding."""
  # A file without the preamble may lack it: then its elements are as they were read.
  plain = ExplicitVRLittleEndian if ds.original_encoding[0] is False else ImplicitVRLittleEndian
  syntax = ds.file_meta.get('TransferSyntaxUID', plain)
  bits, stored, signed = int(ds.BitsAllocated), int(ds.BitsStored), int(ds.PixelRepresentation)
  if bits not in (8, 16, 32) or not 1 <= stored <= bits or int(ds.HighBit) != stored - 1 or signed not in (0, 1):
    raise InputError(path, f'its pixel format ({bits} bits, {stored} stored) is not supported', EXPORT)
  rows, columns = int(ds.Rows), int(ds.Columns)
  if syntax.is_compressed:
    try:
      pixels = ds.pixel_array
    except BROKEN as e:
      raise InputError(
        path,
        f'its compressed pixels ({syntax.name}) cannot be decoded here ({str(e)[:200]})',
        "Run pip install 'afw_jax[dicom]' for the decoders, or decompress the series (gdcmconv --raw, dcmdjpeg).",
      ) from e
  else:
    n_bytes = rows * columns * bits // 8
    if len(ds.PixelData) < n_bytes:  # what follows them is no pixel
      raise InputError(
        path,
        f'it has {len(ds.PixelData)} bytes of pixels instead of {n_bytes}: truncated or damaged',
        'Copy it again. ' + EXPORT,
      )
    order = '<' if syntax.is_little_endian else '>'
    pixels = np.frombuffer(ds.PixelData, f'{order}{"i" if signed else "u"}{bits // 8}', rows * columns)
  pixels = pixels.reshape(rows, columns)
  padding = padding_of(ds, pixels)
  if padding.all():
    return pixels, padding
  least, most = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)
  beyond = ~padding & ((pixels < least) | (pixels > most))
  if not beyond.any():
    return pixels, padding
  # Bits above BitsStored belong to no pixel (PS3.5, 8.1.1): old overlays, or a sign that is not extended.
  words = pixels.astype(np.int64) & (2**stored - 1)
  words = np.where(words > most, words - 2**stored, words)
  values = np.unique(pixels[beyond])
  if len(values) == 1 and beyond.sum() > 1 and not signed:
    raise InputError(
      path,
      f'{beyond.sum()} of its pixels have the value {values[0]}, beyond the {stored} bits of BitsStored: padding that '
      'PixelPaddingValue does not declare',
      'Set PixelPaddingValue to it, or export the series again.',
    )
  return words, padding


def _rescale(path: Path, ds: pydicom.Dataset) -> tuple[float, float]:
  slope, intercept = ds.get('RescaleSlope'), ds.get('RescaleIntercept')
  if slope is None and intercept is None and ds.get('Modality') != 'CT':
    return 1.0, 0.0
  if slope is None or intercept is None:
    raise InputError(path, 'its RescaleSlope or RescaleIntercept is missing, so its HU are unknown', EXPORT)
  slope, intercept = float(slope), float(intercept)
  if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0:
    raise InputError(path, f'its rescaling is invalid (slope {slope:g}, intercept {intercept:g})', EXPORT)
  return slope, intercept


def _dtype(folder: str | os.PathLike, slices: list[Slice], fill: float) -> type:
  fits = True
  for s in slices:
    values = s.values(fill)
    low, high = values.min().item(), values.max().item()
    if not max(abs(low), abs(high)) <= float(np.finfo(np.float32).max):
      raise InputError(folder, f'{s.name} has values that are not finite in float32', EXPORT)
    fits = fits and low >= INT16.min and high <= INT16.max and bool(np.all(values == np.rint(values)))
  return np.int16 if fits else np.float32
