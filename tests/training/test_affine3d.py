"""3D augmentation: rotations, mirrors and scaling of volumes, against scipy and by their properties."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from scipy import ndimage

from afw_jax.errors import InputError
from afw_jax.training import affine3d
from afw_jax.training.augment import make_augment

RESAMPLE = jax.jit(affine3d.resample)
ROTATION = jax.jit(affine3d.rotation, static_argnums=1)
MIRRORS = {'max_angle_deg': (0, 0, 0), 'scale': (1, 1)}


def a_batch(n=3, shape=(12, 16, 14), classes=9, seed=0):
  rng = np.random.default_rng(seed)
  return {
    'image': rng.random((n, *shape, 1), np.float32),
    'index': np.arange(n),
    'label': rng.integers(0, classes, (n, *shape)).astype(np.uint8),
  }


def smooth(shape, seed=0):
  rng = np.random.default_rng(seed)
  image = ndimage.gaussian_filter(rng.random(shape), 1.5).astype(np.float32)
  label = ndimage.zoom(rng.integers(1, 9, [-(-n // 6) for n in shape]), 6, order=0)
  return image, label[tuple(slice(n) for n in shape)].astype(np.uint8)


def scipy_resample(volume, matrix, order):
  centre = (np.array(volume.shape) - 1) / 2
  return ndimage.affine_transform(volume, matrix, centre - matrix @ centre, order=order, mode='grid-constant')


@pytest.mark.parametrize('shape', [(9, 12, 15), (8, 8, 8), (1, 6, 5)])
def test_identity_and_mirrors_are_exact(shape):
  batch = a_batch(1, shape)
  image, label = batch['image'][0], batch['label'][0]
  for bits in range(8):
    flips = np.array([bits & 1, bits & 2, bits & 4], bool)
    axes = tuple(np.flatnonzero(flips))
    matrix = np.where(flips, -1, 1)[:, None] * ROTATION(np.zeros(3, np.float32), (5.0, 0.7, 0.9))
    for out, out_label in (RESAMPLE(image, label, matrix), affine3d.mirror(image, label, flips)):
      np.testing.assert_array_equal(out, np.flip(image, axes))
      np.testing.assert_array_equal(out_label, np.flip(label, axes))


@pytest.mark.parametrize('axis, plane', [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
def test_quarter_turns_about_each_axis_equal_rot90(axis, plane):
  batch = a_batch(1, (12, 12, 12))
  angles = np.zeros(3, np.float32)
  angles[axis] = 90
  out, label = RESAMPLE(batch['image'][0], batch['label'][0], ROTATION(angles, (1.0, 1.0, 1.0)))
  np.testing.assert_array_equal(label, np.rot90(batch['label'][0], axes=plane))
  np.testing.assert_allclose(out, np.rot90(batch['image'][0], axes=plane), atol=1e-5)


def test_turns_are_applied_about_x_then_y_then_z():
  image, label = smooth((24, 26, 28))
  expected = image
  for angle, plane in ((14, (0, 1)), (-11, (0, 2)), (25, (1, 2))):
    expected = ndimage.rotate(expected, angle, plane, reshape=False, order=3)
  out, _ = RESAMPLE(image[..., None], label, ROTATION(np.float32([25, -11, 14]), (1.0, 1.0, 1.0)))
  middle = (slice(8, -8),) * 3
  assert np.corrcoef(out[..., 0][middle].ravel(), expected[middle].ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
  'angles, scale, aspect',
  [
    ((30, 0, 0), 1, (1, 1, 1)),
    ((0, 15, -12), 0.9, (1, 1, 1)),
    ((-20, 10, 7), 1.15, (2.5, 1, 0.8)),
    ((5, 60, 40), 0.6, (1, 1, 1)),
  ],
)
def test_resampling_agrees_with_scipy(angles, scale, aspect):
  image, label = smooth((21, 32, 27))
  a, (tz, ty, tx) = np.diag(aspect), np.deg2rad(angles)
  about_z = [[1, 0, 0], [0, np.cos(tz), np.sin(tz)], [0, -np.sin(tz), np.cos(tz)]]
  about_y = [[np.cos(ty), 0, np.sin(ty)], [0, 1, 0], [-np.sin(ty), 0, np.cos(ty)]]
  about_x = [[np.cos(tx), np.sin(tx), 0], [-np.sin(tx), np.cos(tx), 0], [0, 0, 1]]
  expected = np.linalg.inv(a) @ about_x @ about_y @ about_z @ a / scale
  matrix = ROTATION(np.float32(angles), tuple(map(float, aspect))) / scale
  np.testing.assert_allclose(matrix, expected, atol=1e-6)
  out, out_label = RESAMPLE(image[..., None], label, matrix)
  # Everywhere, the border included: outside the volume both mean 0.
  np.testing.assert_allclose(out[..., 0], scipy_resample(image, expected, 1), atol=2e-5)
  same = np.asarray(out_label) == scipy_resample(label, expected, 0)
  assert same.mean() > 0.999  # positions half way between two voxels may round either way
  assert (np.asarray(out_label) == 0).any() == (scipy_resample(label, expected, 0) == 0).any()


def test_anisotropic_voxels_turn_a_ball_into_a_ball():
  z, y, x = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * a for n, a in zip((16, 40, 40), (3, 1, 1))], indexing='ij')
  ball = (np.sqrt(z**2 + y**2 + x**2) < 15).astype(np.uint8)
  image = np.exp(-(z**2 + y**2 + x**2) / 200)[..., None].astype(np.float32)
  angles = np.float32([0, 35, -25])
  right, _ = RESAMPLE(image, ball, ROTATION(angles, (3.0, 1.0, 1.0)))
  wrong, _ = RESAMPLE(image, ball, ROTATION(angles, (1.0, 1.0, 1.0)))
  middle = (slice(4, -4), slice(8, -8), slice(8, -8))
  assert np.abs(right - image)[middle].max() < 0.02 < 0.1 < np.abs(wrong - image)[middle].max()


def test_labels_stay_exact_and_images_in_range():
  augment = jax.jit(make_augment('volume', gamma=(0.7, 1.4), contrast=(0.8, 1.2), brightness=0.1))
  batch = a_batch(3)
  batch['label'] = np.where(batch['label'] % 2 == 1, batch['label'], 3).astype(np.uint8)  # ids 1, 3, 5, 7 only
  for seed in range(12):
    out = augment(jax.random.key(seed), batch)
    assert out['label'].dtype == np.uint8 and out['image'].dtype == np.float32
    assert out['image'].shape == batch['image'].shape and out['label'].shape == batch['label'].shape
    assert set(np.unique(out['label'])) <= {0, 1, 3, 5, 7}
    assert float(out['image'].min()) >= 0 and float(out['image'].max()) <= 1
    np.testing.assert_array_equal(out['index'], batch['index'])


def test_image_and_label_move_together():
  _, label = smooth((36, 40, 44))
  label = np.stack([label] * 4)
  out = jax.jit(make_augment('volume'))(
    jax.random.key(3), {'image': (label[..., None] / 10).astype(np.float32), 'label': label}
  )
  image, moved = np.asarray(out['image'][..., 0]), np.asarray(out['label'])
  beyond = {'size': 3, 'mode': 'constant', 'cval': 255}
  deep = np.stack([ndimage.minimum_filter(m, **beyond) == ndimage.maximum_filter(m, **beyond) for m in moved])
  assert deep.mean() > 0.1 and not np.array_equal(moved, label)
  np.testing.assert_allclose(image[deep], moved[deep] / 10, atol=1e-6)


def test_mirrors_alone_are_fair_permutations():
  batch = {k: v.repeat(200, 0) for k, v in a_batch(1, (3, 4, 5)).items()}
  out = jax.jit(make_augment('volume', **MIRRORS))(jax.random.key(0), batch)
  seen = np.zeros(8, int)
  for image, label in zip(np.asarray(out['image']), np.asarray(out['label'])):
    for bits in range(8):
      axes = tuple(a for a in range(3) if bits >> a & 1)
      if np.array_equal(image, np.flip(batch['image'][0], axes)):
        np.testing.assert_array_equal(label, np.flip(batch['label'][0], axes))
        seen[bits] += 1
  assert seen.sum() == 200 and seen.min() > 8
  only_x = make_augment('volume', **MIRRORS, mirror_axes=[2], p_mirror=1.0)(jax.random.key(0), batch)
  np.testing.assert_array_equal(only_x['label'], batch['label'][..., ::-1])
  for still in ({**MIRRORS, 'mirror_axes': ()}, {'p_rotate': 0.0, 'scale': (1, 1), 'p_mirror': 0.0}):
    np.testing.assert_array_equal(make_augment('volume', **still)(jax.random.key(0), batch)['image'], batch['image'])


def test_options_reach_the_map(monkeypatch):
  monkeypatch.setattr(affine3d, 'resample', lambda image, label, matrix: (matrix, label))
  batch = a_batch(2000, (2, 2, 2))
  matrices = np.asarray(make_augment('volume', mirror_axes=())(jax.random.key(0), batch)['image'])
  scales = np.cbrt(1 / np.linalg.det(matrices))
  assert 0.85 <= scales.min() < 0.86 and 1.14 < scales.max() <= 1.1501
  turns = matrices * scales[:, None, None]  # about x, about y, about z multiplied
  drawn = np.degrees(
    [
      np.arctan2(-turns[:, 2, 1], turns[:, 2, 2]),
      np.arcsin(-turns[:, 2, 0]),
      np.arctan2(-turns[:, 1, 0], turns[:, 0, 0]),
    ]
  )
  for angles, limit in zip(drawn, (30, 15, 15)):
    assert np.abs(np.histogram(angles, 6, (-limit - 1e-3, limit + 1e-3))[0] / 2000 - 1 / 6).max() < 0.04
  assert np.abs(np.corrcoef([*drawn, scales]) - np.eye(4)).max() < 0.08  # drawn independently


def test_draws_follow_the_key_and_the_row_only():
  batch = {k: v.repeat(5, 0) for k, v in a_batch(1).items()}
  augment = jax.jit(make_augment('volume'))
  first, again, other = (
    augment(jax.random.key(1), batch),
    augment(jax.random.key(1), batch),
    augment(jax.random.key(2), batch),
  )
  np.testing.assert_array_equal(first['image'], again['image'])
  assert not np.array_equal(first['image'], other['image'])
  assert len({row.tobytes() for row in np.asarray(first['image'])}) == 5
  part = augment(jax.random.key(1), {k: v[:2] for k, v in batch.items()})  # the batch's size changes nothing
  np.testing.assert_allclose(part['image'], first['image'][:2], atol=1e-5)
  row = a_batch(1, seed=8)  # nor do the other rows
  mixed = {k: np.concatenate([row[k], v[1:]]) for k, v in batch.items()}
  np.testing.assert_array_equal(augment(jax.random.key(1), mixed)['label'][1:], first['label'][1:])


def test_sharded_over_devices_equals_one_device_without_gathering():
  code = """
