"""2D augmentation: geometry against scipy, the distribution of its draws, and its options."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from afw_jax.errors import InputError
from afw_jax.preprocess import apply_window
from afw_jax.training import affine2d
from afw_jax.training.affine2d import resample, rotation
from afw_jax.training.augment import make_augment


def a_batch(n=4, shape=(24, 20), classes=9, seed=0):
  rng = np.random.default_rng(seed)
  label = rng.integers(0, classes, (n, *shape)).astype(np.uint8)
  return {
    'image': jnp.asarray(rng.random((n, *shape, 1), np.float32)),
    'label': jnp.asarray(label),
    'index': jnp.arange(n),
  }


def blocks(n=1, side=64, square=8, classes=9, seed=0):
  """Label maps of large squares, coded into an image as label / 10, so that image and label can be compared."""
  ids = np.random.default_rng(seed).integers(1, classes, (n, side // square, side // square))
  label = np.kron(ids, np.ones((square, square), int)).astype(np.uint8)
  return {'image': jnp.asarray(label[..., None] / 10, jnp.float32), 'label': jnp.asarray(label)}


RESAMPLE = jax.jit(resample, static_argnames='order')
JITTED = {name: jax.jit(make_augment(name)) for name in ('none', 'paper', 'released', 'extended')}


def test_apply_window_is_the_clipped_scale():
  image = jnp.array([[-1000, 50, 200, 350, 3000], [0, 10, 20, 30, 40]], jnp.int16)[..., None]
  out = apply_window(image, jnp.array([[50.0, 350.0], [10.0, 30.0]]))
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out[..., 0], [[0, 0, 0.5, 1, 1], [0, 0, 0.5, 1, 1]], atol=1e-7)
  volume = apply_window(jnp.full((2, 3, 4, 5, 1), 25.0), [[0, 50], [0, 100]])
  np.testing.assert_allclose(volume[:, 0, 0, 0, 0], [0.5, 0.25])


@pytest.mark.parametrize('shape', [(24, 20), (23, 23), (7, 12)])
def test_zero_angle_is_the_identity_and_diagonals_are_mirrors(shape):
  batch = a_batch(1, shape)
  image, label = batch['image'][0], batch['label'][0]
  for order in (0, 1):
    for signs, axes in (((1, 1), ()), ((-1, 1), 0), ((1, -1), 1), ((-1, -1), (0, 1))):
      out, out_label = RESAMPLE(image, label, jnp.diag(jnp.array(signs, jnp.float32)) @ rotation(0.0), order=order)
      np.testing.assert_array_equal(out, np.flip(image, axes))
      np.testing.assert_array_equal(out_label, np.flip(label, axes))


@pytest.mark.parametrize('side', [24, 25])
@pytest.mark.parametrize('quarter', [1, 2, 3, -1])
def test_quarter_turns_equal_rot90(side, quarter):
  batch = a_batch(1, (side, side))
  out, label = RESAMPLE(batch['image'][0], batch['label'][0], rotation(90.0 * quarter))
  np.testing.assert_allclose(out, np.rot90(batch['image'][0], quarter), atol=1e-5)
  np.testing.assert_array_equal(label, np.rot90(batch['label'][0], quarter))


@pytest.mark.parametrize('angle', [-30.0, 7.3, 19.0, 45.0])
def test_rotation_agrees_with_scipy(angle):
  rng = np.random.default_rng(1)
  image = ndimage.gaussian_filter(rng.random((61, 48)), 2).astype(np.float32)
  label = ndimage.zoom(rng.integers(0, 9, (9, 7)), 8, order=0)[:61, :48].astype(np.uint8)
  out, out_label = RESAMPLE(jnp.asarray(image)[..., None], jnp.asarray(label), rotation(angle))
  expected = ndimage.rotate(image, angle, reshape=False, order=1)
  inside = ndimage.rotate(np.ones_like(image), angle, reshape=False, order=1) > 0.999
  np.testing.assert_allclose(np.where(inside, out[..., 0], 0), np.where(inside, expected, 0), atol=2e-5)
  same = np.asarray(out_label) == ndimage.rotate(label, angle, reshape=False, order=0)
  assert same[inside].mean() > 0.999  # positions half way between two pixels may round either way
  outside = ndimage.rotate(np.ones_like(image), angle, reshape=False, order=1, mode='constant') == 0
  beyond = ndimage.binary_erosion(outside, iterations=2, border_value=1)
  assert beyond.any() and not np.asarray(out[..., 0])[beyond].any() and not np.asarray(out_label)[beyond].any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), name=st.sampled_from(['paper', 'released', 'extended']))
def test_labels_stay_exact_and_images_in_range(seed, name):
  batch = a_batch(3, (16, 16), seed=seed)
  batch['label'] = jnp.where(batch['label'] % 2 == 1, batch['label'], jnp.uint8(3))  # ids 1, 3, 5, 7 only
  out = JITTED[name](jax.random.key(seed), batch)
  assert out['label'].dtype == batch['label'].dtype and out['image'].dtype == jnp.float32
  assert out['image'].shape == batch['image'].shape
  for before, after in zip(np.asarray(batch['label']), np.asarray(out['label'])):
    assert set(np.unique(after)) <= set(np.unique(before)) | {0}
  assert float(out['image'].min()) >= 0 and float(out['image'].max()) <= 1 and np.isfinite(out['image']).all()
  np.testing.assert_array_equal(out['index'], batch['index'])


@pytest.mark.parametrize(
  'name, options',
  [
    ('paper', {}),
    ('released', {}),
    ('extended', {'gamma': (1, 1), 'contrast': (1, 1), 'brightness': 0, 'mirror_axes': (0, 1)}),
  ],
)
def test_image_and_label_move_together(name, options):
  batch = blocks(12)
  out = jax.jit(make_augment(name, **options))(jax.random.key(3), batch)
  image, label = np.asarray(out['image'][..., 0]), np.asarray(out['label'])
  beyond = {'size': 5, 'mode': 'constant', 'cval': 255}
  deep = np.stack([ndimage.minimum_filter(m, **beyond) == ndimage.maximum_filter(m, **beyond) for m in label])
  assert deep.mean() > 0.1
  np.testing.assert_allclose(image[deep], label[deep] / 10, atol=1e-6)
  assert not np.array_equal(label, batch['label'])


def test_draws_follow_the_key_and_the_row_only():
  batch = {k: v[:1].repeat(8, 0) for k, v in a_batch().items()}
  first = JITTED['paper'](jax.random.key(1), batch)
  again = JITTED['paper'](jax.random.key(1), batch)
  other = JITTED['paper'](jax.random.key(2), batch)
  np.testing.assert_array_equal(first['image'], again['image'])
  assert not np.array_equal(first['image'], other['image'])
  assert len({row.tobytes() for row in np.asarray(first['image'])}) == 8  # rows are drawn independently
  part = JITTED['paper'](jax.random.key(1), {k: v[:3] for k, v in batch.items()})
  np.testing.assert_allclose(part['image'], first['image'][:3], atol=1e-5)  # and do not depend on the batch's size


@pytest.mark.parametrize('name', ['none', 'paper', 'released', 'extended'])
def test_jit_equals_eager(name):
  batch = a_batch(2, (12, 12))
  eager, jitted = make_augment(name)(jax.random.key(5), batch), JITTED[name](jax.random.key(5), batch)
  np.testing.assert_allclose(eager['image'], jitted['image'], atol=1e-5)
  assert (np.asarray(eager['label']) == np.asarray(jitted['label'])).mean() > 0.999


def test_sharded_over_devices_equals_one_device():
  code = """
