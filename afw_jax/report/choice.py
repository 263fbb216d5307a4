"""Which scans and which slice a figure shows: rules, so that nobody chooses by eye."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

_PLACES = {'lowest': 0.0, 'median': 0.5, 'highest': 1.0}
_MARGIN_MM = 12.0
ALL = tuple(_PLACES)


def choose_scans(dsc: Mapping[str, float], standings: Sequence[str] = ALL) -> dict[str, str]:
  """Scans by their place in the ranking of one run; of two scans in the middle the lower one.

  Args:
    dsc: scan -> its mean DSC; nan where it has none, which is chosen only if all are nan.
    standings: of 'lowest', 'median' and 'highest'.

  Returns:
    Scan -> its standing, in the order of `standings`; fewer where there are fewer scans.
  """
  known = [scan for scan in dsc if not math.isnan(dsc[scan])] or list(dsc)
  ranked = sorted(known, key=lambda scan: (0.0 if math.isnan(dsc[scan]) else dsc[scan], scan))
  if len(ranked) == 1:
    return {ranked[0]: 'only scan'}
  ends = [standing for standing in standings if standing != 'median']  # of two scans none is in the middle
  chosen = {}
  for standing in standings if len(ranked) > 2 or not ends else ends:
    chosen[ranked[math.floor(_PLACES[standing] * (len(ranked) - 1))]] = standing
  return chosen


def choose_slice(truth: np.ndarray) -> int:
  """The slice with the most organs; of those the one with the largest labelled area, then the lowest.

  Args:
    truth: (D, H, W) classes; without any organ, the middle slice is chosen.
  """
  organs = np.array([np.count_nonzero(np.unique(part)) for part in truth])
  if not organs.any():
    return len(truth) // 2
  area = np.count_nonzero(truth, axis=(1, 2))
  return max(range(len(truth)), key=lambda z: (organs[z], area[z], -z))


def crops(
  slices: Sequence[Iterable[np.ndarray]], spacings_mm: Sequence[tuple[float, float]]
) -> list[tuple[float, float, float, float]]:
  """The part of each row that is shown: around the organs of all of its label maps, of one size in mm for all rows.

  Args:
    slices: for each row, the label maps (H, W) of its slice: truth and predictions, so that no mistake is cut off.
    spacings_mm: (y, x) pixel size of each row.

  Returns:
    (top, bottom, left, right) of each row, in pixels from the centre of the first one; it may reach beyond the slice.
  """
  boxes = [_box(maps, spacing) for maps, spacing in zip(slices, spacings_mm)]
  half = np.max([high - low for low, high in boxes], axis=0) / 2 + _MARGIN_MM
  made = []
  for (low, high), spacing in zip(boxes, spacings_mm):
    centre = (low + high) / 2
    (top, left), (bottom, right) = ((centre + sign * half) / spacing for sign in (-1, 1))
    made.append((float(top), float(bottom), float(left), float(right)))
  return made


def _box(maps: Iterable[np.ndarray], spacing_mm: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
  """(lowest, highest) (y, x) edge in mm of what is labelled in any of some maps; of all where nothing is."""
  labelled = np.any([np.asarray(one) > 0 for one in maps], axis=0)
  places = np.argwhere(labelled if labelled.any() else ~labelled)
  return (places.min(0) - 0.5) * spacing_mm, (places.max(0) + 0.5) * spacing_mm
