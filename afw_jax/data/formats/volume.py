"""A scan or a label map in memory: its array in the internal orientation, and the grid of its file."""

import dataclasses

import numpy as np

from afw_jax.data.formats.geometry import Geometry


@dataclasses.dataclass(frozen=True)
class Volume:
  """A scan or a label map in the internal orientation.

  Attributes:
    array: (D, H, W); a scan as int16 (HU) or float32, a label map as uint8 or uint16. Of a scan of several channels
      (D, H, W, channels).
    geometry: voxel grid of the source file.
    source: path of the source.
    sha256: of the source file; for a folder, of its files in slice order.
    resampled: how it was interpolated to an even grid, in words; '' where its voxels are those of the file.
  """

  array: np.ndarray
  geometry: Geometry
  source: str
  sha256: str
  resampled: str = ''

  @property
  def spacing_mm(self) -> tuple[float, float, float]:
    """Voxel size (z, y, x) in mm."""
    return self.geometry.spacing_mm
