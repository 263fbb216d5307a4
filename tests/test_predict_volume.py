"""Preparation and prediction of one scan: the same for every padding, and ids of any size in the label map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_dataset import geometry, label_map, scan

from afw_jax import predict
from afw_jax.data import store
from afw_jax.data.formats import volumes
from afw_jax.data.preparation.options import StoreOptions
from afw_jax.data.preparation.prepare_case import prepare_case
from afw_jax.data.sets.case_files import CaseFiles
from afw_jax.data.sets.lookup import get_spec

GRID = dict(size=(8, 24, 24), spacing_mm=(2.0, 2.0, 2.0), fit='crop_pad')  # 3D, cubic
WINDOWS = ('percentile', [-200, 300])
SPECS = {'CT': 'chaos4', 'MR': 'chaos_mr_t2'}


def brighter_than_the_middle(variables, image, window):
  middle = window.mean(1).reshape(-1, *[1] * (image.ndim - 2))
  p = jax.nn.sigmoid((image[..., 0].astype(jnp.float32) - middle) / 20)
  return jnp.stack([1 - p, p], -1)


def trained(spec, window='percentile', ids=(1,)):
  data = {
    'organs': [f'organ {i}' for i in ids],
    'output_ids': {f'organ {i}': i for i in ids},
    'window': window,
    'options': StoreOptions('folder', **GRID).to_json(spec),
  }
  meta = {'config': {'eval': {'batch_size': 2}}, 'model': {'input_size': [8, 24, 24]}, 'data': data}
  return predict.Trained(brighter_than_the_middle, {}, meta)


@pytest.mark.parametrize('modality, paddings', [
  ('CT', (-1000, -1024, -2000, -3024, -32768, 64511)), ('MR', (0, -1000, -32768, 65535)),
])  # fmt: skip
def test_a_scan_is_prepared_and_predicted_alike_for_every_padding(tmp_path, modality, paddings):
  (tmp_path / 'images').mkdir()
  spec = get_spec(SPECS[modality], str(tmp_path))
  volumes.write_label(tmp_path / 'label.nii.gz', np.minimum(label_map(0), 4), geometry())
  body = scan(3) if modality == 'CT' else np.maximum(scan(3) + 300, 0)
  body[:, :, 10:14] = -1000 if modality == 'CT' else 0  # air beside the padding, and within the field of view
  found = []
  for padding in paddings:
    image = body.astype(np.float32 if padding > 32767 else np.int16)
    image[:, :, :10] = padding
    path = tmp_path / f'{padding}.nii.gz'
    volumes.write_image(path, image, geometry())
    options = StoreOptions('folder', **GRID).to_json(spec)
    case = CaseFiles(f'c{padding}', str(path), str(tmp_path / 'label.nii.gz'))
    job = dict(id=case.id, case=case, stamps={}, spec=spec, options=options, options_hash='h')
    result = prepare_case(job | {'store': str(tmp_path / 's')})
    assert not result['problems']
    arrays = store.read_case(tmp_path / 's' / store.STAGING, case.id).arrays
    windows = [predict.predict_volume(trained(spec, window), volumes.read_image(path))[0] for window in WINDOWS]
    found.append((np.array(arrays['image']), result['meta']['percentile_window'], *windows))
  assert found[0][0].dtype == np.int16 and 0 < found[0][2].mean() < 1 and 0 < found[0][3].mean() < 1
  for other in found[1:]:
    for a, b in zip(found[0], other):
      np.testing.assert_array_equal(a, b)


def test_label_maps_hold_the_ids_of_the_data_set(tmp_path):
  spec = get_spec('chaos4')
  for ids, dtype in (((1, 255), np.uint8), ((1, 256), np.uint16), ((65535, 3), np.uint16)):
    labels = np.resize(np.arange(3, dtype=np.uint8), (6, 40, 48))
    ids_of_voxels = trained(spec, ids=ids).file_ids(labels)
    assert ids_of_voxels.dtype == dtype
    np.testing.assert_array_equal(ids_of_voxels, np.array([0, *ids])[labels])
    volumes.write_label(tmp_path / 'l.nii.gz', ids_of_voxels, geometry())
    written = volumes.read_label(tmp_path / 'l.nii.gz')
    assert written.array.dtype == dtype
    np.testing.assert_array_equal(written.array, ids_of_voxels)
  # a scan without these organs has a label map of the same type
  volumes.write_label(tmp_path / 'l.nii', trained(spec, ids=(1, 256)).file_ids(labels * 0), geometry())
  assert (tmp_path / 'l.nii').stat().st_size == 352 + 2 * labels.size
