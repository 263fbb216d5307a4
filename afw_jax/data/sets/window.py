"""Intensity windows: the range (low, high) that is mapped to [0, 1] before the network."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from afw_jax.errors import InputError, did_you_mean

NAMED_HU = {'paper': (50.0, 350.0), 'transunet': (-125.0, 275.0)}
PERCENTILES = (0.5, 99.5)

Window = tuple[float, float] | Literal['percentile']
Windows = Window | tuple[Window, ...]  # of several channels one for each


def is_of_channels(window: Any) -> bool:
  """Whether a window, as an option or as resolved, is one for each of several channels."""
  return isinstance(window, Sequence) and not isinstance(window, str) and any(_is_window(part) for part in window)


def _is_window(part: Any) -> bool:
  return part is None or isinstance(part, str | Sequence)


def plain(window: Sequence) -> tuple:
  """(low, high), or one for each channel, as tuples of floats."""
  return tuple(plain(part) if isinstance(part, Sequence) else float(part) for part in window)


def resolve_windows(
  window: Any,
  default: Sequence[float] | None,
  *,
  in_hu: bool,
  dataset: str,
  channels: Sequence[Sequence[str]] = (),
) -> Windows:
  """The intensity windows of a run, one for each channel where there are several.

  Args:
    window: as in `resolve_window`, which is then that of the channels in HU, while the others have their percentiles;
      or one for each channel.
    default: of the data set, see `DatasetSpec.window_hu`.
    in_hu: whether the intensities of the data set, or of one of the channels, are HU.
    dataset: its name, for errors.
    channels: (name, modality) of each where there are several.

  Raises:
    InputError: as `resolve_window`; or another number of windows than of channels.
  """
  own = is_of_channels(window)
  if own and len(window) != (len(channels) or 1):
    cure = 'Give one window for the channels of CT, or one for each channel with ";" between them'
    raise InputError('data.window', f'has {len(window)} windows, and {dataset} {len(channels) or 1} channel(s)', cure)
  if not channels:
    return resolve_window(window[0] if own else window, default, in_hu=in_hu, dataset=dataset)
  hu = [kind == 'CT' for _, kind in channels]
  if not own and not in_hu and window not in (None, 'percentile'):
    cure = 'Give one for each channel with ";" between them, or leave it empty: percentiles of each scan'
    raise InputError(f'window {window!r}', f'is that of CT, and no channel of {dataset} is CT', cure)
  wanted = window if own else [window if is_hu else None for is_hu in hu]
  return tuple(
    resolve_window(one, default if is_hu else None, in_hu=is_hu, dataset=f'channel {i} of {dataset}')
    for i, (one, is_hu) in enumerate(zip(wanted, hu))
  )


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


def scan_window(scan: np.ndarray, window: Sequence | str) -> tuple:
  """(low, high) for one scan, or one for each of its channels.

  Args:
    scan: intensities, any shape; several channels are the last axis.
    window: from `resolve_windows`, or its JSON.
  """
  if is_of_channels(window):
    return tuple(scan_window(scan[..., i], one) for i, one in enumerate(window))
  return percentile_window(scan) if window == 'percentile' else plain(window)


def recorded_window(percentiles: Sequence, window: Sequence | str) -> tuple:
  """As `scan_window`, of a scan whose `percentile_window` (or one for each channel) is known."""
  if is_of_channels(window):
    return tuple(recorded_window(known, one) for known, one in zip(percentiles, window, strict=True))
  return plain(percentiles) if window == 'percentile' else plain(window)
