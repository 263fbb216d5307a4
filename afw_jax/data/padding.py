"""Padding of scans whose file does not name it, and CT numbers that no tissue has.

Interpolation and percentiles take padding for tissue: beside -32768 a cubic spline rings by hundreds of HU. Here it
becomes air, so that a scan gives the same result whatever it was padded with.
"""

from collections.abc import Iterable

import numpy as np

from afw_jax.data.sets.channels import Channel, stacked

AIR_HU = -1000
HU_RANGE = (-1024, 3071)  # of 12 bits
_BORDER = 0.2  # share of the border of a slice; noise that meets a limit of the data type stays far below it
_APART = 0.05  # share of the range; saturated tissue is not apart from the other values
_EQUAL = 0.5  # share of neighbours in tissue; noise of 5 HU leaves one of twenty equal
_SOLID = 0.8  # share of neighbours in padding


def without_padding_of(scan: np.ndarray, channels: Iterable[Channel]) -> np.ndarray:
  """`without_padding` of each channel of a scan.

  Args:
    scan: (D, H, W), or (D, H, W, channels).
    channels: from `channels.of`.
  """
  return stacked([without_padding(channel.voxels(scan), in_hu=channel.in_hu) for channel in channels])


def without_padding(scan: np.ndarray, *, in_hu: bool) -> np.ndarray:
  """The scan with air in place of padding; CT is also clipped to the range of 12-bit scanners.

  In CT, padding is what lies below -1024 HU, and a constant that reaches inwards from the border of a slice at the
  lowest or, from 3071 HU, at the highest value. It becomes -1000 HU. In MR, padding is the lowest value if it is the
  only negative one, or negative and along the border, and the highest if it lies along the border, apart from the
  others. It becomes the lowest of the other values, which percentiles leave out. In both, padding is also any other
  constant that reaches inwards from the border, such as 0 HU, if the rest of the scan has noise.

  Args:
    scan: (D, H, W) int16 or float32.
    in_hu: whether the intensities are HU.

  Returns:
    (D, H, W) int16 or float32; `scan` itself where nothing is to be done.
  """
  cleaned = _without_fill(scan, AIR_HU, np.inf) if in_hu else _without_fill(scan, scan.min(), scan.max())
  cleaned = _ct(cleaned) if in_hu else _mr(cleaned)
  if cleaned is scan or cleaned.dtype == np.int16:
    return cleaned
  limits = np.iinfo(np.int16)  # with padding of 65535 a scan of integers was read as float32
  fits = limits.min <= cleaned.min() and cleaned.max() <= limits.max and all(np.all(p == np.rint(p)) for p in cleaned)
  return cleaned.astype(np.int16) if fits else cleaned


def _ct(scan: np.ndarray) -> np.ndarray:
  lowest, highest = scan.min(), scan.max()
  low, high = HU_RANGE
  if lowest >= AIR_HU and highest < high:
    return scan
  cleaned = np.clip(scan, low, high)
  floor = lowest if lowest >= low else scan.min(where=scan >= low, initial=highest)
  for plane, out in zip(scan, cleaned):
    air = plane < low
    if highest >= high:
      air |= _from_border(plane == highest)
    if floor == low:  # noise meets the same limit: beside padding of any other value it is treated alike
      air |= _from_border(air | (plane == floor) | (plane == AIR_HU))
    elif floor < AIR_HU:
      air |= _from_border(plane == floor)
    out[air] = AIR_HU
  return cleaned


def _mr(scan: np.ndarray) -> np.ndarray:
  lowest, highest = scan.min(), scan.max()
  if lowest == highest:
    return scan
  cleaned, floor = scan, lowest
  if lowest < 0:
    above = scan.min(where=scan > lowest, initial=highest)
    if above >= 0 or _along_border(scan, lowest):
      cleaned, floor = np.where(scan == lowest, above, scan), above
  if floor < highest and _along_border(scan, highest):
    below = scan.max(where=scan < highest, initial=lowest)
    apart = highest - below > _APART * (highest - lowest) and _has_noise(scan, highest, lowest)
    if apart or below < highest / 2:
      floor = cleaned.min(where=scan < highest, initial=highest)
      cleaned = np.where(scan == highest, floor, cleaned)
  return cleaned


def _without_fill(scan: np.ndarray, air: float, below: float) -> np.ndarray:
  """The scan with air in place of a constant along the border that is above its lowest value and air, and `below`."""
  edges = np.concatenate([scan[:, 0], scan[:, -1], scan[:, :, 0], scan[:, :, -1]], 1)
  inner = edges[(edges > max(scan.min(), air)) & (edges < below)]
  if not inner.size:
    return scan
  values, counts = np.unique(inner, return_counts=True)
  fill = values[counts.argmax()]
  if np.mean(edges == fill, 1).max() < _BORDER or not _has_noise(scan, fill, air):
    return scan
  cleaned = scan.copy()
  for plane, out in zip(scan, cleaned):
    out[_from_border(plane == fill)] = air
  return cleaned


def _has_noise(scan: np.ndarray, fill: float, air: float) -> bool:
  """Whether neighbours differ in what is neither padding nor air, and not in the padding.

  In drawn scans a constant may be tissue, and among tissue of little noise one value is the most frequent.
  """
  tissue = tissue_alike = padding = padding_alike = 0
  for plane in scan:
    left, alike = plane[:, :-1], plane[:, :-1] == plane[:, 1:]
    filled = left == fill
    inside = ~filled & (left > air)
    tissue += np.count_nonzero(inside)
    tissue_alike += np.count_nonzero(inside & alike)
    padding += np.count_nonzero(filled)
    padding_alike += np.count_nonzero(filled & alike)
  return tissue_alike < _EQUAL * tissue and padding_alike > _SOLID * padding


def _along_border(scan: np.ndarray, value: float) -> bool:
  return any(_from_border(plane == value).any() for plane in scan)


def _from_border(mask: np.ndarray) -> np.ndarray:
  """The pixels that a straight line within the mask joins to the border; none where little of the border is in it."""
  border = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
  if sum(map(np.count_nonzero, border)) < _BORDER * sum(map(len, border)):
    return np.zeros_like(mask)
  runs = np.logical_and.accumulate
  down, up = runs(mask, 0), runs(mask[::-1], 0)[::-1]
  right, left = runs(mask, 1), runs(mask[:, ::-1], 1)[:, ::-1]
  return down | up | right | left
