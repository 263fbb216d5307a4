"""Preparation of real scans, compared with their files."""

import os
import shutil

import numpy as np
import pytest
from tiny_dataset import SMALL, describe, prepare_store

from afw_jax.data import store
from afw_jax.data.formats import volumes
from afw_jax.data.sets.lookup import get_spec


@pytest.fixture
def real():
  if 'AFW_REAL_DATA' not in os.environ:
    pytest.skip('AFW_REAL_DATA does not name a folder of real scans')
  return os.path.abspath(os.environ['AFW_REAL_DATA'])


def test_real_chaos_mr(tmp_path, real):
  index = prepare_store('chaos_mr_t2', f'{real}/chaos_mr_t2', tmp_path / 's', cases=3, workers=2, progress=False)
  assert index['organs'] == ['liver', 'right_kidney', 'left_kidney', 'spleen'] and len(index['cases']) == 3
  for i, summary in index['cases'].items():
    case = store.read_case(tmp_path / 's', i, verify=True)
    assert case.arrays['image'].shape[1:] == (224, 224) and case.arrays['image'].dtype == np.int16
    assert summary['voxels']['liver'] > 50_000 and all(summary['voxels'].values())
    raw = volumes.read_label(f'{real}/chaos_mr_t2/labels/{i}.nii.gz').array
    np.testing.assert_array_equal(case.arrays['native_label'], raw)
    native, working = np.prod(summary['native_spacing_mm']), np.prod(summary['spacing_mm'])
    for organ, n in case.meta['working_voxels'].items():
      assert abs(n * working / (summary['voxels'][organ] * native) - 1) < 0.03
    low, high = summary['percentile_window']
    organs = case.arrays['image'][case.arrays['label'] > 0]
    assert 0 <= low < np.percentile(organs, 1) and np.percentile(organs, 99) <= high


def test_real_chaos_ct(tmp_path, real):
  index = prepare_store('chaos_ct', f'{real}/chaos_ct', tmp_path / 's', order='linear', **SMALL)
  assert index['cases']['case_01']['voxels'] == {'liver': 1_342_595}
  native = store.read_case(tmp_path / 's', 'case_01').arrays['native_label']
  image = volumes.read_image(f'{real}/chaos_ct/1/DICOM_anon').array
  assert abs(image[native == 1].mean() - 141) < 1


def test_real_totalsegmentator_ct(tmp_path, real):
  for kind, name in (('images', 'example_ct_sm'), ('labels', 'example_seg')):
    (tmp_path / kind).mkdir()
    shutil.copy(f'{real}/totalsegmentator/{name}.nii.gz', tmp_path / kind / 's0.nii.gz')
  organs = dict(spleen=1, right_kidney=2, left_kidney=3, gallbladder=4, liver=5, stomach=6, pancreas=7, aorta=52)
  describe(tmp_path, labels={'background': 0, **organs}, other_labels='background')
  index = prepare_store('folder', tmp_path, tmp_path / 's', progress=False, workers=0)
  assert index['output_ids'] == organs
  raw = volumes.read_label(tmp_path / 'labels' / 's0.nii.gz').array
  case = store.read_case(tmp_path / 's', 's0')
  for organ, raw_id in organs.items():
    assert index['cases']['s0']['voxels'][organ] == (raw == raw_id).sum() > 0
    np.testing.assert_array_equal(case.arrays['native_label'] == index['labels'][organ], raw == raw_id)
  assert case.arrays['image'].shape == (30, 224, 224) and get_spec('folder', str(tmp_path)).window_hu == (-125, 275)
