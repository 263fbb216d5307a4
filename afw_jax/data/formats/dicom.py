"""DICOM series: reads the slices in a folder as one volume, ordered by position and rescaled slice by slice."""

import dataclasses
import hashlib
import io
import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from afw_jax.data.formats.dicom_series import is_dicom
from afw_jax.data.formats.geometry import Geometry, check_affine, check_shape
from afw_jax.errors import InputError

JUNK = ('dicomdir', '.ds_store', 'thumbs.db', 'desktop.ini')  # files that viewers and file managers leave behind
MAX_OFF_GRID = 0.05  # largest distance of a slice from an even grid, as a fraction of the slice spacing
SAME_POSITION_MM = 0.01  # slices closer than this are duplicates
NEEDED = ('Rows', 'Columns', 'PixelSpacing', 'ImagePositionPatient', 'ImageOrientationPatient', 'PixelData')
INT16 = np.iinfo(np.int16)
# exceptions of pydicom and its decoders on damaged or unsupported files
BROKEN = (
  ArithmeticError,
  AttributeError,
  EOFError,
  LookupError,
  NotImplementedError,
  RuntimeError,
  TypeError,
  ValueError,
  BytesLengthException,
  struct.error,
  zlib.error,
)
EXPORT = 'Export the series again, uncompressed, one slice per file.'


@dataclasses.dataclass(frozen=True)
class Slice:
  """One slice as stored in its file.

  Attributes:
    name: of the file.
    series: SeriesInstanceUID.
    pixels: (rows, columns) integers before rescaling.
    position: (3,) LPS coordinates of the first pixel, in mm.
    orientation: (2, 3) LPS directions along a row and down a column.
    pixel_spacing: (2,) mm between rows, between columns.
    slope, intercept: rescaling of the pixels.
    digest: SHA-256 of the file.
  """

  name: str
  series: str
  pixels: np.ndarray
  position: np.ndarray
  orientation: np.ndarray
  pixel_spacing: np.ndarray
  slope: float
  intercept: float
  digest: bytes

  def values(self) -> np.ndarray:
    """(rows, columns) rescaled intensities: int64 if slope and intercept are integers, else float64."""
    if self.slope.is_integer() and self.intercept.is_integer():
      return self.pixels.astype(np.int64) * int(self.slope) + int(self.intercept)
    return self.pixels * self.slope + self.intercept


