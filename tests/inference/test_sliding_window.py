"""Sliding-window inference: weights, steps, the same result as on the whole volume, and bounded memory."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from afw_jax.errors import InputError
from afw_jax.inference.sliding_window import gaussian_weights, predict_windows, window_starts


@jax.jit
def pointwise(variables, image, window):
  """A 'network' that looks at single voxels: however windows are laid, each must come back as it is."""
  image = jnp.clip((image[..., 0].astype(jnp.float32) - window[:, 0, None, None, None]) / 100, 0, 1)
  return jnp.stack([1 - image, image * 0.25, image * 0.75], -1)


def volume(shape, seed=0):
  return np.random.default_rng(seed).integers(-50, 150, shape).astype(np.int16)


def gathered(image, **options):
  parts = list(predict_windows(options.pop('step', pointwise), {}, image, (0, 100), **{'batch_size': 4, **options}))
  firsts = [first for first, _ in parts]
  assert firsts == list(np.cumsum([0] + [len(p) for _, p in parts])[:-1])  # each slice once, in order
  return np.concatenate([p for _, p in parts])


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 700), st.integers(1, 200), st.floats(0, 0.999))
def test_windows_cover_the_axis_evenly_and_end_with_it(size, window, overlap):
  starts = window_starts(size, window, overlap)
  assert starts[0] == 0 and starts[-1] == max(size - window, 0)
  steps = np.diff(starts)
  assert (steps >= 1).all() and (steps <= max(window * (1 - overlap), 1) + 1).all() and (steps <= window).all()
  assert steps.size == 0 or np.ptp(steps) <= 1


def test_usual_steps():
  assert window_starts(110, 64, 0.5) == [0, 23, 46]  # as nnU-Net says of them
  assert window_starts(96, 96, 0.5) == [0] and window_starts(50, 96, 0.5) == [0]
  assert window_starts(192, 96, 0.0) == [0, 96] and window_starts(193, 96, 0.0) == [0, 48, 97]
  assert len(window_starts(512, 96, 0.5)) == 10


@pytest.mark.parametrize('side', [1, 2, 5, 16, 97])
def test_weights_are_the_gaussian_of_a_single_voxel(side):
  peak = np.zeros(side)
  peak[side // 2] = 1
  expected = scipy.ndimage.gaussian_filter(peak, side / 8, mode='constant')
  weights = gaussian_weights(side)
  np.testing.assert_allclose(weights, expected / expected.max(), atol=1e-6)
  assert weights.dtype == np.float32 and (weights[:, None, None] * weights[:, None] * weights > 0).all()


@pytest.mark.parametrize('window_size', [(8, 8, 8), (21, 30, 17), (32, 32, 32), (5, 40, 3), (7, 30, 17), (16, 9, 20)])
@pytest.mark.parametrize('overlap', [0, 0.5, 0.8])
def test_a_network_of_single_voxels_sees_no_windows(window_size, overlap):
  image = volume((21, 30, 17))
  expected = pointwise({}, image[None, ..., None], np.array([[0, 100]]))[0]
  np.testing.assert_allclose(gathered(image, window_size=window_size, overlap=overlap), expected, atol=1e-6)


@pytest.mark.parametrize('batch_size', [1, 2, 5, 100])
def test_the_batch_changes_nothing(batch_size):
  image = volume((20, 13, 14))
  options = dict(window_size=(8, 8, 8), overlap=0.6)
  np.testing.assert_allclose(gathered(image, batch_size=batch_size, **options), gathered(image, **options), atol=1e-6)


@pytest.mark.parametrize('shape', [(9, 11, 13), (4, 20, 6), (9, 5, 13), (1, 1, 1)])
def test_windows_are_weighted_by_place(shape):
  """Against the plain way: every window's prediction and weight added into arrays of the whole (filled) volume."""
  size, image = (6, 7, 8), volume(shape)

  @jax.jit
  def step(variables, image, window):  # depends on where in the window a voxel is, and on the filling
    ramp = sum(jnp.arange(n).reshape([n if i == j else 1 for j in range(3)]) * 0.1**i for i, n in enumerate(size))
    return jnp.stack([image[..., 0] * 0.01, ramp + 0 * image[..., 0] + image.min((1, 2, 3))[..., None, None]], -1)

  spare = [max(n - m, 0) for n, m in zip(size, shape)]
  filled = np.pad(image, [(s // 2, s - s // 2) for s in spare])  # the window begins at 0
  sums, total = np.zeros((*filled.shape, 2)), np.zeros(filled.shape)
  weight = gaussian_weights(6)[:, None, None] * gaussian_weights(7)[:, None] * gaussian_weights(8)
  for z in window_starts(shape[0], 6, 0.5):
    for y in window_starts(shape[1], 7, 0.5):
      for x in window_starts(shape[2], 8, 0.5):
        at = slice(z, z + 6), slice(y, y + 7), slice(x, x + 8)
        sums[at] += weight[..., None] * np.asarray(step({}, filled[at][None, ..., None], None)[0])
        total[at] += weight
  expected = (sums / total[..., None])[tuple(slice(s // 2, s // 2 + m) for s, m in zip(spare, shape))]
  np.testing.assert_allclose(gathered(image, window_size=size, step=step), expected, rtol=1e-5, atol=1e-5)


def test_one_compilation_for_volumes_of_many_sizes():
  step = jax.jit(lambda v, image, window: pointwise(v, image, window))
  for shape in ((9, 20, 9), (30, 17, 16), (11, 10, 12)):
    gathered(volume(shape), window_size=(8, 8, 8), step=step)
  assert step._cache_size() == 1


@pytest.mark.parametrize(
  'bad, word',
  [
    (dict(overlap=1.0), 'overlap'),
    (dict(overlap=-0.1), 'overlap'),
    (dict(overlap=float('nan')), 'overlap'),
    (dict(window_size=(8, 8)), 'window_size'),
    (dict(window_size=(8, 0, 8)), 'window_size'),
  ],
)
def test_senseless_windows(bad, word):
  with pytest.raises(InputError, match=word):
    gathered(volume((9, 9, 9)), **{'window_size': (8, 8, 8), **bad})


MEMORY = """
import resource, jax, jax.numpy as jnp, numpy as np
from afw_jax.inference import segmentation
options = segmentation.Options((32, 32, 32), batch_size=2)
depth, side, classes = 320, 128, 9  # all probabilities at once: 189 MB, with their sums and the source grid's 566 MB
image = np.zeros((depth, side, side), np.int16)
step = jax.jit(lambda v, x, w: jax.nn.softmax(x.astype(jnp.float32) * jnp.arange(classes)))
matrices = [np.eye(n) for n in image.shape]
segmentation.segment(step, {}, image[:40], (0, 1), [np.eye(40), *matrices[1:]], options)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
segmentation.segment(step, {}, image, (0, 1), matrices, options)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_does_not_grow_with_the_number_of_slices():
  done = subprocess.run([sys.executable, '-c', MEMORY], capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-2000:]
  assert int(done.stdout) < 80  # MB, beside what 40 slices took
