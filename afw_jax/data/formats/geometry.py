"""Where the voxels of a file lie in the patient, and the one internal orientation (z, y, x) = (Superior, Posterior, Left)."""

import dataclasses
import itertools
import os
from pathlib import Path
from typing import Any, Self

import numpy as np

from afw_jax.errors import InputError

MAX_DIM = 4096  # voxels along one axis
MAX_VOXELS = 2**30
SPACING_RANGE_MM = (0.01, 100.0)
MAX_SHEAR = 1e-3  # largest cosine between two axes that should be perpendicular
MAX_DISAGREEMENT = 0.01  # relative, between the pixdim, qform and sform of one header
SAME_AFFINE_MM = 1e-3  # between scan and label
# unit vectors (RAS) of the internal z, y and x axes
_INTERNAL_AXES = np.array([(0, 0, 1), (0, -1, 0), (-1, 0, 0)], np.float64)


@dataclasses.dataclass(frozen=True)
class Geometry:
  """The grid of a source file: enough to put an array on the internal orientation and to write it back faithfully.

  Args:
    shape: native array shape (i, j, k), in voxels.
    affine: 4x4, native voxel index (i, j, k, 1) -> RAS mm.
    sform_code: NIfTI code of the sform; 0 where only the qform was set.
    qform_code: NIfTI code of the qform; 0 where only the sform was set.
    xyzt_units: NIfTI units byte (2 = mm).
    qform: (qfac, pixdim 1..3, quatern b c d, qoffset x y z) as the source header has them; None = from the affine.
    has_mm: False where the source carries no spacing (TransUNet's files): 'mm' then means voxels.
    slice_files: names of the files of slices k = 0, 1, ... where each slice is a file (DICOM), else empty.
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
    """Plain dict of numbers, strings and lists; `from_json` gives an equal Geometry back."""
    return {k: _as_lists(v) for k, v in dataclasses.asdict(self).items()}

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> Self:
    """The Geometry that `to_json` wrote."""
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
    """4x4 float64: internal voxel index (z, y, x, 1) -> RAS mm."""
    affine, (axes, flips) = np.array(self.affine), self._axes()
    native = np.zeros((4, 4))  # internal index -> native index
    native[3, 3] = 1
    for n, (axis, flip) in enumerate(zip(axes, flips)):
      native[axis, n] = -1 if flip else 1
      native[axis, 3] = self.shape[axis] - 1 if flip else 0
    return affine @ native

  def to_internal(self, array: np.ndarray) -> np.ndarray:
    """View of a native (i, j, k, ...) array as (D, H, W, ...): transposed and flipped, never resampled."""
    axes, flips = self._axes()
    rest = range(3, array.ndim)
    return array.transpose(*axes, *rest)[_flip(flips)]

  def to_native(self, array: np.ndarray) -> np.ndarray:
    """View of an internal (D, H, W, ...) array as native (i, j, k, ...): the exact inverse of `to_internal`."""
    axes, flips = self._axes()
    rest = range(3, array.ndim)
    return array[_flip(flips)].transpose(*np.argsort(axes), *rest)

  def _axes(self) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """For internal z, y, x: the native axis nearest to it, and whether it runs the other way."""
    columns = np.array(self.affine)[:3, :3]
    cosines = _INTERNAL_AXES @ (columns / np.linalg.norm(columns, axis=0))
    axes = max(itertools.permutations(range(3)), key=lambda p: sum(abs(cosines[n, p[n]]) for n in range(3)))
    return axes, tuple(bool(cosines[n, axes[n]] < 0) for n in range(3))


def check_shape(path: object, shape: tuple[int, ...]) -> None:
  """Raises InputError unless `shape` is three sizes, each within [1, 4096], with at most 2^30 voxels in all."""
  if len(shape) != 3 or not all(1 <= n <= MAX_DIM for n in shape) or np.prod(shape, dtype=object) > MAX_VOXELS:
    raise InputError(
      path,
      f'its size {tuple(shape)} is not that of one 3D volume (1 to {MAX_DIM} voxels per axis, {MAX_VOXELS} in all)',
      'Give one 3D scan per file; crop or resample a larger one.',
    )


def check_memory(path: object, n_bytes: int) -> None:
  """Raises InputError where reading a file would take more memory than the machine can give now."""
  free = _available_bytes()
  if n_bytes > free:
    raise InputError(
      path,
      f'reading it takes {n_bytes / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free',
      'Crop or resample the scan, close other programs, or use a machine with more memory.',
    )


def check_affine(path: object, affine: np.ndarray) -> None:
  """Raises InputError unless a 4x4 voxel -> mm matrix is finite, invertible, free of shear and of a sane voxel size."""
  cure = 'Write the file again with its true geometry (export it anew from the original scan).'
  if not np.all(np.isfinite(affine)):
    raise InputError(path, 'its affine has NaN or infinite entries', cure)
  sizes = np.linalg.norm(affine[:3, :3], axis=0)
  if not sizes.all() or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-6:
    raise InputError(path, 'its affine is singular (an axis has no extent or no direction of its own)', cure)
  low, high = SPACING_RANGE_MM
  if sizes.min() < low or sizes.max() > high:
    raise InputError(path, f'its voxel size {_mm(sizes)} mm is outside {low} to {high} mm', cure)
  directions = affine[:3, :3] / sizes
  shear = np.abs(directions.T @ directions - np.eye(3)).max()
  if shear > MAX_SHEAR:
    raise InputError(
      path,
      f'its axes are sheared: they are {np.degrees(np.arcsin(min(1.0, shear))):.2f} degrees away from perpendicular',
      'Resample it to a grid with perpendicular axes first (for a tilted gantry: dcm2niix writes such a file).',
    )


def check_agreement(path: object, affine: np.ndarray, pixdim: np.ndarray, qform: np.ndarray | None) -> None:
  """Raises InputError where a NIfTI header gives two different voxel sizes, or two different places (sform, qform)."""
  sizes = np.linalg.norm(affine[:3, :3], axis=0)
  if np.abs(pixdim / sizes - 1).max() > MAX_DISAGREEMENT:
    raise InputError(
      path,
      f'its voxel size is {pixdim.round(4).tolist()} mm by pixdim, but {sizes.round(4).tolist()} mm by its affine',
      'Find out which is true and write the file again with that one.',
    )
  if qform is not None:
    turned = np.linalg.norm(affine[:3, :3] - qform[:3, :3], axis=0) / sizes
    moved = np.linalg.norm(affine[:3, 3] - qform[:3, 3]) / sizes.min()
    if turned.max() > MAX_DISAGREEMENT or moved > 0.5:
      raise InputError(
        path,
        'its sform and its qform place it differently',
        'Find out which is true and write the file again with both equal.',
      )


def _available_bytes() -> int:
  free = [os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')]
  meminfo, cgroup = Path('/proc/meminfo'), Path('/sys/fs/cgroup/memory.max')  # Linux; a container's own limit
  if meminfo.exists():
    free += [
      int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if line.startswith('MemAvailable')
    ]
  if cgroup.exists() and (limit := cgroup.read_text().strip()).isdigit():
    free.append(int(limit))
  return min(free)


def _flip(flips: tuple[bool, ...]) -> tuple[slice, ...]:
  return tuple(slice(None, None, -1 if flip else 1) for flip in flips)


def _mm(sizes: np.ndarray) -> str:
  return ' x '.join(f'{size:.6g}' for size in sizes)


def _as_lists(value: Any) -> Any:
  return [_as_lists(v) for v in value] if isinstance(value, tuple) else value
