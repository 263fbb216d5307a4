"""Brings a scan to the working grid of a store or of a trained network."""

from collections.abc import Mapping

import numpy as np

from afw_jax.data import field_of_view, resample, store
from afw_jax.data.formats.volume import Volume
from afw_jax.data.sets import channels, intensities
from afw_jax.errors import InputError


def central_grid(scan: Volume, options: Mapping) -> resample.Resampling:
  """The resampling of a scan to the working grid around its middle.

  Args:
    scan: from `volumes.read_image`.
    options: 'size', 'spacing_mm' and 'fit', as in the index of a store and in checkpoints.

  Raises:
    InputError: the scan has no voxel size in mm, and would be cropped at a spacing.
  """
  spacing = options['spacing_mm']
  if not scan.geometry.has_mm:
    if options['fit'] == 'crop_pad':
      raise InputError(scan.source, 'has no voxel size in mm, so it cannot be cropped at a spacing', "Use fit='resize'")
    spacing = (None, None, None)
  return resample.make_resampling(
    scan.array.shape[:3], scan.spacing_mm, size=options['size'], spacing=spacing, fit=options['fit']
  )


def find_body(scan: Volume, centre: resample.Resampling, options: Mapping) -> list[list[float]] | None:
  """`field_of_view.find_body` in a scan, whose channels the options say; None if nothing of the scan is cut."""
  if not any(field_of_view.is_cut(centre)):
    return None
  channel = channels.measured(options)
  array = channel.voxels(scan.array)
  return field_of_view.find_body(array, intensities.body_threshold(array, channel.in_hu), centre)


def resampled(array: np.ndarray, grid: resample.Resampling, options: Mapping) -> np.ndarray:
  """The intensities of a scan on a grid, each channel by itself; padding is its lowest value."""
  return channels.each(lambda one: resample.to_working(np.ascontiguousarray(one), grid, options['order']), array)


def to_working_grid(
  scan: Volume, options: Mapping, usual: field_of_view.Usual | None = None
) -> tuple[resample.Resampling, np.ndarray]:
  """Resamples a scan to the grid on which it is predicted.

  Args:
    scan: from `volumes.read_image`.
    options: 'size', 'spacing_mm', 'fit', 'order', 'modality', 'source' and 'channels' (where there are several), as in
      the index of a store and in checkpoints.
    usual: how far bodies reach beyond the grid in training; see `field_of_view.placed`.

  Returns:
    (`Resampling` of the scan, (d, h, w) or (d, h, w, channels) image on the working grid, which is larger than
    'size' where the body is).

  Raises:
    InputError: the scan has no voxel size in mm, and would be cropped at a spacing.
  """
  centre = central_grid(scan, options)
  grid = field_of_view.placed(centre, find_body(scan, centre, options), usual)
  return grid, resampled(scan.array, grid, options)


def prepared_case(case: store.Case, usual: field_of_view.Usual | None = None) -> tuple[resample.Resampling, np.ndarray]:
  """The image of a prepared case on the grid on which it is predicted, as `to_working_grid` makes it from its scan.

  Args:
    case: from `store.read_case`.
    usual: as in `to_working_grid`.

  Returns:
    (`Resampling`, (d, h, w) or (d, h, w, channels) image), a view of the memory map.
  """
  grid = resample.Resampling.from_json(case.meta['resampling'])
  if 'whole' not in case.arrays:
    return grid, case.arrays['image']
  whole = resample.Resampling.from_json(case.meta['whole'])
  placed = field_of_view.placed(field_of_view.centre_of(grid), case.meta['body'], usual)
  return placed, field_of_view.crop(case.arrays['whole'], whole, placed)
