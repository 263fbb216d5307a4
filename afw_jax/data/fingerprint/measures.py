"""Measures of one case, and their median and range over the cases of a data set."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from afw_jax.data.formats.volume import Volume
from afw_jax.data.sets.spec import without_ignored
from afw_jax.inference import statistics

# Of the intensities of the labelled foreground, as nnU-Net's fingerprint has them (Isensee et al. 2021), which however
# pools voxels of all cases.
PERCENTILES = (0.5, 50.0, 99.5)


def of_case(image: Volume, classes: np.ndarray, organs: Sequence[str]) -> dict:
  """The measures of a case, as JSON.

  Args:
    image: the scan.
    classes: (D, H, W) classes on its grid; 1, 2, ... are the organs, `IGNORED` voxels count nowhere.
    organs: names of the classes 1, 2, ...

  Returns:
    'shape' (voxels), 'spacing_mm' and 'extent_mm' along (z, y, x), the last two None where the file has no voxel size
    in mm; 'percentiles' (`PERCENTILES`) of the intensities of all organs, None where none has a voxel; 'organs':
    organ -> its `statistics.OrganStatistics` as JSON, with a volume of None where there is no voxel size; 'absent':
    organs without a voxel.
  """
  labels = without_ignored(classes)
  found = statistics.of_organs(labels, image.array, image.geometry, organs)
  has_mm = image.geometry.has_mm
  values = image.array[labels > 0]
  unknown = {} if has_mm else {'volume_ml': None}
  return {
    'shape': list(labels.shape),
    'spacing_mm': [float(mm) for mm in image.spacing_mm] if has_mm else None,
    'extent_mm': [n * float(mm) for n, mm in zip(labels.shape, image.spacing_mm)] if has_mm else None,
    'percentiles': [float(v) for v in np.percentile(values, PERCENTILES)] if values.size else None,
    'organs': {organ: one.to_json() | unknown for organ, one in found.items()},
    'absent': [organ for organ, one in found.items() if not one.voxels],
  }


def over_cases(cases: Iterable[Mapping]) -> dict:
  """Median and range of the measures of cases, as JSON.

  Args:
    cases: from `of_case`; at least one.

  Returns:
    'shape', 'spacing_mm' and 'extent_mm': 'median', 'lowest' and 'highest' along (z, y, x), or None where no case has
    them; 'distinct_spacings', which differ by at least 0.001 mm; 'percentiles': 'median', 'lowest' and 'highest' of
    each; 'volume_ml': organ -> the same over the cases that have it, and 'cases', their number.
  """
  cases = list(cases)
  spacings = [case['spacing_mm'] for case in cases if case['spacing_mm']]
  organs = {organ: [case['organs'][organ] for case in cases] for organ in cases[0]['organs']}
  return {
    'shape': _range([case['shape'] for case in cases]),
    'spacing_mm': _range(spacings),
    'extent_mm': _range([case['extent_mm'] for case in cases if case['extent_mm']]),
    'distinct_spacings': len({tuple(round(mm, 3) for mm in spacing) for spacing in spacings}),
    'percentiles': _range([case['percentiles'] for case in cases if case['percentiles']]),
    'volume_ml': {
      organ: {
        **(_range([one['volume_ml'] for one in found if one['voxels'] and one['volume_ml'] is not None]) or _NONE),
        'cases': sum(one['voxels'] > 0 for one in found),
      }
      for organ, found in organs.items()
    },
  }


_NONE = {'median': None, 'lowest': None, 'highest': None}


def _range(values: Sequence) -> dict | None:
  """Median, lowest and highest of numbers, or along each place of lists of numbers; None of none."""
  if not values:
    return None
  array = np.array(values, np.float64)
  return {
    name: f(array, axis=0).tolist() for name, f in (('median', np.median), ('lowest', np.min), ('highest', np.max))
  }
