"""Augmentation on the device: pure functions (key, batch) -> batch that run inside the jitted train step.

Geometric changes of one sample are composed into one matrix and resampled once: the image by linear interpolation, the
label by its nearest pixel at the same coordinates, so labels stay exact. Outside the image both are 0.
"""

import inspect
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from afw_jax.errors import InputError, did_you_mean
from afw_jax.training import affine2d, affine3d

Augment = Callable[[jax.Array, dict], dict]


def _probability(name: str, value: float):
  if not 0.0 <= value <= 1.0:
    raise InputError(f'augment option {name}', f'{value} is not a valid probability', 'Use a number from 0 to 1')


def _range(name: str, value: Sequence[float], least: float):
  if len(value) != 2 or not least < value[0] <= value[1] < math.inf:
    raise InputError(
      f'augment option {name}', f'{value} is not a valid range', f'Use (low, high), {least} < low <= high'
    )
  return tuple(float(v) for v in value)


def _half_width(name: str, value: float):
  if not 0.0 <= value < math.inf:
    raise InputError(f'augment option {name}', f'is {value}', 'Use 0 or a positive number')


def _axes(axes: Sequence[int]) -> tuple[int, ...]:
  if not set(axes) <= {0, 1}:
    raise InputError(
      'augment option mirror_axes',
      f'{tuple(axes)} names an axis that a slice does not have',
      'Use 0 (front-back), 1 (left-right), both or none',
    )
  return tuple(axes)


def _flips(key, axes: Sequence[int], p: float, rank: int):
  return jax.random.bernoulli(key, float(p), (rank,)) & jnp.array([axis in axes for axis in range(rank)])


def _signs(key, axes: Sequence[int], p: float):
  """(2,) the diagonal of a random mirror, to be multiplied entry by entry: accelerators round the factors of a dot."""
  return jnp.where(_flips(key, axes, p, 2), -1.0, 1.0)


def _none():
  return lambda key, image, label: (image, label)


def _paper(*, mirror_axes=(0, 1), p_mirror=0.5, max_angle_deg=30.0, p_rotate=1.0):
  axes = _axes(mirror_axes)
  _probability('p_mirror', p_mirror)
  _probability('p_rotate', p_rotate)
  _half_width('max_angle_deg', max_angle_deg)

  def sample(key, image, label):
    mirror_key, angle_key, choice_key = jax.random.split(key, 3)
    angle = jax.random.uniform(angle_key, (), minval=-max_angle_deg, maxval=max_angle_deg)
    angle = jnp.where(jax.random.bernoulli(choice_key, float(p_rotate)), angle, 0.0)
    return affine2d.resample(image, label, _signs(mirror_key, axes, p_mirror)[:, None] * affine2d.rotation(angle))

  return sample


def _released(*, p_flip=0.5, p_rotate=0.5):
  _probability('p_flip', p_flip)
  _probability('p_rotate', p_rotate)

  def sample(key, image, label):
    if label.shape[-1] != label.shape[-2]:
      raise InputError(
        f'slices of {label.shape[-2]} x {label.shape[-1]}',
        "quarter turns of 'released' need squares",
        "Prepare square slices, or use augment 'paper'",
      )
    flip_key, turn_key, axis_key, choice_key, angle_key = jax.random.split(key, 5)
    # Quarter turns from a table: cos(90 degrees) is not quite 0 in float32 and these must be exact permutations.
    turn = jnp.array([[[1, 0], [0, 1]], [[0, 1], [-1, 0]], [[-1, 0], [0, -1]], [[0, -1], [1, 0]]], jnp.float32)
    turn = turn[jax.random.randint(turn_key, (), 0, 4)]
    flip = jnp.array([[-1, 1], [1, -1]], jnp.float32)[jax.random.randint(axis_key, (), 0, 2)]
    angle = jax.random.randint(angle_key, (), -20, 20).astype(jnp.float32)
    angle = jnp.where(jax.random.bernoulli(choice_key, float(p_rotate)), angle, 0.0)
    matrix = jnp.where(jax.random.bernoulli(flip_key, float(p_flip)), turn * flip, affine2d.rotation(angle))
    return affine2d.resample(image, label, matrix, order=0)

  return sample


