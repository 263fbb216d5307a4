"""Intensity windows: the range (low, high) that is mapped to [0, 1] before the network."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from afw_jax.errors import InputError, did_you_mean

NAMED_HU = {'paper': (50.0, 350.0), 'transunet': (-125.0, 275.0)}
PERCENTILES = (0.5, 99.5)

Window = tuple[float, float] | Literal['percentile']


def resolve_window(
  window: str | Sequence[float] | None, default: Sequence[float] | None, *, in_hu: bool, dataset: str
) -> Window:
  """The intensity window of a run.

  Args:
    window: None or '' (the default of the data set), 'paper' (50 to 350 HU), 'transunet' (-125 to 275 HU),
      'percentile' (of each scan), or (low, high).
    default: (low, high) of the data set; None: percentiles of each scan.
    in_hu: whether the intensities of the data set are HU.
    dataset: its name, for errors.

  Returns:
    (low, high), or 'percentile'.

  Raises:
    InputError: unknown name, not low < high, or a window in HU for other intensities.
  """
  if window is None:
    return 'percentile' if default is None else (float(default[0]), float(default[1]))
  if isinstance(window, str):
    if window == 'percentile':
      return window
    if window not in NAMED_HU:
      hint = did_you_mean(window, (*NAMED_HU, 'percentile'))
      raise InputError(
        f'window {window!r}',
        'is not known',
        f'{hint}Use one of {", ".join(NAMED_HU)}, percentile, or two numbers (low, high)',
      )
    if not in_hu:
      raise InputError(
        f'window {window!r}',
        f'is in HU, but the intensities of {dataset} are not',
        'Leave the window empty to use the default of the data set',
      )
    return NAMED_HU[window]
  low_high = tuple(float(v) for v in window)
  if len(low_high) != 2 or not all(map(math.isfinite, low_high)) or low_high[0] >= low_high[1]:
    raise InputError(f'window {window!r}', 'is not (low, high)', 'Give two numbers with low < high')
  return low_high


def percentile_window(scan: np.ndarray) -> tuple[float, float]:
  """The intensity window of a scan from its percentiles.

  The low end is the 0.5th percentile of the voxels above the minimum of the scan (a background filled with one value
  does not count). The high end is the 99.5th percentile of the voxels above the mean of those, which are the body: the
  percentile of all voxels would depend on the amount of air around the patient.

  Args:
    scan: intensities, any shape.

  Returns:
    (low, high) with low < high.
  """
  low, high = (_of_integers if scan.dtype == np.int16 else _of_numbers)(scan)
  return low, high if high > low else low + 1.0


def _of_numbers(scan):
  inside = scan[scan > scan.min()]
  if not inside.size:
    return float(scan.min()), float(scan.min())
  low = np.percentile(inside, PERCENTILES[0])
  upper = inside[inside >= min(inside.mean(), inside.max())]  # the mean of equal numbers is rounded
  return float(low), float(np.percentile(upper, PERCENTILES[1]))


def _of_integers(scan):
  """As `_of_numbers`, from a histogram: one pass instead of sorting, which takes longer than reading the scan."""
  offset = np.iinfo(np.int16).min
  planes = scan.reshape(-1, scan.shape[-1] if scan.ndim else 1)
  step = max(1, (1 << 22) // planes.shape[1])  # bincount makes int64 of what it counts
  counts = sum(
    np.bincount(planes[i : i + step].ravel().astype(np.int64) - offset, minlength=1 << 16)
    for i in range(0, len(planes), step)
  )
  values = np.flatnonzero(counts)
  counts, values = counts[values], values + offset
  if len(values) == 1:
    return float(values[0]), float(values[0])
  values, counts = values[1:], counts[1:]
  mean = int(values @ counts) / int(counts.sum())
  body = values >= mean
  return _percentile(values, counts, PERCENTILES[0]), _percentile(values[body], counts[body], PERCENTILES[1])


def _percentile(values, counts, percent):
  """`np.percentile` of a histogram, interpolated linearly."""
  ends = np.cumsum(counts)
  at = (int(ends[-1]) - 1) * (percent / 100)
  below = math.floor(at)
  ranks = (below, min(below + 1, int(ends[-1]) - 1))
  low, high = (float(v) for v in values[np.searchsorted(ends, ranks, side='right')])
  t = at - below
  return low + (high - low) * t if t < 0.5 else high - (high - low) * (1 - t)


def scan_window(scan: np.ndarray, window: Sequence[float] | str) -> tuple[float, float]:
  """(low, high) for one scan.

  Args:
    scan: intensities, any shape.
    window: from `resolve_window`, or its JSON.
  """
  return percentile_window(scan) if window == 'percentile' else (float(window[0]), float(window[1]))
