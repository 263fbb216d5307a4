"""Voxel grids of image files (shape, affine, spacing), and the orientation that all arrays are brought to.

Internally every volume is (D, H, W) with z towards Superior, y towards Posterior and x towards Left.
"""

import dataclasses
import itertools
from typing import Any, Self

import numpy as np

from afw_jax.data import resources
from afw_jax.errors import InputError

MAX_DIM = 4096  # voxels along one axis
MAX_VOXELS = 2**30  # of one volume
SPACING_RANGE_MM = (0.01, 100.0)
MAX_SHEAR = 1e-3  # largest cosine between two axes that should be perpendicular
MAX_DISAGREEMENT = 0.01  # relative, between the pixdim, qform and sform of one header
MAX_DISPLACEMENT = 0.1  # of a corner, in voxels, between grids that are taken for the same
NOTED_DISPLACEMENT = 0.01  # from which it is worth a word
# unit vectors (RAS) of the internal z, y and x axes
_INTERNAL_AXES = np.array([(0, 0, 1), (0, -1, 0), (-1, 0, 0)], np.float64)


@dataclasses.dataclass(frozen=True)
class Geometry:
  """The voxel grid of a source file: enough to reorient its array and to write a label map on the same grid.

  Attributes:
    shape: voxels along the axes of the file (i, j, k).
    affine: 4 x 4, voxel index (i, j, k, 1) -> RAS coordinates in mm.
    sform_code: NIfTI code of the sform; 0 where only the qform is set.
    qform_code: NIfTI code of the qform; 0 where only the sform is set.
    xyzt_units: NIfTI units byte (2 = mm).
    qform: (qfac, pixdim 1..3, quatern b c d, qoffset x y z) of the source header; None: computed from the affine.
    has_mm: whether the file has a voxel size in mm; without one (TransUNet's files) lengths are in voxels.
    slice_files: file names of slices k = 0, 1, ... of a DICOM series, of a multi-frame file its name alone, else empty.
  """

  shape: tuple[int, int, int]
  affine: tuple[tuple[float, ...], ...]
  sform_code: int = 1
  qform_code: int = 1
  xyzt_units: int = 2
  qform: tuple[float, ...] | None = None
  has_mm: bool = True
  slice_files: tuple[str, ...] = ()

  def __post_init__(self):
    plain = {
      'shape': tuple(int(n) for n in self.shape),
      'affine': tuple(tuple(float(v) for v in row) for row in self.affine),
      'qform': None if self.qform is None else tuple(float(v) for v in self.qform),
      'slice_files': tuple(str(name) for name in self.slice_files),
    }
    for name, value in plain.items():
      object.__setattr__(self, name, value)

  def to_json(self) -> dict[str, Any]:
    """Numbers, strings and lists that JSON can hold; the inverse of `from_json`."""
    return {k: _as_lists(v) for k, v in dataclasses.asdict(self).items()}

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> Self:
    """The `Geometry` of a dict that `to_json` returned."""
    return cls(**fields)

  @property
  def spacing_mm(self) -> tuple[float, float, float]:
    """Voxel size (z, y, x) of the internal array, in mm."""
    sizes = np.linalg.norm(np.array(self.affine)[:3, :3], axis=0)
    return tuple(float(sizes[axis]) for axis in self._axes()[0])

  @property
  def internal_shape(self) -> tuple[int, int, int]:
    """Shape (D, H, W) of the internal array."""
    return tuple(self.shape[axis] for axis in self._axes()[0])

  @property
  def internal_affine(self) -> np.ndarray:
    """4 x 4 float64: internal voxel index (z, y, x, 1) -> RAS coordinates in mm."""
    affine, (axes, flips) = np.array(self.affine), self._axes()
    native = np.zeros((4, 4))  # internal index -> native index
    native[3, 3] = 1
    for n, (axis, flip) in enumerate(zip(axes, flips)):
      native[axis, n] = -1 if flip else 1
      native[axis, 3] = self.shape[axis] - 1 if flip else 0
    return affine @ native

  def to_internal(self, array: np.ndarray) -> np.ndarray:
    """A view of an array (i, j, k, ...) of the file as (D, H, W, ...): axes permuted and flipped, not resampled."""
    axes, flips = self._axes()
    rest = range(3, array.ndim)
    return array.transpose(*axes, *rest)[_flip(flips)]

  def to_native(self, array: np.ndarray) -> np.ndarray:
    """A view of an array (D, H, W, ...) as (i, j, k, ...) of the file: the inverse of `to_internal`."""
    axes, flips = self._axes()
    rest = range(3, array.ndim)
    return array[_flip(flips)].transpose(*np.argsort(axes), *rest)

  def _axes(self) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """For internal z, y, x: the closest axis of the file, and whether it points the other way."""
    columns = np.array(self.affine)[:3, :3]
    cosines = _INTERNAL_AXES @ (columns / np.linalg.norm(columns, axis=0))
    axes = max(itertools.permutations(range(3)), key=lambda p: sum(abs(cosines[n, p[n]]) for n in range(3)))
    return axes, tuple(bool(cosines[n, axes[n]] < 0) for n in range(3))


