"""Notes on intensities: every kind of scan that a network was not made for, and none for ordinary ones."""

import os
import pathlib

import numpy as np
import pytest

from afw_jax.data import phantom
from afw_jax.data.formats import volumes
from afw_jax.data.sets import intensities
from afw_jax.data.sets.window import percentile_window

SHAPE = (16, 60, 60)
SPACING = (14.0, 6.0, 6.0)
WINDOW = (-150, 350)


def ct(seed):
  return phantom.make_phantom(seed, SHAPE, SPACING)[0]


def mr(seed):
  """Magnitudes with the usual histogram: dark background with noise, much muscle, less fat, few bright vessels."""
  rng = np.random.default_rng((7, seed))
  tissue = ct(seed)
  levels = np.select([tissue < -200, tissue < -30, tissue < 60, tissue < 200], [0, 600, 150, 240], 330)
  signal = levels * rng.uniform(0.9, 1.1) + rng.normal(0, 12, SHAPE)
  return np.abs(np.rint(signal * rng.uniform(0.5, 3))).astype(np.int16)


def usual(scans, in_hu, window=None):
  described = [(intensities.describe(scan, in_hu), window or percentile_window(scan)) for scan in scans]
  return intensities.usual_of(described, in_hu)


@pytest.fixture(scope='module')
def of_ct():
  return usual([ct(i) for i in range(4)], True, WINDOW)


@pytest.fixture(scope='module')
def of_mr():
  return usual([mr(i) for i in range(4)], False)


def notes_of_ct(scan, known=None):
  return ' | '.join(intensities.notes(intensities.describe(scan, True), WINDOW, True, known))


def notes_of_mr(scan, known=None):
  return ' | '.join(intensities.notes(intensities.describe(scan, False), percentile_window(scan), False, known))


def normalised(scan):
  return ((scan - scan.mean()) / scan.std()).astype(np.float32)


NOT_HU = {  # what it is -> (how it is made from a CT, a note that needs no training scans)
  'constant': (lambda a: np.full_like(a, 40), 'every voxel of the scan has the value 40'),
  'empty': (np.zeros_like, 'every voxel of the scan has the value 0'),
  'HU + 1024': (lambda a: a + 1024, 'no value below 0'),
  'HU + 1024 with padding': (lambda a: np.where(np.arange(60) < 4, -1024, a + 1024), 'above 500 HU'),
  '0 to 255': (lambda a: np.clip((a + 125.0) / 400 * 255, 0, 255).astype(np.int16), 'no value below 0'),
  '0 to 1': (lambda a: np.clip((a + 125.0) / 400, 0, 1).astype(np.float32), 'span only 0 to 1'),
  'normalised': (normalised, 'span only'),
  'inverted': (lambda a: -a, 'above 500 HU'),
  'air': (lambda a: np.minimum(a, -900), 'only 0.0% of the scan is denser than air'),
  'MR': (lambda a: mr(0), 'no value below 0'),
}


@pytest.mark.parametrize('kind', NOT_HU)
def test_scans_that_are_not_hu(kind, of_ct):
  make, note = NOT_HU[kind]
  scan = make(ct(9))
  assert note in notes_of_ct(scan)
  assert note in notes_of_ct(scan, of_ct)