def _extended(
  *,
  max_angle_deg=20.0,
  scale=(0.85, 1.15),
  max_shift=0.05,
  gamma=(0.75, 1.33),
  contrast=(0.85, 1.15),
  brightness=0.08,
  mirror_axes=(),
  p_mirror=0.5,
):
  axes, scale, gamma = _axes(mirror_axes), _range('scale', scale, 0.0), _range('gamma', gamma, 0.0)
  contrast = _range('contrast', contrast, 0.0)
  _probability('p_mirror', p_mirror)
  for option, value in (('max_angle_deg', max_angle_deg), ('max_shift', max_shift), ('brightness', brightness)):
    _half_width(option, value)

  def sample(key, image, label):
    keys = jax.random.split(key, 7)
    angle = jax.random.uniform(keys[0], (), minval=-max_angle_deg, maxval=max_angle_deg)
    zoom = _log_uniform(keys[1], scale)
    shift = jax.random.uniform(keys[2], (2,), minval=-max_shift, maxval=max_shift) * jnp.array(label.shape[-2:])
    of = _draws(image)
    exponent, gain = _log_uniform(keys[3], gamma, of), _log_uniform(keys[4], contrast, of)
    offset = jax.random.uniform(keys[5], of, minval=-brightness, maxval=brightness)
    image = _intensity(image, exponent, gain, offset)
    matrix = _signs(keys[6], axes, p_mirror)[:, None] * affine2d.rotation(angle) / zoom
    return affine2d.resample(image, label, matrix, shift)

  return sample


def _volume(
  *,
  max_angle_deg=(30.0, 15.0, 15.0),
  p_rotate=1.0,
  scale=(0.85, 1.15),
  mirror_axes=(0, 1, 2),
  p_mirror=0.5,
  voxel_aspect=(1.0, 1.0, 1.0),
  gamma=(1.0, 1.0),
  contrast=(1.0, 1.0),
  brightness=0.0,
):
  scale, gamma, contrast = _range('scale', scale, 0.0), _range('gamma', gamma, 0.0), _range('contrast', contrast, 0.0)
  for option, value in (('max_angle_deg', max_angle_deg), ('voxel_aspect', voxel_aspect)):
    if not isinstance(value, Sequence) or len(value) != 3:
      raise InputError(f'augment option {option}', f'{value} is not one number per axis', 'Give three: z, y, x')
  for option, value in [('brightness', brightness), *(('max_angle_deg', angle) for angle in max_angle_deg)]:
    _half_width(option, value)
  if not all(0.0 < length < math.inf for length in voxel_aspect):
    raise InputError('augment option voxel_aspect', f'is {tuple(voxel_aspect)}', 'Give positive lengths: z, y, x')
  if not set(mirror_axes) <= {0, 1, 2}:
    raise InputError(
      'augment option mirror_axes',
      f'{tuple(mirror_axes)} names an axis that a volume does not have',
      'Use some of 0 (top-bottom), 1 (front-back), 2 (left-right), or none',
    )
  _probability('p_mirror', p_mirror)
  _probability('p_rotate', p_rotate)
  limits = np.array(max_angle_deg, np.float32)
  mirrors_only = (not any(max_angle_deg) or p_rotate == 0) and scale == (1.0, 1.0)

  def sample(key, image, label):
    if label.ndim != 3:
      raise InputError(
        'augment volume',
        f'samples of shape {label.shape} are not volumes',
        "Use augment 'paper' or 'extended' for slices",
      )
    keys = jax.random.split(key, 7)
    if gamma != (1.0, 1.0) or contrast != (1.0, 1.0) or brightness:
      of = _draws(image)
      offset = jax.random.uniform(keys[6], of, minval=-brightness, maxval=brightness)
      image = _intensity(image, _log_uniform(keys[4], gamma, of), _log_uniform(keys[5], contrast, of), offset)
    flips = _flips(keys[0], mirror_axes, p_mirror, 3)
    if mirrors_only:
      return affine3d.mirror(image, label, flips)
    angles = jax.random.uniform(keys[1], (3,), minval=-limits, maxval=limits)
    angles = jnp.where(jax.random.bernoulli(keys[2], float(p_rotate)), angles, 0.0)
    matrix = affine3d.rotation(angles, voxel_aspect) / _log_uniform(keys[3], scale)
    return affine3d.resample(image, label, jnp.where(flips, -1.0, 1.0)[:, None] * matrix)

  return sample