def read_image(folder: str | os.PathLike, files: Sequence[str] = ()) -> tuple[np.ndarray, Geometry, str]:
  """Reads one series. Slices are ordered by their position along the normal of the image plane, never by file name.

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
  _check_alike(folder, slices)
  normal = np.cross(*slices[0].orientation)
  slices.sort(key=lambda s: float(s.position @ normal))
  geometry = _geometry(folder, slices)
  array = np.empty(geometry.internal_shape, _dtype(folder, slices))
  target = geometry.to_native(array)
  for k, s in enumerate(slices):
    target[:, :, k] = s.values().T
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
    pixels = _pixels(path, ds)
    slope, intercept = _rescale(path, ds)
    position = np.array(ds.ImagePositionPatient, np.float64).reshape(3)
    orientation = np.array(ds.ImageOrientationPatient, np.float64).reshape(2, 3)
    spacing = np.array(ds.PixelSpacing, np.float64).reshape(2)
    series = str(ds.get('SeriesInstanceUID', ''))
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
  return Slice(
    path.name, series, pixels, position, orientation, spacing, slope, intercept, hashlib.sha256(data).digest()
  )


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


def _pixels(path: Path, ds: pydicom.Dataset) -> np.ndarray:
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
        'Decompress the series first (gdcmconv --raw, or dcmdjpeg of DCMTK).',
      ) from e
  else:
    n_bytes = rows * columns * bits // 8
    if len(ds.PixelData) != n_bytes + n_bytes % 2:
      raise InputError(
        path,
        f'it has {len(ds.PixelData)} bytes of pixels instead of {n_bytes}: truncated or damaged',
        'Copy it again. ' + EXPORT,
      )
    order = '<' if syntax.is_little_endian else '>'
    pixels = np.frombuffer(ds.PixelData, f'{order}{"i" if signed else "u"}{bits // 8}', rows * columns)
  pixels = pixels.reshape(rows, columns)
  low, high = pixels.min(), pixels.max()
  if signed and low >= 0 and stored < bits and high < 2**stored:  # written without sign extension
    pixels = pixels.astype(np.int64)
    return np.where(pixels < 2 ** (stored - 1), pixels, pixels - 2**stored)
  least, most = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)
  if low < least or high > most:
    raise InputError(path, f'its pixels exceed the {stored} bits of BitsStored', EXPORT)
  return pixels


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


def _check_alike(folder: str | os.PathLike, slices: list[Slice]) -> None:
  series = Counter(s.series for s in slices)
  if len(series) > 1:
    raise InputError(
      folder,
      f'it mixes {len(series)} series ({" + ".join(map(str, series.values()))} slices)',
      'Put each series in its own folder (by SeriesInstanceUID).',
    )
  first = slices[0]
  for s in slices[1:]:
    cure = 'Keep only the slices of one stack in the folder (no localiser, no second reconstruction).'
    if s.pixels.shape != first.pixels.shape:
      raise InputError(folder, f'{s.name} has {s.pixels.shape} pixels, but {first.name} has {first.pixels.shape}', cure)
    if np.abs(s.orientation - first.orientation).max() > 1e-3:
      raise InputError(folder, f'{s.name} and {first.name} are oriented differently', cure)
    if np.abs(s.pixel_spacing / first.pixel_spacing - 1).max() > 1e-3:
      raise InputError(folder, f'{s.name} and {first.name} have different pixel spacings', cure)


def _geometry(folder: str | os.PathLike, slices: list[Slice]) -> Geometry:
  """The grid (i along a row, j down a column, k along the normal); InputError unless slices are evenly spaced."""
  n = len(slices)
  rows, columns = slices[0].pixels.shape
  check_shape(folder, (columns, rows, n))
  if n < 2:
    raise InputError(folder, 'it has a single slice, so the slice spacing is unknown', 'Give the whole series.')
  positions = np.stack([s.position for s in slices])
  gaps = np.diff(positions @ np.cross(*slices[0].orientation))
  if gaps.min() < SAME_POSITION_MM:
    k = int(gaps.argmin())
    raise InputError(
      folder,
      f'{slices[k].name} and {slices[k + 1].name} have the same position',
      'Keep only one copy of each slice, and only one phase or echo, in the folder.',
    )
  step = (positions[-1] - positions[0]) / (n - 1)
  off = np.linalg.norm(positions - positions[0] - np.arange(n)[:, None] * step, axis=1)
  if off.max() > MAX_OFF_GRID * np.linalg.norm(step):
    k = int(np.abs(gaps - np.median(gaps)).argmax())
    raise InputError(
      folder,
      f'its slices are not evenly spaced: {gaps[k]:.3f} mm between {slices[k].name} and '
      f'{slices[k + 1].name}, {np.median(gaps):.3f} mm between most others (a slice is missing, or the spacing varies)',
      'Copy the whole series again, or resample it to an even spacing.',
    )
  (row, column), (between_rows, between_columns) = slices[0].orientation, slices[0].pixel_spacing
  affine = np.eye(4)
  affine[:3] = np.stack([row * between_columns, column * between_rows, step, positions[0]], axis=1)
  affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's LPS -> RAS
  check_affine(folder, affine)
  affine = affine.astype(np.float32)  # the precision of NIfTI: label maps written on this grid have the same affine
  return Geometry(shape=(columns, rows, n), affine=affine.tolist(), slice_files=tuple(s.name for s in slices))


def _dtype(folder: str | os.PathLike, slices: list[Slice]) -> type:
  fits = True
  for s in slices:
    values = s.values()
    low, high = values.min().item(), values.max().item()
    if not max(abs(low), abs(high)) <= float(np.finfo(np.float32).max):
      raise InputError(folder, f'{s.name} has values that are not finite in float32', EXPORT)
    fits = fits and low >= INT16.min and high <= INT16.max and bool(np.all(values == np.rint(values)))
  return np.int16 if fits else np.float32
