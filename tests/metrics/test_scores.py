"""Scores against golden values, medpy's and MONAI's definitions, and properties; invalid input; speed."""

import json
import math
import pathlib
import time

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial.distance import cdist

from afw_jax.errors import InputError
from afw_jax.metrics import SCORES, UNITS, dice_per_class, score_case, surface_distance

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
NAN, INF = math.nan, math.inf


def cubes(shift, *, side=5, shape=(16, 16, 16)):
  """Two cubes, the second moved by `shift` voxels along each axis."""
  pred, true = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
  true[3 : 3 + side, 4 : 4 + side, 5 : 5 + side] = 1
  pred[tuple(slice(o + s, o + s + side) for o, s in zip((3, 4, 5), shift))] = 1
  return pred, true


def blobs(seed, shape=(9, 14, 12), cut=0.0):
  rng = np.random.default_rng(seed)
  return (gaussian_filter(rng.normal(size=shape), 1.3) > cut).astype(np.uint8)


def brute(pred, true, spacing):
  """All pairs of surface voxels, from the definition."""
  points = [np.argwhere(m & ~binary_erosion(m)) * spacing for m in (pred > 0, true > 0)]
  pairs = cdist(*points)
  to_true, to_pred = pairs.min(1), pairs.min(0)
  pooled = np.concatenate([to_true, to_pred])
  return {
    'hd_mm': pooled.max(),
    'hd95_pooled_mm': np.percentile(pooled, 95),
    'hd95_max_mm': max(np.percentile(to_true, 95), np.percentile(to_pred, 95)),
    'assd_mm': pooled.mean(),
    'nsd': (pooled <= 2).mean(),
  }


def test_golden():
  arrays = np.load(GOLDEN / 'metrics.npz')
  labels = {str(c): c for c in range(1, 8)}
  where = {  # golden name -> (convention, our name)
    'dsc': ('strict', 'dsc'), 'hd95_pooled_mm': ('strict', 'hd95_pooled_mm'), 'hd_mm': ('strict', 'hd_mm'),
    'assd_mm': ('strict', 'assd_mm'), 'hd95_pooled_voxels': ('transunet', 'hd95_pooled_mm'),
    'hd95_max_mm_monai': ('monai', 'hd95_max_mm'), 'nsd_2mm_monai': ('monai', 'nsd'),
  }  # fmt: skip
  scores = {
    (case, convention): score_case(
      arrays[f'{case}/pred'],
      arrays[f'{case}/true'],
      spacing_mm=arrays[f'{case}/spacing'],
      labels=labels,
      convention=convention,
    )
    for case in range(3)
    for convention in UNITS
  }
  compared = 0
  for row in json.loads((GOLDEN / 'metrics.json').read_text(encoding='utf-8')):
    for name, (convention, ours) in where.items():
      got = scores[row['case'], convention][str(row['class'])]
      assert (got['true_voxels'], got['pred_voxels']) == (row['true_voxels'], row['pred_voxels'])
      if name in row:
        assert got[ours] == pytest.approx(row[name], abs=1e-6, rel=0), (row['case'], row['class'], name)
        compared += 1
    got = scores[row['case'], 'strict'][str(row['class'])]
    assert (got['missed'], got['false_positive'], got['absent']) == tuple(row['class'] == c for c in (6, 5, 7))
    if 'hd95_max_mm_monai' in row:  # MONAI rounds to float32; the definition is the same
      assert got['hd95_max_mm'] == pytest.approx(row['hd95_max_mm_monai'], rel=1e-6)
      assert got['nsd'] == pytest.approx(row['nsd_2mm_monai'], abs=1e-6)
  assert compared == 12 * len(where)