def test_scans_that_only_the_training_scans_tell_from_others(of_ct):
  tenth, raised = (ct(9) // 10).astype(np.int16), np.where(ct(9) > -200, ct(9) + 400, ct(9))
  assert notes_of_ct(tenth) == '' and 'lowest intensity is -103' in notes_of_ct(tenth, of_ct)
  assert notes_of_ct(np.minimum(raised, 499)) == '' and 'median' in notes_of_ct(np.minimum(raised, 499), of_ct)


ORDINARY = {
  'another patient': lambda a: a,
  'contrast medium in the bowel': lambda a: np.where(np.indices(a.shape).sum(0) % 25 == 0, np.maximum(a, 450), a),
  'without contrast medium': lambda a: np.where(a > 60, 60 + (a - 60) // 4, a),
  'low dose': lambda a: a + np.random.default_rng(0).normal(0, 60, a.shape).astype(np.int16),
  'hip implants': lambda a: np.where((a > -200) & (np.indices(a.shape)[2] % 30 == 0), 3071, a),
  'obese': lambda a: np.where((a > -200) & (np.indices(a.shape)[1] % 2 == 0), -100, a),
  'lean': lambda a: np.where((a > -150) & (a < -50), 50, a),
  'padded': lambda a: np.where(np.indices(a.shape)[1] < 10, -2000, a),
  'cut tightly': lambda a: a[:, 15:45, 12:48],
}


@pytest.mark.parametrize('kind', ORDINARY)
def test_ordinary_ct_has_no_notes(kind, of_ct):
  for seed in range(10, 14):
    assert notes_of_ct(ORDINARY[kind](ct(seed)).astype(np.int16), of_ct) == ''


NOT_MR = {
  'constant': lambda a: np.full_like(a, 7),
  'CT': lambda a: ct(9),
  'HU + 1024': lambda a: ct(9) + 1024,
  'inverted': lambda a: a.max() - a,
  'one bright voxel': lambda a: np.where(np.arange(a.size).reshape(a.shape) == 5, 30000, a // 100),
}


@pytest.mark.parametrize('kind', NOT_MR)
def test_scans_unlike_mr(kind, of_mr):
  assert notes_of_mr(NOT_MR[kind](mr(9)).astype(np.int16), of_mr)


@pytest.mark.parametrize('scale', [0.001, 1, 30])
def test_the_scale_of_mr_does_not_matter_where_the_window_follows_it(scale, of_mr):
  for seed in range(10, 14):
    scan = mr(seed) * np.float32(scale)
    assert notes_of_mr(scan) == notes_of_mr(scan, of_mr) == ''
  fixed = usual([mr(i) for i in range(4)], False, (0, 800))
  notes = intensities.notes(intensities.describe(mr(9) * np.float32(0.001), False), (0, 800), False, fixed)
  assert 'of the intensity window' in notes[0]


def test_scans_with_notes_are_not_what_is_usual():
  scans = [ct(0), ct(1), ct(2) + 1024]
  assert usual(scans, True, WINDOW) == usual(scans[:2], True, WINDOW)
  assert usual(scans[2:], True, WINDOW) is None


@pytest.mark.skipif(not os.environ.get('AFW_REAL_DATA'), reason='AFW_REAL_DATA is not set (a folder with real scans)')
def test_real_scans(of_ct):
  real = pathlib.Path(os.environ['AFW_REAL_DATA'])
  series = [
    real / 'chaos_ct' / '1' / 'DICOM_anon',
    *real.glob('totalsegmentator/example_ct*'),
    *real.glob('msd*/im*/*'),
  ]
  read = lambda path: volumes.read_image(path).array
  scans = [read(path) for path in series]
  cts = [intensities.describe(scan, True) for scan in scans]
  for one in cts:
    assert intensities.notes(one, WINDOW, True, of_ct) == []
    for other in cts:
      assert intensities.notes(one, WINDOW, True, intensities.usual_of([(other, WINDOW)], True)) == []
  paths = sorted(real.glob('chaos_mr_t2/images/*'))[::3]
  mrs = [(intensities.describe(scan, False), percentile_window(scan)) for scan in map(read, paths)]
  for one in mrs:
    assert all(intensities.notes(*one, False, intensities.usual_of([other], False)) == [] for other in mrs)
  known = intensities.usual_of(mrs, False)
  assert all(notes_of_mr(scan, known) and notes_of_mr(scan + 1024, known) for scan in scans)
  assert all(notes_of_ct(scan, of_ct) for scan in map(read, paths[:2]))