import jax, numpy as np
from afw_jax.preprocess import apply_window
from afw_jax.training.augment import make_augment
assert len(jax.devices()) == 4
rng = np.random.default_rng(0)
batch = {'image': rng.random((4, 16, 12, 1), np.float32), 'label': rng.integers(0, 9, (4, 16, 12), np.uint8)}
mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
spread = jax.device_put(batch, jax.NamedSharding(mesh, jax.P('data')))
augment = jax.jit(make_augment('paper'))
one, four = augment(jax.random.key(0), batch), augment(jax.random.key(0), spread)
assert len(four['image'].sharding.device_set) == 4
np.testing.assert_allclose(one['image'], four['image'], atol=1e-6)
np.testing.assert_array_equal(one['label'], four['label'])
"""
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '4'}
  out = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=120)
  assert out.returncode == 0, out.stderr[-2000:]


def test_paper_angles_are_uniform_and_mirrors_fair(monkeypatch):
  monkeypatch.setattr(affine2d, 'resample', lambda image, label, matrix: (matrix, label))
  n = 4000
  matrices = np.asarray(make_augment('paper')(jax.random.key(0), a_batch(n, (2, 2)))['image'])
  flip_rows, flip_cols = (
    matrices[:, 0, 0] < 0,
    matrices[:, 1, 1] < 0,
  )  # |angle| <= 30: the diagonal's sign is the mirror's
  assert abs(flip_rows.mean() - 0.5) < 0.04 and abs(flip_cols.mean() - 0.5) < 0.04
  assert abs((flip_rows & flip_cols).mean() - 0.25) < 0.04
  angles = np.degrees(np.arcsin(matrices[:, 0, 1] * np.where(flip_rows, -1, 1)))
  assert -30 <= angles.min() < -29 and 29 < angles.max() <= 30
  assert np.abs(np.histogram(angles, 6, (-30, 30))[0] / n - 1 / 6).max() < 0.03


def test_released_statistics():
  n = 1500
  batch = a_batch(1, (60, 60), classes=200)  # large enough that one degree moves a pixel
  batch = {k: v.repeat(n, 0) for k, v in batch.items()}
  source = np.asarray(batch['label'][0])
  out = np.asarray(JITTED['released'](jax.random.key(0), batch)['label'])
  turned = [np.flip(np.rot90(source, k), axis) for k in range(4) for axis in (0, 1)]
  is_turned = np.array([[np.array_equal(o, t) for t in turned] for o in out])
  same = np.array([np.array_equal(o, source) for o in out])
  flips = is_turned.any(1)
  assert abs(flips.mean() - 0.5) < 0.035
  assert abs(same.mean() - (0.25 + 0.25 / 40)) < 0.035  # nothing, or a rotation by 0 degrees
  # k and the axis are uniform: 4 distinct pictures, each reached by two of the eight draws
  pictures = {t.tobytes() for t in turned}
  counts = np.array([sum(o.tobytes() == t for o in out[flips]) for t in pictures])
  assert len(pictures) == 4 and np.abs(counts / flips.sum() - 0.25).max() < 0.05
  rotated = out[~flips & ~same]
  angles = {ndimage.rotate(source, a, reshape=False, order=0)[10:-10, 10:-10].tobytes(): a for a in range(-20, 20)}
  drawn = [angles.get(o[10:-10, 10:-10].tobytes()) for o in rotated]  # the middle: scipy cuts half a pixel at the edge
  assert np.mean([a is not None for a in drawn]) > 0.98  # integer angles, nearest
  assert {a for a in drawn if a is not None} | {-1, 0} == set(range(-20, 20))  # one degree leaves the middle as it is


def test_released_keeps_image_values_exact():
  batch = a_batch(16, (18, 18))
  out = JITTED['released'](jax.random.key(4), batch)
  for before, after in zip(np.asarray(batch['image']), np.asarray(out['image'])):
    assert set(after.ravel()) <= set(before.ravel()) | {0.0}


def test_extended_scales_within_its_range():
  disc = (np.hypot(*np.mgrid[-31.5:32, -31.5:32]) < 15).astype(np.uint8)
  batch = {
    'label': jnp.asarray(disc)[None].repeat(200, 0),
    'image': jnp.asarray(disc, jnp.float32)[None, ..., None].repeat(200, 0),
  }
  areas = np.asarray(JITTED['extended'](jax.random.key(0), batch)['label'], float).sum((1, 2)) / disc.sum()
  assert 0.70 < areas.min() < 0.78 and 1.25 < areas.max() < 1.35  # 0.85^2 .. 1.15^2
  off = make_augment(
    'extended', max_angle_deg=0, scale=(1, 1), max_shift=0, gamma=(1, 1), contrast=(1, 1), brightness=0
  )
  np.testing.assert_allclose(jax.jit(off)(jax.random.key(1), batch)['image'], batch['image'], atol=1e-6)


def test_volumes_turn_as_one():
  plane = a_batch(2, (20, 20))
  volume = {'image': jnp.stack([plane['image']] * 3, 1), 'label': jnp.stack([plane['label']] * 3, 1)}
  out, flat = JITTED['paper'](jax.random.key(2), volume), JITTED['paper'](jax.random.key(2), plane)
  for z in range(3):
    np.testing.assert_allclose(out['image'][:, z], flat['image'], atol=1e-5)
    np.testing.assert_array_equal(out['label'][:, z], flat['label'])


def test_options_work():
  batch = a_batch(32, (16, 16))
  still = jax.jit(make_augment('paper', mirror_axes=(), max_angle_deg=0))(jax.random.key(0), batch)
  np.testing.assert_array_equal(still['image'], batch['image'])
  rows_only = jax.jit(make_augment('paper', mirror_axes=[0], p_mirror=1.0, p_rotate=0))(jax.random.key(0), batch)
  np.testing.assert_array_equal(rows_only['label'], batch['label'][:, ::-1])


@pytest.mark.parametrize(
  'name, options, words',
  [
    ('papr', {}, ["'paper'", 'released']),
    ('paper', {'max_angle': 3}, ["'max_angle_deg'"]),
    ('none', {'x': 1}, ['none']),
    ('paper', {'p_mirror': 1.5}, ['p_mirror', '1.5']),
    ('paper', {'p_mirror': float('nan')}, ['p_mirror']),
    ('paper', {'mirror_axes': (0, 2)}, ['mirror_axes', '2']),
    ('paper', {'max_angle_deg': -1}, ['max_angle_deg']),
    ('extended', {'scale': (1.2, 0.8)}, ['scale']),
    ('extended', {'gamma': (0, 1)}, ['gamma']),
  ],
)
def test_bad_names_and_options_are_one_clear_line(name, options, words):
  with pytest.raises(InputError) as e:
    make_augment(name, **options)
  assert '\n' not in str(e.value) and all(word in str(e.value) for word in words)


def test_released_refuses_oblong_slices():
  with pytest.raises(InputError, match='squares'):
    make_augment('released')(jax.random.key(0), a_batch(1, (16, 20)))


@pytest.mark.parametrize('name', ['paper', 'released', 'extended'])
def test_channels_move_together_and_their_intensities_apart(name):
  one = a_batch(n=6, shape=(24, 24))
  two = {**one, 'image': jnp.concatenate([one['image'], one['image'][:, ::-1]], -1)}
  key = jax.random.key(5)
  augment = jax.jit(make_augment(name, **({'gamma': (1, 1), 'brightness': 0} if name == 'extended' else {})))
  found = augment(key, two)
  for channel in (0, 1):  # contrast is one factor for each sample and channel
    alone = augment(key, {**one, 'image': two['image'][..., channel : channel + 1]})
    np.testing.assert_array_equal(found['label'], alone['label'])
    a, b = np.asarray(found['image'][..., channel]), np.asarray(alone['image'][..., 0])
    if name == 'extended':
      assert ((a == 0) == (b == 0)).all()  # outside of the scan
    else:
      np.testing.assert_allclose(a, b, atol=1e-6)
  if name == 'extended':
    same = {**one, 'image': jnp.repeat(one['image'], 2, -1)}
    image = np.asarray(augment(key, same)['image'])
    assert (np.abs(image[..., 0] - image[..., 1]).max((1, 2)) > 1e-3).all()


def test_each_channel_is_windowed_by_its_own_ends():
  image = jnp.array([[[0.0, 10.0]], [[5.0, 30.0]]])  # (B, W, channels)
  window = [[(0, 10), (10, 20)], [(0, 10), (20, 40)]]
  np.testing.assert_allclose(apply_window(image, window), [[[0, 0]], [[0.5, 0.5]]])