def _intensity(image, exponent, gain, offset):
  """gain * image ** exponent + offset in [0, 1]; before resampling, so that outside stays 0."""
  power = jnp.exp(exponent * jnp.log(jnp.maximum(image, 1e-8)))  # image ** exponent takes four times as long on a CPU
  return jnp.clip(gain * power + offset, 0.0, 1.0)


def _draws(image) -> tuple[int, ...]:
  """Shape of the random numbers of intensities: one for the sample, or one for each of several channels."""
  return () if image.shape[-1] == 1 else image.shape[-1:]


def _log_uniform(key, bounds: tuple[float, float], shape: tuple[int, ...] = ()):
  return jnp.exp(jax.random.uniform(key, shape, minval=math.log(bounds[0]), maxval=math.log(bounds[1])))


_VARIANTS = {'none': _none, 'paper': _paper, 'released': _released, 'extended': _extended, 'volume': _volume}


def make_augment(name: str, **options) -> Augment:
  """Builds an augmentation by name.

  Sample b of a batch uses fold_in(key, b) with b its row in the global batch, so the draw does not depend on how the
  batch is divided over devices.

  Args:
    name: one of
      'none': nothing is changed;
      'paper': section 3.1 of the paper, mirrors along both axes and a rotation;
      'released': the authors' code, with probability p_flip a random quarter turn and one mirror, else with probability
      p_rotate a rotation by an integer angle from -20 to 19, nearest neighbour for the image too;
      'extended': for few scans, rotation, scaling, shift, gamma, contrast and brightness;
      'volume': for 3D, mirrors along and rotations about all three axes, scaling.
    **options: with their defaults
      'paper': mirror_axes=(0, 1), p_mirror=0.5 for each axis, max_angle_deg=30, p_rotate=1;
      'released': p_flip=0.5, p_rotate=0.5;
      'extended': max_angle_deg=20, scale=(0.85, 1.15), max_shift=0.05 of the side, gamma=(0.75, 1.33),
      contrast=(0.85, 1.15), brightness=0.08, mirror_axes=(), p_mirror=0.5;
      'volume': max_angle_deg=(30, 15, 15) about z, y, x, p_rotate=1, scale=(0.85, 1.15), mirror_axes=(0, 1, 2),
      p_mirror=0.5, voxel_aspect=(1, 1, 1), the lengths of a voxel along z, y, x in any unit, and gamma, contrast and
      brightness as in 'extended', but off.
      Axis 0 of a slice is front-back, axis 1 left-right.

  Returns:
    (key, batch) -> batch with 'image' (B, *S, channels) float32 in [0, 1] and 'label' (B, *S) integer changed alike,
    shapes, dtypes and other entries kept. With S = (D, H, W) every slice of a volume gets the volume's one map. All
    channels get the same map; gamma, contrast and brightness are drawn for each channel.

  Raises:
    InputError: unknown name or option, or a value out of range.
  """
  if name not in _VARIANTS:
    raise InputError(
      f'augment {name!r}',
      'is not a known augmentation',
      f'{did_you_mean(name, _VARIANTS)}Use one of {", ".join(_VARIANTS)}.',
    )
  known = inspect.signature(_VARIANTS[name]).parameters
  for option in options:
    if option not in known:
      raise InputError(
        f'augment {name!r} option {option!r}',
        'is not a known option',
        f'{did_you_mean(option, known)}Use one of {", ".join(known)}.' if known else 'It takes no options.',
      )
  sample = _VARIANTS[name](**options)

  def augment(key, batch):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch['label'].shape[0]))
    image, label = jax.vmap(sample)(keys, batch['image'], batch['label'])
    return {**batch, 'image': image, 'label': label}

  return augment
