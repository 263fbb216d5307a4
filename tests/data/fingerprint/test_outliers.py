"""What stands out in a data set: each rule on one case among usual ones."""

import numpy as np
import pytest
from measured_cases import case, organ, several

from afw_jax.data.fingerprint import outliers


def test_usual_cases_have_no_notes():
  assert outliers.notes(several()) == []
  assert outliers.notes({}) == []


def test_the_robust_z_score_by_hand():
  values = np.array([1.0, 2.0, 3.0, 4.0, 100.0])  # median 3, MAD 1
  np.testing.assert_allclose(outliers.robust_z(values, 0.1), (values - 3) / 1.4826)
  np.testing.assert_allclose(outliers.robust_z(values, 10.0), (values - 3) / 10)
  assert not outliers.robust_z(values[1:], 0.1).any()  # four cases do not say what is usual


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'liver': organ(5000, 60.0)}, 'c3: liver has 5000 mL (median 1590; z +11.5)'),
    ({'liver': organ(300, 60.0, touches_border=True)}, 'c3: liver has 300 mL, and reaches the border of the scan'),
    ({'left_kidney': organ(153, 70.0), 'right_kidney': organ(147, -70.0)},
     "c3: left_kidney lies 140 mm towards the patient's right of right_kidney: are they swapped?"),
    ({'liver': organ(1560, 60.0, components=2, second_share=0.35)},
     'c3: liver is in 2 parts, the second of which has 35% of its voxels'),
  ],
)  # fmt: skip
def test_an_organ_that_stands_out(changes, words):
  (note,) = outliers.notes(several() | {'c3': case(3, **changes)})
  assert note.startswith(words)


@pytest.mark.parametrize(
  'key, value, words',
  [
    ('spacing_mm', [5.0, 0.765, 0.765], 'c3: its spacing along z is 5 mm (median 2.5; z +'),
    ('percentiles', [-53.0, 400.0, 430.0], 'c3: the median of its organs is 400 (median of all 104'),
    ('label_sha256', '1', 'c3: its label map is that of c1, voxel by voxel'),
  ],
)
def test_a_case_that_stands_out(key, value, words):
  notes = outliers.notes(several() | {'c3': case(3) | {key: value}})
  assert notes and notes[0].startswith(words)
  assert all(note.startswith('c3: ') for note in notes)


def test_equal_cases_make_no_outlier_of_one_that_is_hardly_different():
  cases = {f'c{i}': case() | {'label_sha256': str(i)} for i in range(7)}  # MAD 0
  cases['c6'] |= {'spacing_mm': [2.6, 0.75, 0.75], 'percentiles': [-60.0, 110.0, 260.0]}
  assert outliers.notes(cases | {'c7': case(liver=organ(1800, 60.0)) | {'label_sha256': '7'}}) == []


def test_an_organ_that_is_in_parts_in_most_cases_is_not_noted():
  torn = {'liver': organ(1500, 60.0, components=2, second_share=0.4)}
  cases = several()
  for i in range(2):
    cases[f'c{i}'] = case(i, **torn)
  assert outliers.notes(cases) == []


def test_absent_organs_and_files_without_mm_are_no_outliers():
  gone = organ(0, centroid_ras_mm=None)
  assert outliers.notes(several() | {'c3': case(3, liver=gone, left_kidney=gone)}) == []
  cases = several()
  for one in cases.values():
    one['spacing_mm'] = None
    for found in one['organs'].values():
      found.update(volume_ml=None, centroid_ras_mm=None)
  assert outliers.notes(cases) == []
  cases['c2']['organs']['liver']['voxels'] = 10
  (note,) = outliers.notes(cases)
  assert note.startswith('c2: liver has 10 voxels')


def test_scans_without_any_organ_are_not_alike():
  gone = organ(0, centroid_ras_mm=None)
  empty = {name: gone for name in ('liver', 'left_kidney', 'right_kidney')}
  cases = several() | {f'e{i}': case(i, **empty) | {'percentiles': None, 'label_sha256': 'zeros'} for i in range(2)}
  assert outliers.notes(cases) == []
