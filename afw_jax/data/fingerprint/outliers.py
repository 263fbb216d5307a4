"""Notes on cases that stand out in a data set: outliers, swapped sides, torn organs, label maps of other scans.

A note is a warning: it stops nothing.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from afw_jax.data.fingerprint.measures import PERCENTILES
from afw_jax.data.sets import organ_codes

# An outlier has a robust z-score (x - median) / (1.4826 MAD) beyond this; B. Iglewicz and D. C. Hoaglin, How to Detect
# and Handle Outliers, 1993.
Z = 3.5
FEWEST = 5  # fewer cases do not say what is usual
# The least that 1.4826 MAD counts as, so that equal cases do not make outliers of slightly different ones: of the
# logarithms of volumes and spacings, and of intensities, as a share of the range of the organs in the median case.
LEAST_VOLUME, LEAST_SPACING, LEAST_INTENSITY = 0.1, 0.05, 0.05
SECOND_PART = 0.2  # share of an organ in its second component from which it is torn
_FEW_TORN = 0.2  # share of the cases; where more are torn, the organ is one that comes in parts
_AXES = ('z', 'y', 'x')


def notes(cases: Mapping[str, Mapping]) -> list[str]:
  """Everything that stands out, '<case>: <what>', sorted by case.

  Args:
    cases: case id -> its measures, from `measures.of_case`, with 'label_sha256' besides.
  """
  rules = (_volumes, _spacings, _intensities, _sides, _parts, _same_labels)
  found = [note for rule in rules for note in rule(cases)]
  return [f'{case_id}: {text}' for case_id, text in sorted(found, key=lambda note: note[0])]


def robust_z(values: np.ndarray, least: float) -> np.ndarray:
  """Robust z-scores (x - median) / (1.4826 MAD), where 1.4826 MAD counts as `least` at least; 0 of too few values."""
  if values.size < FEWEST:
    return np.zeros(values.shape)
  off = values - np.median(values)
  return off / max(1.4826 * float(np.median(np.abs(off))), least)


def _volumes(cases: Mapping[str, Mapping]) -> Iterator[tuple[str, str]]:
  for organ in _organs(cases):
    having = {i: case['organs'][organ] for i, case in cases.items() if case['organs'][organ]['voxels']}
    in_mm = all(one['volume_ml'] is not None for one in having.values())
    sizes = np.array([one['volume_ml' if in_mm else 'voxels'] for one in having.values()], np.float64)
    unit = 'mL' if in_mm else 'voxels'
    for (case_id, one), size, z in zip(having.items(), sizes, robust_z(np.log(np.maximum(sizes, 1e-3)), LEAST_VOLUME)):
      if abs(z) > Z:
        border = ', and reaches the border of the scan' if one['touches_border'] else ''
        yield case_id, f'{organ} has {size:.4g} {unit}{border} (median {np.median(sizes):.4g}; z {z:+.1f})'


def _spacings(cases: Mapping[str, Mapping]) -> Iterator[tuple[str, str]]:
  having = {i: case['spacing_mm'] for i, case in cases.items() if case['spacing_mm']}
  for axis, name in enumerate(_AXES):
    sizes = np.array([spacing[axis] for spacing in having.values()])
    for case_id, size, z in zip(having, sizes, robust_z(np.log(sizes), LEAST_SPACING)):
      if abs(z) > Z:
        yield case_id, f'its spacing along {name} is {size:.4g} mm (median {np.median(sizes):.4g}; z {z:+.1f})'


def _intensities(cases: Mapping[str, Mapping]) -> Iterator[tuple[str, str]]:
  cases = {case_id: case for case_id, case in cases.items() if case['percentiles']}
  rows = np.array([case['percentiles'] for case in cases.values()]).reshape(len(cases), len(PERCENTILES))
  width = float(np.median(rows[:, -1] - rows[:, 0])) if len(rows) else 0.0
  least = max(LEAST_INTENSITY * width, math.ulp(1.0))
  for percent, values in zip(PERCENTILES, rows.T):
    for case_id, value, z in zip(cases, values, robust_z(values, least)):
      if abs(z) > Z:
        name = 'median' if percent == 50 else f'{percent:g}th percentile'
        yield case_id, f'the {name} of its organs is {value:.4g} (median of all {np.median(values):.4g}; z {z:+.1f})'


def _sides(cases: Mapping[str, Mapping]) -> Iterator[tuple[str, str]]:
  pairs = organ_codes.pairs(_organs(cases))
  for case_id, case in cases.items():
    for left, right in pairs:
      places = [case['organs'][organ]['centroid_ras_mm'] for organ in (left, right)]
      if all(places) and places[0][0] > places[1][0]:
        off = places[0][0] - places[1][0]
        yield case_id, f"{left} lies {off:.0f} mm towards the patient's right of {right}: are they swapped?"


def _parts(cases: Mapping[str, Mapping]) -> Iterator[tuple[str, str]]:
  for organ in _organs(cases):
    having = {i: case['organs'][organ] for i, case in cases.items() if case['organs'][organ]['voxels']}
    torn = {i: one for i, one in having.items() if one['second_share'] > SECOND_PART}
    if len(torn) > max(1, _FEW_TORN * len(having)) or len(having) < 2:
      continue
    for case_id, one in torn.items():
      share = one['second_share']
      yield case_id, f'{organ} is in {one["components"]} parts, the second of which has {share:.0%} of its voxels'


def _same_labels(cases: Mapping[str, Mapping]) -> Iterator[tuple[str, str]]:
  groups = defaultdict(list)
  for case_id, case in cases.items():
    if case['percentiles']:  # label maps without any organ are alike
      groups[case['label_sha256']].append(case_id)
  for first, *others in groups.values():
    for case_id in others:
      yield case_id, f'its label map is that of {first}, voxel by voxel: is it the label map of this scan?'


def _organs(cases: Mapping[str, Mapping]) -> list[str]:
  return list(next(iter(cases.values()))['organs']) if cases else []
