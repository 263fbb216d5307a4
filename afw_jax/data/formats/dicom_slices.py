"""Slices of a DICOM series: one slice as stored in its file, and the checks that several are one volume."""

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np

from afw_jax.data.formats.geometry import MAX_DISPLACEMENT, MAX_SHEAR, Geometry, check_affine, check_shape
from afw_jax.data.padding import AIR_HU
from afw_jax.errors import InputError

MAX_OFF_GRID = 0.05  # largest distance of a slice from an even grid, as a fraction of the slice spacing
SAME_POSITION_MM = 0.01  # slices closer than this are duplicates
_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from DICOM's LPS


@dataclasses.dataclass(frozen=True)
class Slice:
  """One slice as stored in its file.

  Attributes:
    name: of the file.
    series: SeriesInstanceUID.
    modality: 'CT', 'MR' or another; '' where it is not given.
    pixels: (rows, columns) integers before rescaling.
    padding: (rows, columns) bool, the pixels outside the field of view.
    position: (3,) LPS coordinates of the first pixel, in mm.
    orientation: (2, 3) LPS directions along a row and down a column.
    pixel_spacing: (2,) mm between rows, between columns.
    slope, intercept: rescaling of the pixels.
    digest: SHA-256 of the file.
    frame: number of the frame in a multi-frame file, from 1; 0 where the file is one slice.
  """

  name: str
  series: str
  modality: str
  pixels: np.ndarray
  padding: np.ndarray
  position: np.ndarray
  orientation: np.ndarray
  pixel_spacing: np.ndarray
  slope: float
  intercept: float
  digest: bytes
  frame: int = 0

  @property
  def place(self) -> str:
    """The slice in words, for errors."""
    return f'frame {self.frame} of {self.name}' if self.frame else self.name

  def values(self, fill: float = 0) -> np.ndarray:
    """(rows, columns) rescaled intensities, `fill` where there is padding.

    Their type is int64 if slope, intercept and `fill` are integers, else float64.
    """
    if self.slope.is_integer() and self.intercept.is_integer():
      values = self.pixels.astype(np.int64) * int(self.slope) + int(self.intercept)
    else:
      values = self.pixels * self.slope + self.intercept
    return np.where(self.padding, fill, values) if self.padding.any() else values

  def affine(self, step: np.ndarray) -> np.ndarray:
    """4 x 4: (i along a row, j down a column, slices from this one, 1) -> RAS coordinates in mm; `step` is LPS."""
    (row, column), (between_rows, between_columns) = self.orientation, self.pixel_spacing
    affine = np.eye(4)
    affine[:3] = np.stack([row * between_columns, column * between_rows, step, self.position], axis=1)
    return _RAS @ affine


def padding_fill(folder: str | os.PathLike, slices: Sequence[Slice]) -> float:
  """The intensity that padding gets: air in CT, else the lowest of the series, which no percentile counts.

  Raises:
    InputError: there is nothing but padding.
  """
  inside = [s.values()[~s.padding] for s in slices if not s.padding.all()]
  if not inside:
    raise InputError(
      folder,
      'all its pixels are padding (PixelPaddingValue, PixelPaddingRangeLimit)',
      'Export the series again from the original scan.',
    )
  return AIR_HU if slices[0].modality == 'CT' else min(values.min().item() for values in inside)


def check_alike(folder: str | os.PathLike, slices: list[Slice]) -> None:
  """Raises InputError unless the slices are of one series, and alike in size, orientation and pixel spacing."""
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
      raise InputError(
        folder, f'{s.place} has {s.pixels.shape} pixels, but {first.place} has {first.pixels.shape}', cure
      )
    if np.abs(s.orientation - first.orientation).max() > 1e-3:
      raise InputError(folder, f'{s.place} and {first.place} are oriented differently', cure)
    if np.abs(s.pixel_spacing / first.pixel_spacing - 1).max() > 1e-3:
      raise InputError(folder, f'{s.place} and {first.place} have different pixel spacings', cure)


