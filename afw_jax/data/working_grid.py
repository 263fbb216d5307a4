"""Brings a scan to the working grid of a store or of a trained network."""

from collections.abc import Mapping

import numpy as np

from afw_jax.data import resample
from afw_jax.data.formats.volumes import Volume
from afw_jax.errors import InputError


def to_working_grid(scan: Volume, options: Mapping) -> tuple[resample.Resampling, np.ndarray]:
  """Resamples a scan, for preparation and for prediction alike.

  Args:
    scan: from `volumes.read_image`.
    options: 'size', 'spacing_mm', 'fit' and 'order', as in the index of a store and in checkpoints.

  Returns:
    (`Resampling` of the scan, (d, h, w) image on the working grid).

  Raises:
    InputError: the scan has no voxel size in mm, and would be cropped at a spacing.
  """
  spacing = options['spacing_mm']
  if not scan.geometry.has_mm:
    if options['fit'] == 'crop_pad':
      raise InputError(scan.source, 'has no voxel size in mm, so it cannot be cropped at a spacing', "Use fit='resize'")
    spacing = (None, None, None)
  image = np.ascontiguousarray(scan.array)
  resampling = resample.make_resampling(
    image.shape, scan.spacing_mm, size=options['size'], spacing=spacing, fit=options['fit']
  )
  return resampling, resample.to_working(image, resampling, options['order'])
