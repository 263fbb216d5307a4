"""Pixels of a DICOM file as stored, checked and decoded, one plane for each frame, and their rescaling."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from afw_jax.data.formats.dicom_padding import padding_of
from afw_jax.data.formats.dicom_series import BROKEN
from afw_jax.data.formats.geometry import check_shape
from afw_jax.errors import InputError

EXPORT = 'Export the series again, uncompressed, one slice per file.'


def check_grey(path: Path, ds: pydicom.Dataset, n_frames: int = 1) -> None:
  """Raises InputError unless the pixels are greyscale, with a linear rescaling, and of a size that is read."""
  if ds.get('SamplesPerPixel', 1) != 1 or ds.get('PhotometricInterpretation') != 'MONOCHROME2':
    raise InputError(path, f'its pixels are {ds.get("PhotometricInterpretation")}, not MONOCHROME2 (greyscale)', EXPORT)
  if 'ModalityLUTSequence' in ds:
    raise InputError(path, 'its intensities need a modality lookup table, which is not supported', EXPORT)
  check_shape(path, (int(ds.Columns), int(ds.Rows), n_frames))


def planes(path: Path, ds: pydicom.Dataset, n_frames: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
  """The pixels of a file.

  Args:
    path: of the file, for errors.
    ds: its data set, with PixelData.
    n_frames: how many planes it holds.

  Returns:
    (pixels as integers, which of them are padding) of each frame, both (rows, columns).

  Raises:
    InputError: a pixel format that is not supported, truncated pixels, or compressed ones that cannot be decoded.
  """
  # A file without the preamble may lack it: then its elements are as they were read.
  plain = ExplicitVRLittleEndian if ds.original_encoding[0] is False else ImplicitVRLittleEndian
  syntax = ds.file_meta.get('TransferSyntaxUID', plain)
  bits, stored, signed = int(ds.BitsAllocated), int(ds.BitsStored), int(ds.PixelRepresentation)
  if bits not in (8, 16, 32) or not 1 <= stored <= bits or int(ds.HighBit) != stored - 1 or signed not in (0, 1):
    raise InputError(path, f'its pixel format ({bits} bits, {stored} stored) is not supported', EXPORT)
  shape = (n_frames, int(ds.Rows), int(ds.Columns))
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
    count = shape[0] * shape[1] * shape[2]
    n_bytes = count * bits // 8
    if len(ds.PixelData) < n_bytes:  # what follows them is no pixel
      raise InputError(
        path,
        f'it has {len(ds.PixelData)} bytes of pixels instead of {n_bytes}: truncated or damaged',
        'Copy it again. ' + EXPORT,
      )
    order = '<' if syntax.is_little_endian else '>'
    pixels = np.frombuffer(ds.PixelData, f'{order}{"i" if signed else "u"}{bits // 8}', count)
  return [_plane(path, ds, plane) for plane in pixels.reshape(shape)]


def _plane(path: Path, ds: pydicom.Dataset, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The pixels of one frame without the bits that belong to no pixel, and which of them are padding."""
  stored, signed = int(ds.BitsStored), int(ds.PixelRepresentation)
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


def rescale(where: object, ds: Any, modality: str) -> tuple[float, float]:
  """(slope, intercept) of the intensities of a slice or a frame; (1, 0) where a scan that is not CT has none.

  Args:
    where: the slice, for errors.
    ds: the data set or the functional group that has RescaleSlope and RescaleIntercept.
    modality: 'CT', whose intensities are HU, or another.

  Raises:
    InputError: they are invalid, or missing in CT.
  """
  slope, intercept = ds.get('RescaleSlope'), ds.get('RescaleIntercept')
  if slope is None and intercept is None and modality != 'CT':
    return 1.0, 0.0
  if slope is None or intercept is None:
    raise InputError(where, 'its RescaleSlope or RescaleIntercept is missing, so its HU are unknown', EXPORT)
  slope, intercept = float(slope), float(intercept)
  if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0:
    raise InputError(where, f'its rescaling is invalid (slope {slope:g}, intercept {intercept:g})', EXPORT)
  return slope, intercept