def displacement(grid: Geometry, other: Geometry) -> tuple[float, float]:
  """How far two grids of the same shape are apart at the corner where they are furthest apart.

  Args:
    grid: the one whose voxels are the unit.
    other: with the same `internal_shape`.

  Returns:
    (displacement in voxels of `grid`, in mm), each the largest of the eight outer corners.
  """
  corners = np.array([*itertools.product(*((-0.5, n - 0.5) for n in grid.internal_shape))]).T
  corners = np.concatenate([corners, np.ones((1, 8))])
  moved_mm = (other.internal_affine - grid.internal_affine) @ corners
  moved = np.linalg.inv(grid.internal_affine) @ moved_mm
  return float(np.linalg.norm(moved, axis=0).max()), float(np.linalg.norm(moved_mm, axis=0).max())


def check_shape(path: object, shape: tuple[int, ...]) -> None:
  """Checks the shape of a volume before memory is allocated for it.

  Args:
    path: of the file, for the error.
    shape: three sizes, each from 1 to 4096, with at most 2^30 voxels in all.

  Raises:
    InputError: another shape.
  """
  if len(shape) != 3 or not all(1 <= n <= MAX_DIM for n in shape) or np.prod(shape, dtype=object) > MAX_VOXELS:
    raise InputError(
      path,
      f'its size {tuple(shape)} is not that of one 3D volume (1 to {MAX_DIM} voxels per axis, {MAX_VOXELS} in all)',
      'Give one 3D scan per file; crop or resample a larger one.',
    )


def check_memory(path: object, n_bytes: int) -> None:
  """Raises InputError if reading a file takes more memory than is available to this process."""
  free = resources.free_memory()
  if n_bytes > free:
    raise InputError(
      path,
      f'reading it takes {n_bytes / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free',
      'Crop or resample the scan, close other programs, or raise the memory limit of the job.',
    )


def check_affine(path: object, affine: np.ndarray) -> None:
  """Raises InputError unless a 4 x 4 affine (mm) is finite, invertible, without shear, with plausible voxel sizes."""
  cure = 'Export the file again from the original scan, with a valid affine.'
  if not np.all(np.isfinite(affine)):
    raise InputError(path, 'its affine has NaN or infinite entries', cure)
  sizes = np.linalg.norm(affine[:3, :3], axis=0)
  if not sizes.all() or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-6:
    raise InputError(path, 'its affine is singular (an axis has length 0, or two axes are parallel)', cure)
  low, high = SPACING_RANGE_MM
  if sizes.min() < low or sizes.max() > high:
    raise InputError(path, f'its voxel size {_mm(sizes)} mm is outside {low} to {high} mm', cure)
  directions = affine[:3, :3] / sizes
  shear = np.abs(directions.T @ directions - np.eye(3)).max()
  if shear > MAX_SHEAR:
    raise InputError(
      path,
      f'its axes are sheared: {np.degrees(np.arcsin(min(1.0, shear))):.2f} degrees from perpendicular',
      'Resample it to a grid with perpendicular axes first (dcm2niix does so for a tilted gantry).',
    )


def check_agreement(path: object, affine: np.ndarray, pixdim: np.ndarray, qform: np.ndarray | None) -> None:
  """Raises InputError if pixdim, sform and qform of a NIfTI header disagree about voxel size or position."""
  sizes = np.linalg.norm(affine[:3, :3], axis=0)
  if np.abs(pixdim / sizes - 1).max() > MAX_DISAGREEMENT:
    raise InputError(
      path,
      f'its voxel size is {pixdim.round(4).tolist()} mm by pixdim, but {sizes.round(4).tolist()} mm by its affine',
      'Find out which is right, and write the file again with it.',
    )
  if qform is not None:
    turned = np.linalg.norm(affine[:3, :3] - qform[:3, :3], axis=0) / sizes
    moved = np.linalg.norm(affine[:3, 3] - qform[:3, 3]) / sizes.min()
    if turned.max() > MAX_DISAGREEMENT or moved > 0.5:
      raise InputError(
        path,
        'its sform and its qform differ',
        'Find out which is right, and write the file again with it as both.',
      )


def _flip(flips: tuple[bool, ...]) -> tuple[slice, ...]:
  return tuple(slice(None, None, -1 if flip else 1) for flip in flips)


def _mm(sizes: np.ndarray) -> str:
  return ' x '.join(f'{size:.6g}' for size in sizes)


def _as_lists(value: Any) -> Any:
  return [_as_lists(v) for v in value] if isinstance(value, tuple) else value