def check_order(folder: str | os.PathLike, slices: Sequence[Slice]) -> None:
  """Raises InputError for fewer than two slices, and for two at one position; they are in order along the normal."""
  if len(slices) < 2:
    raise InputError(folder, 'it has a single slice, so the slice spacing is unknown', 'Give the whole series.')
  gaps = np.diff([s.position @ np.cross(*slices[0].orientation) for s in slices])
  if gaps.min() < SAME_POSITION_MM:
    k = int(gaps.argmin())
    raise InputError(
      folder,
      f'{slices[k].place} and {slices[k + 1].place} have the same position',
      'Keep only one copy of each slice, and only one phase or echo, in the folder.',
    )


def unevenness(folder: str | os.PathLike, slices: Sequence[Slice]) -> InputError | None:
  """Why slices in order are no even grid with perpendicular axes; None if they are."""
  positions, normal = np.stack([s.position for s in slices]), np.cross(*slices[0].orientation)
  step = _step(slices)
  off = np.linalg.norm(positions - positions[0] - np.arange(len(slices))[:, None] * step, axis=1)
  if off.max() > MAX_OFF_GRID * np.linalg.norm(step):
    gaps = np.diff(positions @ normal)
    k = int(np.abs(gaps - np.median(gaps)).argmax())
    return InputError(
      folder,
      f'its slices are not evenly spaced: {gaps[k]:.3f} mm between {slices[k].place} and '
      f'{slices[k + 1].place}, {np.median(gaps):.3f} mm between most others '
      '(a slice is missing, or the spacing varies)',
      'Copy the whole series again if a slice is missing. --resample_dicom interpolates it to an even grid.',
    )
  tilt = np.linalg.norm(np.cross(step, normal)) / np.linalg.norm(step)
  if tilt > MAX_SHEAR:
    return InputError(
      folder,
      f'its axes are sheared: the slices are stacked {np.degrees(np.arcsin(min(1.0, tilt))):.2f} degrees off their '
      'normal (a tilted gantry)',
      '--resample_dicom interpolates it to an even grid.',
    )
  return None


def grid(folder: str | os.PathLike, slices: Sequence[Slice]) -> Geometry:
  """The voxel grid of evenly spaced slices in order (i along a row, j down a column, k along the normal).

  Raises:
    InputError: the grid has an implausible size, or a slice lies beside its place in it.
  """
  n, step = len(slices), _step(slices)
  rows, columns = slices[0].pixels.shape
  check_shape(folder, (columns, rows, n))
  affine = slices[0].affine(step)
  check_affine(folder, affine)
  starts = [slices[0].position + k * step for k in range(n)]
  check_places(folder, slices, [dataclasses.replace(slices[0], position=at).affine(step) for at in starts], step)
  affine = affine.astype(np.float32)  # the precision of NIfTI: label maps written on this grid have the same affine
  return Geometry(
    shape=(columns, rows, n), affine=affine.tolist(), slice_files=tuple(dict.fromkeys(s.name for s in slices))
  )


def check_places(
  folder: str | os.PathLike, slices: Sequence[Slice], affines: Sequence[np.ndarray], step: np.ndarray
) -> None:
  """Raises InputError if a corner of a slice, by its own file, is not where the affine that is meant for it has it."""
  rows, columns = slices[0].pixels.shape
  corners = np.array([(i, j, 0, 1) for i in (-0.5, columns - 0.5) for j in (-0.5, rows - 0.5)]).T
  to_index = np.linalg.inv(affines[0])
  for s, affine in zip(slices, affines, strict=True):
    largest = np.linalg.norm(to_index @ (s.affine(step) - affine) @ corners, axis=0).max()
    if largest > MAX_DISPLACEMENT:
      raise InputError(
        folder,
        f'{s.place} lies up to {largest:.2f} voxels beside its place in the grid of the series (its position, '
        f'orientation or pixel spacing differs from that of {slices[0].place})',
        'Keep only the slices of one stack in the folder, or resample them to one grid.',
      )


def _step(slices: Sequence[Slice]) -> np.ndarray:
  """From each slice to the next, if they are evenly spaced: LPS, in mm."""
  return (slices[-1].position - slices[0].position) / (len(slices) - 1)
