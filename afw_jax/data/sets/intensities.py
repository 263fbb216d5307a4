"""Statistics of the intensities of a scan, and notes on scans that do not look like those a network is trained on.

The same rules serve preparation, evaluation and prediction. A note is a warning: it stops nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from afw_jax.data.sets.channels import Channel, joined
from afw_jax.data.sets.spec import holds_hu
from afw_jax.data.sets.window import percentile_window

BODY_HU = -200.0  # fat and everything denser; air and lung lie below
DENSE_HU = 500.0  # cortical bone and metal
AIR_HU = -500.0
PERCENTILES = (25, 50, 75, 95)  # of the body; metal and the brightest contrast medium lie above the last one
_NAMES = ('lower quartile', 'median', 'upper quartile', '95th percentile')
# How far a percentile may lie beyond those of the training scans: in HU, which differ between contrast phases, children
# and obese patients by up to 130; or as a share of the intensity window.
_FARTHER_HU = (150.0, 150.0, 150.0, 300.0)
_FARTHER_WINDOW = 0.25
_FARTHER_MINIMUM_HU = 300.0
_LEAST_SPAN_HU = 100.0  # fat and muscle differ by more
_LEAST_BODY = 0.02  # share of the scan
_MOST_DENSE = 0.15  # share of the body; in abdominal CT it is at most 0.03
_MOST_AIR = 0.02  # share of an MR scan
_SAMPLE = 1 << 19  # voxels that statistics are computed from


def is_hu(options: Mapping) -> bool:
  """Whether the scans of a data set, or one of their channels, have Hounsfield units.

  Args:
    options: of its store, in the index of the store and in checkpoints.
  """
  return holds_hu(options['modality'], options['source'])


def body_threshold(scan: np.ndarray, in_hu: bool) -> float:
  """The intensity above which a voxel belongs to the body: -200 HU, or a tenth of the range of a scan without HU."""
  if in_hu:
    return BODY_HU
  low, high = percentile_window(_sample(scan))
  return low + 0.1 * (high - low)


def describe(scan: np.ndarray, in_hu: bool) -> dict:
  """The statistics of a scan that `notes` looks at, as JSON.

  Args:
    scan: (D, H, W) intensities.
    in_hu: whether they should be HU.

  Returns:
    'minimum', 'maximum'; 'body', the share of voxels in the body; 'percentiles' of these (`PERCENTILES`), 'dense', the
    share of these above 500; 'air', the share of all voxels below -500.
  """
  sample = _sample(scan)
  body = sample[sample > body_threshold(scan, in_hu)]
  return {
    'minimum': float(scan.min()),
    'maximum': float(scan.max()),
    'body': body.size / sample.size,
    'percentiles': [float(v) for v in np.percentile(body, PERCENTILES)] if body.size else None,
    'dense': float(np.mean(body > DENSE_HU)) if body.size else 0.0,
    'air': float(np.mean(sample < AIR_HU)),
  }


def notes(described: Mapping, window: Sequence[float], in_hu: bool, usual: Mapping | None = None) -> list[str]:
  """What is unusual about the intensities of a scan.

  Args:
    described: from `describe`.
    window: (low, high) of its intensity window.
    in_hu: whether they should be HU.
    usual: of the scans that the network is trained on, from `usual_of`; None: only the rules that need none.

  Returns:
    Sentences without a full stop; empty for a usual scan.
  """
  if described['minimum'] == described['maximum']:
    return [f'every voxel of the scan has the value {described["minimum"]:g}']
  found = _hu_notes(described) if in_hu else []
  if not in_hu and described['air'] > _MOST_AIR:
    found.append(f'{described["air"]:.0%} of the scan is below {AIR_HU:g}, as air is in CT: is it MR?')
  if described['body'] < _LEAST_BODY:
    found.append(
      f'only {described["body"]:.1%} of the scan is '
      + ('denser than air: is there a body in it?' if in_hu else 'brighter than a tenth of its range')
    )
  return found + (_unlike(described, window, in_hu, usual) if usual else [])


def describe_channels(scan: np.ndarray, channels: Sequence[Channel]) -> dict | list[dict]:
  """`describe` of a scan; of several channels one for each.

  Args:
    scan: (D, H, W), or (D, H, W, channels).
    channels: from `channels.of`.
  """
  return joined([describe(channel.voxels(scan), channel.in_hu) for channel in channels])


def notes_on_channels(described: Any, window: Sequence, channels: Sequence[Channel], usual: Any = None) -> list[str]:
  """`notes` on a scan; those on one of several channels name it.

  Args:
    described: from `describe_channels`.
    window: (low, high), or one for each channel.
    channels: from `channels.of`.
    usual: from `usual_of`, or one for each channel; None: only the rules that need none.
  """
  of_one = lambda c: notes(c.of(described), c.of(window), c.in_hu, c.of(usual) if usual else None)
  return [channel.said(note) for channel in channels for note in of_one(channel)]


def usual_of(cases: Iterable[tuple[Mapping, Sequence[float]]], in_hu: bool) -> dict | None:
  """The range of the statistics of scans, as JSON, for `notes` on others.

  Args:
    cases: (from `describe`, intensity window) of each scan. Those that have notes of their own are left out.
    in_hu: whether their intensities should be HU.

  Returns:
    'minimum' (lowest, highest), and 'percentiles', the lowest and the highest of each; None if no scan is left.
  """
  good = [(described, window) for described, window in cases if not notes(described, window, in_hu)]
  if not good:
    return None
  rows = np.array([_comparable(described, window, in_hu) for described, window in good])
  minima = [described['minimum'] for described, _ in good]
  return {'minimum': [min(minima), max(minima)], 'percentiles': [rows.min(0).tolist(), rows.max(0).tolist()]}


def is_outermost(described: Mapping, window: Sequence[float], in_hu: bool, usual: Mapping) -> bool:
  """Whether the range of `usual_of` would be another without this scan, which is one of them."""
  if described['percentiles'] is None:
    return False
  values = [described['minimum'], *_comparable(described, window, in_hu)]
  lows, highs = ([usual['minimum'][i], *usual['percentiles'][i]] for i in (0, 1))
  return any(v in ends for v, *ends in zip(values, lows, highs))


def _hu_notes(described: Mapping) -> list[str]:
  low, high = described['minimum'], described['maximum']
  found = []
  if low >= 0:
    found.append('the scan has no value below 0: are its intensities HU?')
  if high - low < _LEAST_SPAN_HU:
    found.append(f'its intensities span only {low:g} to {high:g}: are they HU?')
  if described['dense'] > _MOST_DENSE:
    found.append(
      f'{described["dense"]:.0%} of what is denser than air is above {DENSE_HU:g} HU, as bone is: '
      'are the intensities HU, and is it an abdomen?'
    )
  return found


def _unlike(described: Mapping, window: Sequence[float], in_hu: bool, usual: Mapping) -> list[str]:
  if described['percentiles'] is None:
    return []
  found = []
  farther = _FARTHER_HU if in_hu else (_FARTHER_WINDOW,) * len(PERCENTILES)
  unit = ' HU' if in_hu else ' of the intensity window'
  text = lambda value: f'{value:.0f}' if in_hu else f'{value:.2f}'
  values = _comparable(described, window, in_hu)
  for name, value, least, most, more in zip(_NAMES, values, *usual['percentiles'], farther):
    if not least - more <= value <= most + more:
      found.append(f'{name} {text(value)} (training: {text(least)} to {text(most)})')
  found = ['the body is unlike that of the training scans: ' + ', '.join(found) + unit] if found else []
  if in_hu and described['minimum'] > usual['minimum'][1] + _FARTHER_MINIMUM_HU:
    found.append(
      f'its lowest intensity is {described["minimum"]:g}, that of the training scans at most {usual["minimum"][1]:g}'
    )
  return found


def _comparable(described: Mapping, window: Sequence[float], in_hu: bool) -> list[float]:
  """The percentiles in HU, or on the scale that the network sees: 0 and 1 are the ends of the intensity window."""
  values = described['percentiles']
  return list(values) if in_hu else [(v - window[0]) / (window[1] - window[0]) for v in values]


def _sample(scan: np.ndarray) -> np.ndarray:
  """Evenly spaced voxels of every slice, enough for percentiles."""
  step = math.ceil((scan.size / _SAMPLE) ** 0.5)
  return scan[..., ::step, ::step]
