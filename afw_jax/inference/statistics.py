"""Statistics of the organs of a label map: volume, intensities, place, and whether it is whole."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from scipy import ndimage

from afw_jax.data.formats.geometry import Geometry
from afw_jax.errors import InputError

_AXES = ('i', 'j', 'k')
_COLUMNS = (
  *('mean', 'sd', 'x_mm', 'y_mm', 'z_mm'),
  *(f'{axis}_{end}' for axis in _AXES for end in ('first', 'last')),
  *('touches_border', 'components'),
)


@dataclasses.dataclass(frozen=True)
class OrganStatistics:
  """What a label map and its scan say about one organ; None where there is no voxel to say it of.

  Attributes:
    voxels: how many the organ has.
    volume_ml: of these.
    mean, sd: of the intensities of its voxels (standard deviation of the population); voxels whose intensity is NaN or
      infinite are left out.
    box: (first, last) voxel of the organ along each axis of the file of the scan (i, j, k), both within it, from 0. The
      k-th slice of a DICOM series is counted along the normal of its slices, i along a row, j down a column.
    centroid_ras_mm: mean position of its voxels in patient coordinates, in mm towards right, anterior and superior, as
      NIfTI has them; for DICOM's LPS the first two change their sign. None where the file has no voxel size in mm.
    touches_border: whether a voxel lies at the border of the scan, so that the organ may go on outside; all organs do
      where the scan is one slice.
    components: connected parts; voxels that share a corner are connected.
    second_share: of its voxels that are in the second largest of these; 0 where there is one.
  """

  voxels: int = 0
  volume_ml: float = 0.0
  mean: float | None = None
  sd: float | None = None
  box: tuple[tuple[int, int], ...] | None = None
  centroid_ras_mm: tuple[float, float, float] | None = None
  touches_border: bool = False
  components: int = 0
  second_share: float = 0.0

  def to_json(self) -> dict:
    """The statistics for a table, rounded to thousandths; intensities below 0.1 to three digits."""
    fields = {**dataclasses.asdict(self), 'box': self.box and [list(ends) for ends in self.box]}
    # Scans that are not CT may have intensities of any size.
    small = {name: float(f'{v:.3g}') for name in ('mean', 'sd') if (v := fields[name]) is not None and abs(v) < 0.1}
    return {name: _rounded(value) for name, value in fields.items()} | small


def of_organs(
  labels: np.ndarray, scan: np.ndarray, geometry: Geometry, organs: Sequence[str]
) -> dict[str, OrganStatistics]:
  """The statistics of every organ of a label map.

  Args:
    labels: (D, H, W) integer class ids in the internal orientation; 1, 2, ... are the organs.
    scan: (D, H, W) intensities, any real type; HU in CT.
    geometry: their voxel grid.
    organs: names of the classes 1, 2, ...

  Returns:
    Organ -> its statistics, in the order of `organs`; of an organ without a voxel too.

  Raises:
    InputError: the shapes are not that of the grid.
  """
  if not labels.shape == scan.shape == geometry.internal_shape:
    what = f'{labels.shape} and scan {scan.shape} are not on the grid {geometry.internal_shape}'
    raise InputError('label map', what, 'Give the label map and the scan of this grid.')
  native, values = geometry.to_native(labels), geometry.to_native(scan)
  boxes = ndimage.find_objects(native, max_label=len(organs))
  return {
    organ: _of_one(native[box] == c, values[box], box, geometry) if box else OrganStatistics()
    for c, (organ, box) in enumerate(zip(organs, boxes, strict=True), 1)
  }


def _of_one(inside: np.ndarray, values: np.ndarray, box: tuple[slice, ...], geometry: Geometry) -> OrganStatistics:
  """The statistics of an organ: where in its box it is, the intensities in the box, and the box in the scan."""
  voxels = int(np.count_nonzero(inside))
  planes = [np.count_nonzero(inside, axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
  index = [part.start + float(np.arange(len(count)) @ count) / voxels for part, count in zip(box, planes)]
  measured = values[inside].astype(np.float64)
  measured = measured[np.isfinite(measured)]
  parts, components = cast(tuple[np.ndarray, int], ndimage.label(inside, structure=np.ones((3, 3, 3))))
  second = int(np.sort(np.bincount(parts[inside]))[-2]) if components > 1 else 0
  x, y, z, _ = np.array(geometry.affine) @ [*index, 1]
  return OrganStatistics(
    voxels=voxels,
    volume_ml=voxels * float(np.prod(geometry.spacing_mm)) / 1000,
    mean=float(measured.mean()) if measured.size else None,
    sd=float(measured.std()) if measured.size else None,
    box=tuple((part.start, part.stop - 1) for part in box),
    centroid_ras_mm=(float(x), float(y), float(z)) if geometry.has_mm else None,
    touches_border=any(part.start == 0 or part.stop == n for part, n in zip(box, geometry.shape)),
    components=int(components),
    second_share=second / voxels,
  )


def columns(organ: str) -> list[str]:
  """The columns of an organ in a table of statistics; its volume has one of its own."""
  return [f'{organ}_{column}' for column in _COLUMNS]


def is_column(name: str) -> bool:
  """Whether a column of a table is one of an organ's statistics."""
  return name.endswith(tuple(f'_{column}' for column in _COLUMNS))


def cells(statistics: Mapping | None) -> list:
  """The values of the columns of an organ, of its statistics as JSON; '' where there is none."""
  if not statistics:
    return [''] * len(_COLUMNS)
  centroid = statistics['centroid_ras_mm'] or [None] * 3
  ends = [end for pair in statistics['box'] or [[None] * 2] * 3 for end in pair]
  values = [statistics['mean'], statistics['sd'], *centroid, *ends]
  return ['' if v is None else v for v in values] + [int(statistics['touches_border']), statistics['components']]


def _rounded(value):
  if isinstance(value, float):
    return round(value, 3)
  return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value
