"""Padding of DICOM pixels: those outside the field of view, which hold no measurement.

PixelPaddingValue names their stored value, PixelPaddingRangeLimit the other end where it is a range (DICOM PS3.3,
C.7.5.1.1.2). Both are compared with pixels as stored, before the rescaling.
"""

from typing import Any

import numpy as np
from scipy import ndimage

TISSUE_HU = (-900, 3000)  # lungs to metal


def padding_of(ds: Any, pixels: np.ndarray) -> np.ndarray:
  """Where the pixels of a slice are padding.

  Writers disagree about the sign of the two elements, and about that of pixels with fewer bits than their words: -2000
  is also found as 63536, and in 12 bits as 2096.

  Args:
    ds: the data set of the slice, with BitsAllocated, BitsStored and PixelRepresentation.
    pixels: as stored, any shape, signed or unsigned words.

  Returns:
    Bool, of the shape of the pixels.

  Raises:
    ValueError: an element that is not one integer.
  """
  ends = [end for end in (_integer(ds, 'PixelPaddingValue'), _integer(ds, 'PixelPaddingRangeLimit')) if end is not None]
  if not ends:
    return np.zeros(pixels.shape, bool)
  bits, stored, signed = int(ds.BitsAllocated), int(ds.BitsStored), int(ds.PixelRepresentation) == 1
  ends = [_signed(end, bits, stored) for end in ends] if signed else ends
  low, high = min(ends), max(ends)
  words = pixels.astype(np.int64)
  padding = (low <= words) & (words <= high)
  if signed and stored < bits:  # words may lack the extension of their sign
    words = np.where((words >= 2 ** (stored - 1)) & (words < 2**stored), words - 2**stored, words)
    padding |= (low <= words) & (words <= high)
  elif not signed and low < 0:
    words -= 2**bits
    padding |= (low <= words) & (words <= high)
  return padding


def without_tissue(padding: np.ndarray, hu: np.ndarray) -> np.ndarray:
  """Padding of a CT slice without what may be measured: values of tissue, where they do not reach its border.

  Some exports keep a padding value of 0 with pixels in HU, where it is water.

  Args:
    padding: (rows, columns) bool, from `padding_of`.
    hu: (rows, columns) rescaled intensities.
  """
  if not (padding & (hu > TISSUE_HU[0]) & (hu < TISSUE_HU[1])).any():
    return padding
  parts, _ = ndimage.label(padding)  # pyright: ignore[reportGeneralTypeIssues]
  border = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
  return padding & np.isin(parts, border[border > 0])


def _signed(value: int, bits: int, stored: int) -> int:
  """A value that was written without its sign, with the sign of words or of pixels."""
  for n in (bits, stored):
    if 2 ** (n - 1) <= value < 2**n:
      return value - 2**n
  return value


def _integer(ds: Any, name: str) -> int | None:
  """An element as an integer, whatever its type in the file; None where it is absent or empty."""
  if name not in ds or ds[name].is_empty:
    return None
  value = ds[name].value
  if isinstance(value, bytes):  # the file leaves the type open
    return int.from_bytes(value, 'little' if ds.original_encoding[1] else 'big')
  number = float(value)
  if not number.is_integer():
    raise ValueError(f'{name} is {value}')
  return int(number)