import jax, numpy as np
from afw_jax.training.augment import make_augment
assert len(jax.devices()) == 4
rng = np.random.default_rng(0)
batch = {'image': rng.random((4, 8, 12, 10, 1), np.float32), 'label': rng.integers(0, 9, (4, 8, 12, 10), np.uint8)}
mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
spread = jax.device_put(batch, jax.NamedSharding(mesh, jax.P('data')))
augment = jax.jit(make_augment('volume', gamma=(0.8, 1.2)))
one, four = augment(jax.random.key(0), batch), augment(jax.random.key(0), spread)
assert len(four['image'].sharding.device_set) == 4
np.testing.assert_allclose(one['image'], four['image'], atol=1e-5)
assert (np.asarray(one['label']) == np.asarray(four['label'])).mean() > 0.999
text = augment.lower(jax.random.key(0), spread).compile().as_text()
assert 'all-gather' not in text and 'all-reduce' not in text
"""
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '4'}
  out = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=120)
  assert out.returncode == 0, out.stderr[-2000:]


def test_memory_stays_near_that_of_the_batch():
  batch = {
    'image': jax.ShapeDtypeStruct((6, 128, 256, 256, 1), np.float32),
    'label': jax.ShapeDtypeStruct((6, 128, 256, 256), np.uint8),
  }
  compiled = jax.jit(make_augment('volume', gamma=(0.8, 1.2))).lower(jax.random.key(0), batch).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 1e9  # the images are 0.2 GB; eight corners would be 1.6


def test_slices_are_refused_with_the_cure():
  with pytest.raises(InputError, match="'paper' or 'extended'"):
    make_augment('volume')(jax.random.key(0), a_batch(2, (16, 20)))


@pytest.mark.parametrize(
  'options, words',
  [
    ({'max_angle_deg': 30}, ['max_angle_deg', 'z, y, x']),
    ({'max_angle_deg': (30, 15)}, ['max_angle_deg', 'z, y, x']),
    ({'max_angle_deg': (30, -1, 0)}, ['max_angle_deg', '-1']),
    ({'mirror_axes': (0, 3)}, ['mirror_axes', '3']),
    ({'voxel_aspect': (1, 1)}, ['voxel_aspect']),
    ({'voxel_aspect': (0, 1, 1)}, ['voxel_aspect']),
    ({'max_angles_deg': 1}, ["'max_angle_deg'"]),
    ({'scale': (1.2, 0.8)}, ['scale']),
    ({'p_rotate': 2}, ['p_rotate', '2']),
    ({'brightness': -1}, ['brightness']),
  ],
)
def test_bad_options_are_one_clear_line(options, words):
  with pytest.raises(InputError) as e:
    make_augment('volume', **options)
  assert '\n' not in str(e.value) and all(word in str(e.value) for word in words)


def test_channels_move_together():
  one = a_batch()
  two = {**one, 'image': np.concatenate([one['image'], one['image'][:, ::-1]], -1)}
  augment, key = jax.jit(make_augment('volume')), jax.random.key(2)
  found = augment(key, two)
  for channel in (0, 1):
    alone = augment(key, {**one, 'image': two['image'][..., channel : channel + 1]})
    np.testing.assert_array_equal(found['label'], alone['label'])
    np.testing.assert_allclose(found['image'][..., channel], alone['image'][..., 0], atol=1e-6)