@pytest.mark.parametrize('axis', range(3))
def test_cube_moved_by_one_voxel(axis):
  spacing = [3.0, 2.0, 2.5]
  spacing[axis] = 0.7  # the smallest, so that every voxel off the other surface is nearest along this axis
  n = 5
  pred, true = cubes(np.eye(3, dtype=int)[axis], side=n)
  got = score_case(pred, true, spacing_mm=spacing, labels={'cube': 1}, nsd_tolerance_mm=0.69)['cube']
  surface_voxels = n**3 - (n - 2) ** 3
  off = n**2 + (n - 2) ** 2  # the outer face, and the inside of the opposite face
  assert got['dsc'] == pytest.approx((n - 1) / n)
  for name in ('hd_mm', 'hd95_pooled_mm', 'hd95_max_mm'):
    assert got[name] == pytest.approx(0.7, abs=1e-12)
  assert got['assd_mm'] == pytest.approx(0.7 * off / surface_voxels)
  assert got['nsd'] == pytest.approx(1 - off / surface_voxels)
  assert got['true_ml'] == pytest.approx(n**3 * np.prod(spacing) / 1000)
  assert score_case(pred, true, spacing_mm=spacing, labels={'cube': 1}, nsd_tolerance_mm=0.7)['cube']['nsd'] == 1
  in_voxels = score_case(pred, true, spacing_mm=spacing, labels={'cube': 1}, convention='transunet')['cube']
  assert in_voxels['hd_mm'] == 1


def test_a_distance_equal_to_the_tolerance_is_within_it():
  pred, true = cubes((3, 0, 0))  # 3 * 0.1 is 0.30000000000000004
  assert score_case(pred, true, spacing_mm=(0.1, 9, 9), labels={'a': 1}, nsd_tolerance_mm=0.3)['a']['nsd'] == 1
  assert score_case(pred, true, spacing_mm=(0.1, 9, 9), labels={'a': 1}, nsd_tolerance_mm=0.299)['a']['nsd'] < 1


