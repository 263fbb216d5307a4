"""Joins the channels of a scan, each read from a file of its own, into one volume."""

import hashlib
from collections.abc import Sequence

import numpy as np

from afw_jax.data.formats.geometry import MAX_DISPLACEMENT, displacement
from afw_jax.data.formats.volume import Volume
from afw_jax.errors import InputError


def joined(scans: Sequence[Volume]) -> Volume:
  """One volume of several channels.

  Args:
    scans: one for each channel, in their order, (D, H, W).

  Returns:
    The scan itself where there is one; else (D, H, W, channels) on the grid of the first, int16 if all are, else
    float32. Its digest is one of the digests of the channels.

  Raises:
    InputError: a channel is not on the grid of the first one.
  """
  first, *others = scans
  if not others:
    return first
  for number, scan in enumerate(others, 1):
    _check_grid(first, scan, number)
  array = np.empty((*first.array.shape, len(scans)), np.result_type(*(scan.array for scan in scans)))
  for i, scan in enumerate(scans):
    array[..., i] = scan.array
  notes = [f'channel {i}: {scan.resampled}' for i, scan in enumerate(scans) if scan.resampled]
  return Volume(array, first.geometry, first.source, digest(scan.sha256 for scan in scans), '; '.join(notes))


def digest(of_channels) -> str:
  """The digest of a scan from those of its channels, which is that of its file where there is one."""
  digests = list(of_channels)
  return digests[0] if len(digests) == 1 else hashlib.sha256(' '.join(digests).encode()).hexdigest()


def _check_grid(first: Volume, scan: Volume, number: int) -> None:
  cure = 'Resample this channel to the grid of the first one (channel 0).'
  if scan.array.shape != first.array.shape:
    what = f'channel {number}: its shape {scan.array.shape} (z, y, x) differs from that of channel 0 {first.source}, '
    raise InputError(scan.source, what + f'{first.array.shape}', cure)
  voxels, mm = displacement(first.geometry, scan.geometry)
  if not voxels <= MAX_DISPLACEMENT:
    what = f'channel {number}: by its affine a corner lies {voxels:.2g} voxels ({mm:.3g} mm) from that of channel 0 '
    raise InputError(scan.source, what + first.source, cure)
