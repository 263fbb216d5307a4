"""Distances between the surfaces of two masks: exact, on crops, a k-d tree where surfaces are small against the crop."""

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects
from scipy.spatial import cKDTree

# One query of the tree costs about as much as 20 voxels of a distance transform (far or noisy surfaces cost more).
_VOXELS_PER_QUERY = 20


def c_ordered(array: np.ndarray) -> np.ndarray:
  """The array, or where it is a transposed or big-endian view (as scans are read) a C-ordered native copy of it."""
  if array.flags.c_contiguous and array.dtype.isnative:
    return array
  out = np.empty(array.shape, array.dtype.newbyteorder('='))
  for row in range(array.shape[-2]):  # row by row stays in the cache: four times as fast as one copy
    out[..., row, :] = array[..., row, :]
  return out


def union_boxes(pred: np.ndarray, true: np.ndarray, ids: list[int]) -> dict[int, tuple[slice, ...] | None]:
  """Bounding box of each id in either array.

  Args:
    pred, true: integer arrays of one shape.
    ids: the ids to look for, none negative.

  Returns:
    id -> slices of the smallest box that holds it in both arrays, or None where it is in neither.
  """
  found = [find_objects(array, max_label=max(max(ids), 1)) for array in (pred, true)]
  boxes = {}
  for i in ids:
    if i == 0:  # find_objects knows no background
      boxes[i] = tuple(slice(0, n) for n in pred.shape)
      continue
    both = [f[i - 1] for f in found if f[i - 1] is not None]
    boxes[i] = tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*both)) or None
  return boxes


def border(mask: np.ndarray) -> np.ndarray:
  """Voxels of a mask with a face neighbour outside it; what lies beyond the array counts as outside.

  This is `mask ^ binary_erosion(mask)` (6-connected, border value 0), which medpy and MONAI both take as the surface.

  Args:
    mask: bool, any number of axes.

  Returns:
    bool, the same shape.
  """
  padded = np.pad(mask, 1)
  centre = (slice(1, -1),) * mask.ndim
  inside = np.ones_like(mask)
  for axis in range(mask.ndim):
    for shifted in (slice(None, -2), slice(2, None)):
      inside &= padded[centre[:axis] + (shifted,) + centre[axis + 1 :]]
  return mask & ~inside


def surface_distances(pred: np.ndarray, true: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
  """Distance of every surface voxel of each mask to the nearest surface voxel of the other.

  Args:
    pred, true: bool masks of one shape, neither empty; a crop that holds both gives the same numbers as the whole volume.
    spacing: voxel size along each axis.

  Returns:
    (pred to true, true to pred), float64, in the unit of `spacing`, in no particular order.
  """
  a, b = border(pred), border(true)
  shared = np.zeros(np.count_nonzero(a & b))  # a surface voxel of both masks is 0 from the other surface
  return (
    np.concatenate([shared, _nearest(a & ~b, b, spacing)]),
    np.concatenate([shared, _nearest(b & ~a, a, spacing)]),
  )


def _nearest(queries: np.ndarray, targets: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
  """Distance of each voxel of one mask to the nearest voxel of the other, from whole-number offsets (no cancellation)."""
  points = _coordinates(queries)
  if points.shape[1] * _VOXELS_PER_QUERY > queries.size:
    nearest = distance_transform_edt(~targets, sampling=spacing, return_distances=False, return_indices=True)[
      :, queries
    ]
  else:
    candidates = _coordinates(targets)
    scale = np.asarray(spacing)[:, None]
    # A sliding-midpoint tree with wide leaves: quicker to build and, far from the surface, several times quicker to ask.
    tree = cKDTree((candidates * scale).T, leafsize=32, balanced_tree=False, compact_nodes=False)
    nearest = candidates[:, tree.query((points * scale).T)[1]]
  squares = np.zeros(points.shape[1])
  for offset, size in zip(points - nearest, spacing):
    squares += (offset * size) ** 2
  return np.sqrt(squares)


def _coordinates(mask: np.ndarray) -> np.ndarray:
  return np.stack(np.unravel_index(np.flatnonzero(mask), mask.shape))
