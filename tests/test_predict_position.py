"""The volume of an organ does not depend on where the patient lies in the scan, nor on how much air is around."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afw_jax import predict
from afw_jax.data.formats import volumes
from afw_jax.data.phantom import make

SPACING = (14.0, 6.0, 6.0)
IMAGE, _ = make.make_phantom(5, (16, 61, 61), SPACING)


def edge_sensitive(shape):
  """A 'network' of two classes with this input: dense tissue is certain in its middle, and missed at the very edge."""
  inside = np.ones(shape[-2:], np.float32)
  inside[[0, -1]], inside[:, [0, -1]] = 0, 0
  inside[[1, -2]] *= 0.5
  inside[:, [1, -2]] *= 0.5

  def step(variables, image, window):
    assert image.shape[1:-1] == shape
    organ = jax.nn.sigmoid((image[..., 0].astype(jnp.float32) - 80) / 10) * inside
    return jnp.stack([1 - organ, organ], -1)

  return jax.jit(step)


def network(size, usual=None, input_size=None):
  spacing = (None, 6.0, 6.0) if len(size) == 2 else (14.0, 6.0, 6.0)
  data = {
    'organs': ['organ'],
    'window': [-150, 350],
    'options': {
      'size': size,
      'spacing_mm': spacing,
      'fit': 'crop_pad',
      'order': 1,
      'modality': 'CT',
      'source': 'nifti',
    },
  }
  if usual:
    data['usual'] = {'position': usual, 'intensities': None}
  meta = {
    'config': {'eval': {'batch_size': 4, 'overlap': 0.5}},
    'model': {'input_size': input_size or size},
    'data': data,
  }
  return predict.Trained(edge_sensitive(input_size or size), {}, meta)


def organ_ml(trained, image):
  geometry = make.native_geometry(image.shape, SPACING, 'RAS')
  scan = volumes.Volume(image, geometry, 'scan', '')
  labels, _ = predict.predict_volume(trained, scan)
  assert labels.shape == image.shape
  return float((labels == 1).sum()) * float(np.prod(SPACING)) / 1000


AIR = {
  'a little at the left': ((0, 0), (15, 0)),
  'left': ((0, 0), (50, 0)),
  'right': ((0, 0), (0, 53)),
  'front and back': ((51, 62), (0, 0)),
  'a corner': ((57, 0), (0, 50)),
  'all around': ((50, 55), (51, 56)),
}
NETWORKS = {
  'slices that hold the body': network((48, 61)),
  'slices smaller than the body': network((32, 40)),
  'volumes that hold the body': network((16, 48, 61)),
  'volumes smaller than the body': network((8, 32, 40)),
  'crops': network((), input_size=(8, 32, 40)),
  'bodies beyond the grid in training': network(
    (40, 54), [[[[0, 0]], 0], [[[0.12, 0.12], [0, 0.1], [0.1, 0]], 0.05], [[[0.11, 0.11]], 0.05]]
  ),
}


@pytest.mark.parametrize('kind', NETWORKS)
def test_air_around_the_patient_changes_no_volume(kind):
  centred = organ_ml(NETWORKS[kind], IMAGE)
  assert centred > 100
  for name, (rows, columns) in AIR.items():
    shifted = np.pad(IMAGE, [(0, 0), rows, columns], constant_values=-1024)
    # Where the grid ends inside the body, a voxel more or less of its rim is seen.
    rel = 0.05 if 'beyond' in kind else 0.02
    assert organ_ml(NETWORKS[kind], shifted) == pytest.approx(centred, rel=rel), name


def test_windows_find_what_one_slice_that_holds_the_body_finds():
  whole = organ_ml(network((61, 61)), IMAGE)
  assert organ_ml(network((32, 40)), IMAGE) == pytest.approx(whole, rel=0.02)
  assert organ_ml(network((8, 32, 40)), IMAGE) == pytest.approx(whole, rel=0.02)
