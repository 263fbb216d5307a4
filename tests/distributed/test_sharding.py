"""The device mesh, and shardings on it; every error names values that work."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import PartitionSpec

from afw_jax.distributed import sharding
from afw_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Device:
  """As much of a device as a mesh asks for."""

  id: int
  process_index: int
  platform: str = 'cpu'
  device_kind: str = 'cpu'


def devices(count, per_process=None):
  return [Device(i, i // (per_process or count)) for i in range(count)]


# -- the mesh


def test_data_takes_the_devices_that_spatial_leaves():
  for spatial, shape in ((1, (8, 1)), (2, (4, 2)), (8, (1, 8))):
    for data in (-1, 8 // spatial):
      mesh = sharding.make_mesh(data, spatial, devices(8))
      assert mesh.axis_names == ('data', 'spatial') and mesh.devices.shape == shape
  assert [d.id for d in sharding.make_mesh(-1, 2, devices(8)).devices[1]] == [2, 3]  # neighbours share a sample


def test_axes_are_automatic_since_dropout_fails_with_explicit_ones():
  assert set(sharding.make_mesh(-1, 2, devices(4)).axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
  'data, spatial, wanted',
  [
    (-1, 3, 'mesh.spatial: 3 does not divide 8 devices. Use 1, 2, 4 or 8.'),
    (-1, 0, 'mesh.spatial: 0 does not divide 8 devices. Use 1, 2, 4 or 8.'),
    (-1, -2, 'mesh.spatial: -2 does not divide 8 devices. Use 1, 2, 4 or 8.'),
    (-1, 16, 'mesh.spatial: 16 does not divide 8 devices. Use 1, 2, 4 or 8.'),
    (3, 2, 'mesh.data: 3 x mesh.spatial 2 is not the number of devices, 8. Use -1 or 4.'),
    (0, 1, 'mesh.data: 0 x mesh.spatial 1 is not the number of devices, 8. Use -1 or 8.'),
  ],
)
def test_a_mesh_that_cannot_be_is_refused_with_ones_that_can(data, spatial, wanted):
  with pytest.raises(InputError) as error:
    sharding.make_mesh(data, spatial, devices(8))
  assert str(error.value) == wanted


# -- batch and image size on it


@pytest.mark.parametrize(
  'spatial, batch, sides, wanted',
  [
    (
      2,
      6,
      (224, 224),
      'train.batch_size: 6 does not divide over mesh.data 4. Use 4 or 8, or mesh.spatial 4 or 8 with mesh.data -1.',
    ),
    (
      1,
      3,
      (224, 224),
      'train.batch_size: 3 does not divide over mesh.data 8. Use 8, or mesh.spatial 8 with mesh.data -1.',
    ),
    (1, 3, (9, 9), 'train.batch_size: 3 does not divide over mesh.data 8. Use 8.'),
    (
      4,
      8,
      (18, 64, 64),
      'mesh.spatial: 4 does not divide the first side of 18 x 64 x 64. Use mesh.spatial 1 or 2 with mesh.data -1.',
    ),
    (
      8,
      2,
      (20, 64, 64),
      'mesh.spatial: 8 does not divide the first side of 20 x 64 x 64. Use mesh.spatial 4 with mesh.data -1.',
    ),
    (8, 3, (20, 64, 64), 'mesh.spatial: 8 does not divide the first side of 20 x 64 x 64. Use a side divisible by 8.'),
  ],
)
def test_what_does_not_divide_is_refused_with_values_that_do(spatial, batch, sides, wanted):
  with pytest.raises(InputError) as error:
    sharding.check_divisible(sharding.make_mesh(-1, spatial, devices(8)), batch, sides)
  assert str(error.value) == wanted
  sizes, meshes = (re.search(pattern, wanted) for pattern in (r'Use ([\d or]+)[,.]', r'mesh.spatial ([\d, or]+) with'))
  for size in re.findall(r'\d+', sizes[1] if sizes else ''):
    if sides[0] % spatial == 0:
      sharding.check_divisible(sharding.make_mesh(-1, spatial, devices(8)), int(size), sides)
  for named in re.findall(r'\d+', meshes[1] if meshes else ''):
    sharding.check_divisible(sharding.make_mesh(-1, int(named), devices(8)), batch, sides)


def test_fewer_rows_at_the_deepest_level_than_devices_are_refused():
  mesh = lambda spatial: sharding.make_mesh(-1, spatial, devices(8))
  with pytest.raises(InputError) as error:
    sharding.check_divisible(mesh(4), 8, (32, 32), 16)
  assert str(error.value) == (
    'mesh.spatial: 4 parts are more than the 2 rows that a first side of 32 has at the deepest level of this '
    'network. Use mesh.spatial 1 or 2 with mesh.data -1.'
  )
  for spatial, side in ((2, 32), (4, 64), (8, 224)):
    sharding.check_divisible(mesh(spatial), 8, (side, 32), 16)
  with pytest.raises(InputError, match='a first side of 128 or more'):
    sharding.check_divisible(mesh(8), 1, (64, 32), 16)


def test_what_divides_passes():
  for spatial, batch, sides in ((1, 8, (7, 7)), (2, 4, (2, 5)), (8, 1, (16, 3, 3))):
    sharding.check_divisible(sharding.make_mesh(-1, spatial, devices(8)), batch, sides)


# -- shares of several processes


@pytest.mark.parametrize(
  'per_process, spatial, wanted',
  [
    (8, 2, [(0, 1)]),
    (4, 1, [(0, 2), (1, 2)]),
    (4, 2, [(0, 2), (1, 2)]),
    (4, 4, [(0, 2), (1, 2)]),
    (4, 8, [(0, 1)] * 2),
    (2, 4, [(0, 2), (0, 2), (1, 2), (1, 2)]),
  ],
)
def test_each_process_reads_its_share_of_the_batch(monkeypatch, per_process, spatial, wanted):
  mesh = sharding.make_mesh(-1, spatial, devices(8, per_process))
  for process, share in enumerate(wanted):
    monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
    assert sharding.data_shard(mesh) == share


def test_samples_across_parts_of_processes_are_refused(monkeypatch):
  mesh = sharding.make_mesh(-1, 3, devices(12, 4))  # rows 0001 1122 2233 of samples over processes of four
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  with pytest.raises(InputError) as error:
    sharding.data_shard(mesh)
  assert str(error.value) == (
    'mesh.spatial: 3 does not fit processes of 4 devices each. Use one of 1, 2, 4, or a multiple of 4.'
  )


# -- shardings


def test_images_and_labels_are_divided_both_ways_and_numbers_by_sample():
  mesh = sharding.make_mesh(-1, 2, devices(4))
  placed = sharding.batch_shardings(mesh, dict.fromkeys(('image', 'label', 'window')))
  assert {key: s.spec for key, s in placed.items()} == {
    'image': PartitionSpec('data', 'spatial'),
    'label': PartitionSpec('data', 'spatial'),
    'window': PartitionSpec('data'),
  }
  assert sharding.replicated(mesh).spec == PartitionSpec()


def test_features_of_one_device_per_sample_are_left_alone():
  constrain, x = sharding.make_constrain(sharding.make_mesh(-1, 1, devices(4))), object()
  assert constrain(x) is x


ON_EIGHT = """
import jax, jax.numpy as jnp, numpy as np
from afw_jax.config import default_config, program
from afw_jax.distributed import sharding
mesh = sharding.make_mesh(4, 2)
image = np.arange(8 * 6 * 5, dtype=np.int16).reshape(8, 6, 5, 1)
batch = {'image': image, 'label': image[..., 0].astype(np.int64), 'window': np.arange(16.).reshape(8, 2)}
for key, array in sharding.put_batch(batch, mesh).items():
  assert array.shape == batch[key].shape and array.dtype == jnp.asarray(batch[key]).dtype, key
  for shard in array.addressable_shards:
    row, column = np.argwhere(mesh.devices == shard.device)[0]
    part = batch[key][2 * row:2 * row + 2]
    part = part if key == 'window' else part[:, 3 * column:3 * column + 3]
    assert np.array_equal(shard.data, part), key