def test_pooled_and_max_differ():
  pred, true = cubes((0, 0, 0), side=9, shape=(20, 20, 20))
  pred[18, 5:10, 5:10] = 1  # a false island: 6 % of the prediction's surface, 3 % of both surfaces, 7 slices off
  got = score_case(pred, true, spacing_mm=(3, 0.8, 0.8), labels={'a': 1})['a']
  want = brute(pred, true, (3, 0.8, 0.8))
  assert (got['hd95_pooled_mm'], got['hd95_max_mm'], got['hd_mm']) == (0, 21, 21)
  assert {k: got[k] for k in want} == pytest.approx(want, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(
  st.integers(0, 10**6), st.sampled_from([(1, 1, 1), (3, 0.7, 0.8), (0.5, 5, 2)]), st.sampled_from([-0.3, 0.0, 0.2])
)
def test_equals_all_pairs(seed, spacing, cut):
  pred, true = blobs(seed, cut=cut), blobs(seed + 1)
  if pred.any() and true.any():
    got = score_case(pred, true, spacing_mm=spacing, labels={'a': 1})['a']
    want = brute(pred, true, spacing)
    assert {k: got[k] for k in want} == pytest.approx(want, abs=1e-9)
    assert got['dsc'] == pytest.approx(2 * (pred & true).sum() / (pred.sum() + true.sum()))


def test_tree_and_distance_transform_agree(monkeypatch):
  pred, true = blobs(3, (12, 30, 30)), blobs(4, (12, 30, 30))
  results = []
  for cost in (0, 10**9):  # always the tree; always the transform
    monkeypatch.setattr(surface_distance, '_VOXELS_PER_QUERY', cost)
    results.append(score_case(pred, true, spacing_mm=(2.5, 0.7, 0.9), labels={'a': 1})['a'])
  assert results[0] == pytest.approx(results[1], rel=1e-12)


# (dsc, hd, hd95 pooled, hd95 max, assd, nsd) of (absent, missed, false positive); D is the image diagonal
EMPTY = {
  'strict': [[NAN] * 6, [0, 'D', 'D', 'D', 'D', 0], [0, 'D', 'D', 'D', 'D', 0]],
  'transunet': [[0] * 6, [0] * 6, [1, 0, 0, 0, 0, 1]],
  'unetrpp': [[1, 0, 0, 0, 0, 1], [0] * 6, [0] * 6],
  'monai': [[NAN] * 6, [0, INF, NAN, NAN, INF, 0], [NAN, INF, NAN, NAN, INF, 0]],
}


@pytest.mark.parametrize('convention', UNITS)
def test_rules_for_empty_masks(convention):
  full, empty = np.ones((3, 4, 5), np.int16), np.zeros((3, 4, 5), np.int16)
  diagonal = math.sqrt(9**2 + 4**2 + 10**2)
  for (pred, true), values, flag in zip(
    [(empty, empty), (empty, full), (full, empty)], EMPTY[convention], ('absent', 'missed', 'false_positive')
  ):
    got = score_case(pred, true, spacing_mm=(3, 1, 2), labels={'a': 1}, convention=convention)['a']
    want = {k: diagonal if v == 'D' else v for k, v in zip(SCORES, values)}
    assert {k: got[k] for k in SCORES} == pytest.approx(want, nan_ok=True)
    assert {f: got[f] for f in ('absent', 'missed', 'false_positive')} == {
      f: f == flag for f in ('absent', 'missed', 'false_positive')
    }


@pytest.mark.parametrize('convention', UNITS)
def test_perfect_prediction(convention):
  true = blobs(5)
  got = score_case(true, true, spacing_mm=(3, 1, 2), labels={'a': 1}, convention=convention)['a']
  assert [got[k] for k in SCORES] == [1, 0, 0, 0, 0, 1]


def test_swapping_prediction_and_truth_swaps_only_the_flags():
  a, b = blobs(6) + 2 * blobs(7), blobs(8) + 2 * blobs(9)
  b[b == 3] = 0  # class 3 is in one of them only
  labels = {'x': 1, 'y': 2, 'z': 3}
  one, other = (score_case(p, t, spacing_mm=(3, 1, 2), labels=labels) for p, t in ((a, b), (b, a)))
  for organ in labels:
    assert [one[organ][k] for k in SCORES] == pytest.approx([other[organ][k] for k in SCORES])
    assert one[organ]['missed'] == other[organ]['false_positive']
    assert one[organ]['true_ml'] == other[organ]['pred_ml']
  assert one['z']['false_positive'] and other['z']['missed']


def test_ids_order_type_and_unnamed_ids_do_not_matter():
  pred, true = blobs(1) + 2 * blobs(2), blobs(3) + 2 * blobs(4)
  want = score_case(pred, true, spacing_mm=(3, 1, 2), labels={'x': 1, 'y': 2})
  ids = np.array([0, 900, 7, 52])  # 52 is named by nobody: background
  moved = score_case(ids[pred], ids[true].astype(np.uint16), spacing_mm=(3, 1, 2), labels={'y': 7, 'x': 900})
  assert list(moved) == ['y', 'x'] and moved == want
  assert score_case(jnp.asarray(pred), true.astype(np.int64), spacing_mm=(3, 1, 2), labels={'x': 1})['x'] == want['x']
  for kind in ('>i2', '<u8', np.int8):  # big-endian, as some files load; memory in any order
    assert (
      score_case(np.asfortranarray(pred.astype(kind)), true, spacing_mm=(3, 1, 2), labels={'x': 1})['x'] == want['x']
    )
  only = score_case(pred == 1, true == 1, spacing_mm=(3, 1, 2), labels={'x': 1})  # bool masks are integers enough
  assert only['x'] == want['x']


@pytest.mark.parametrize('convention', UNITS)
def test_what_lies_beyond_the_image_counts_as_outside(convention):
  pred, true = blobs(1, cut=-0.1), blobs(2, cut=-0.1)  # both touch every side
  assert all(m.any() for a in (pred, true) for m in (a[0], a[-1], a[:, 0], a[:, -1], a[..., 0], a[..., -1]))
  options = {'spacing_mm': (3, 1, 2), 'labels': {'a': 1}, 'convention': convention}
  assert score_case(pred, true, **options) == score_case(np.pad(pred, 4), np.pad(true, 4), **options)


def test_flat_images():
  pred, true = blobs(1)[4], blobs(2)[4]
  got = score_case(pred, true, spacing_mm=(0.7, 2), labels={'a': 1})['a']
  want = brute(pred, true, (0.7, 2))
  assert {k: got[k] for k in want} == pytest.approx(want)


def test_tolerance_by_organ():
  pred, true = (np.concatenate([a, 2 * a]) for a in cubes((2, 0, 0)))
  options = {'spacing_mm': (1, 1, 1), 'labels': {'x': 1, 'y': 2}}
  got = score_case(pred, true, nsd_tolerance_mm={'x': 2, 'y': 0.5}, **options)
  assert got['x']['nsd'] == 1 > got['y']['nsd']
  with pytest.raises(InputError, match='no tolerance for y'):
    score_case(pred, true, nsd_tolerance_mm={'x': 2}, **options)


@pytest.mark.parametrize(
  'change, said',
  [
    ({'true': np.zeros((4, 4, 5), int)}, r'shape \(4, 4, 4\), the reference \(4, 4, 5\)'),
    ({'pred': np.zeros((4, 4, 4), np.float32)}, 'pred: labels are of type float32'),
    ({'true': np.full((4, 4, 4), 'a')}, 'true: labels are of type'),
    ({'pred': np.zeros(4, int), 'true': np.zeros(4, int), 'spacing_mm': (1,)}, 'pred: has 1 axes'),
    ({'spacing_mm': (1, 0, 1)}, 'spacing_mm'),
    ({'spacing_mm': (1, -1, 1)}, 'spacing_mm'),
    ({'spacing_mm': (1, NAN, 1)}, 'spacing_mm'),
    ({'spacing_mm': (1, 1)}, 'spacing_mm'),
    ({'labels': {}}, 'names no organ'),
    ({'labels': {'a': 1, 'b': 1}}, 'ids'),
    ({'labels': {'a': -1}}, 'ids'),
    ({'labels': {'a': 1.5}}, 'ids'),
    ({'labels': {'a': 10**9}}, 'ids'),
    ({'labels': {'a': '1'}}, 'ids'),
    ({'convention': 'medpy'}, 'Choose one of: strict, transunet, unetrpp, monai'),
    ({'convention': 'transunett'}, "Did you mean 'transunet'"),
    ({'nsd_tolerance_mm': -1.0}, 'nsd_tolerance_mm'),
    ({'nsd_tolerance_mm': NAN}, 'nsd_tolerance_mm'),
  ],
)
def test_bad_input(change, said):
  arguments = {
    'pred': np.zeros((4, 4, 4), int),
    'true': np.zeros((4, 4, 4), int),
    'spacing_mm': (1, 1, 1),
    'labels': {'a': 1},
  }
  arguments |= change
  with pytest.raises(InputError, match=said):
    score_case(arguments.pop('pred'), arguments.pop('true'), **arguments)


def test_dice_per_class():
  pred, true = (blobs(s) + 2 * blobs(s + 9) for s in (1, 2))
  got = dice_per_class(pred, true, 5)
  want = score_case(pred, true, spacing_mm=(1, 1, 1), labels={'b': 0, '1': 1, '2': 2, '3': 3})
  assert got[:4] == pytest.approx([s['dsc'] for s in want.values()]) and np.isnan(got[4])
  for bad in (3, 0):
    with pytest.raises(InputError, match='Give labels in'):
      dice_per_class(pred, true, bad)
  with pytest.raises(InputError, match='Give labels in'):
    dice_per_class(pred.astype(int) - 1, true, 5)
  with pytest.raises(InputError, match='of type float64'):
    dice_per_class(pred / 2, true, 5)


@pytest.mark.parametrize('noisy', [False, True])
def test_speed(noisy):
  """A mid-size volume, and one full of speckles: surfaces everywhere, for which a tree alone takes minutes."""
  shape = (75, 256, 256)
  rng = np.random.default_rng(0)
  true, pred = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
  for c in range(1, 9):
    at, size = rng.integers((10, 40, 40), (40, 150, 150)), rng.integers((15, 40, 40), (30, 80, 80))
    for array, shift in ((true, 0), (pred, 2)):
      array[tuple(slice(a + shift, a + shift + s) for a, s in zip(at, size))] = c
  if noisy:
    pred = np.where(rng.random(shape) < 0.2, 8, pred).astype(np.uint8)
  start = time.perf_counter()
  score_case(pred, true, spacing_mm=(3, 0.7, 0.7), labels={str(c): c for c in range(1, 9)})
  assert time.perf_counter() - start < 6