# features stay divided: evenly, unevenly (15 rows over 4), and whole where there are fewer rows than devices
mesh = sharding.make_mesh(2, 4)
constrain = sharding.make_constrain(mesh)
for rows, own in ((16, 4), (15, 4), (5, 2), (3, 3)):
  f = lambda x: jnp.sin(constrain(jnp.cos(x)))
  text = jax.jit(f).lower(jnp.zeros((2, rows, 7))).compile().as_text()
  assert f'f32[1,{own},7]' in text, (rows, own, text)
example = jnp.zeros((1, 16, 7))
assert constrain(example) is example

# evaluation: any number of rows, padded; the result on the first device
mesh = sharding.make_mesh(4, 2)
predict = sharding.jit_over_mesh(mesh, lambda scale, image, window: scale * image + window[:, :1, None, None])
scale = jax.device_put(jnp.float32(3), sharding.replicated(mesh))
for rows in (1, 4, 6):
  image, window = np.arange(rows * 24, dtype=np.float32).reshape(rows, 4, 6, 1), np.ones((rows, 2), np.float32)
  found = predict(scale, image, window)
  assert found.devices() == {mesh.devices[0, 0]} and np.array_equal(found, 3 * image + 1), rows

# a fresh state lies whole on every device, and does not depend on the mesh
config = default_config()
config.model.size, config.data.size = 'testing', (32, 32)
wanted, *others = (
  program.make_program(config, mesh, ('background', 'liver'), 1).initial_state(jax.random.key(3))
  for mesh in (sharding.make_mesh(1, 1, jax.devices()[-1:]), sharding.make_mesh(-1, 2), sharding.make_mesh(-1, 1))
)
assert all(array.devices() == {jax.devices()[-1]} for array in jax.tree.leaves(wanted))
for state in others:
  assert all(array.sharding.is_fully_replicated and len(array.devices()) == 8 for array in jax.tree.leaves(state))
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(wanted))
print('placed')
"""


def test_on_eight_devices():
  done = subprocess.run(
    [sys.executable, '-c', ON_EIGHT],
    cwd=Path(__file__).parents[2],
    capture_output=True,
    text=True,
    env=os.environ | {'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.stdout.strip() == 'placed', done.stderr[-2000:]
