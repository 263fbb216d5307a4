"""Synthetic abdominal CT: eight organs of realistic size, position and intensity, different in every case."""

import os
from collections.abc import Sequence
from concurrent import futures

import numpy as np
from scipy import ndimage

from afw_jax.data import resources
from afw_jax.data.formats import volumes
from afw_jax.data.formats.geometry import Geometry
from afw_jax.data.phantom.anatomy import ORGANS, draw
from afw_jax.errors import InputError
from afw_jax.system.atomic_files import write_json

AXIS_CODES = ('RAS', 'LPS', 'LAS', 'RPI', 'LPI', 'PIR', 'SAL', 'ARS')  # orientations of the files, used in turn


def _waves(rng, shape, spacing_mm, length_mm: float, count: int):
  """(count, N) smooth random fields of unit standard deviation: sums of cosines with wavelengths >= length_mm."""
  axes = []
  for n, step in zip(shape, spacing_mm):
    orders = np.arange(1 + max(1, int(2 * n * step / length_mm)))  # half waves over the volume
    at = (np.arange(n) + 0.5) / n
    axes.append(np.cos(np.pi * orders * at[:, None]).astype(np.float32))
  weights = rng.normal(size=(count, *[axis.shape[1] for axis in axes])).astype(np.float32)
  weights[:, 0, 0, 0] = 0
  fields = np.einsum('nijk,zi,yj,xk->nzyx', weights, *axes, optimize=True).reshape(count, -1)
  return fields / fields.std(1, keepdims=True)


def make_phantom(
  seed, shape: tuple[int, int, int] = (32, 120, 120), spacing_mm: tuple[float, float, float] = (7.0, 3.0, 3.0)
) -> tuple[np.ndarray, np.ndarray]:
  """Makes one synthetic portal-venous CT of the abdomen; a pure function of its arguments.

  Args:
    seed: anything `numpy.random.default_rng` takes.
    shape: (D, H, W) voxels; a field of view of about 220 x 300 x 370 mm holds the whole anatomy.
    spacing_mm: voxel size (z, y, x).

  Returns:
    ((D, H, W) int16 HU, (D, H, W) uint8 labels: 0 background, i = ORGANS[i - 1]) in the internal orientation: z towards
    Superior, y towards Posterior, x towards Left).
  """
  rng, noise_rng = np.random.default_rng(seed).spawn(2)
  scale = rng.uniform(0.94, 1.04) * rng.uniform(0.97, 1.03, 3)
  offset = np.array([0, 0, 20]) + rng.normal(0, 1, 3) * (5, 5, 4)
  turn = np.deg2rad(rng.uniform(-6, 6))
  axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * step for n, step in zip(shape, spacing_mm)]
  z, y, x = [a.ravel() for a in np.meshgrid(*axes, indexing='ij')]
  p = np.stack([np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y, z])
  p = p / scale[:, None] + offset[:, None]
  # Breathing, build and posture: a smooth deformation of the whole body, and a smaller one of every surface.
  p += 4.0 * _waves(rng, shape, spacing_mm, 220, 3) + 1.2 * _waves(rng, shape, spacing_mm, 70, 3)
  hu, label = draw(rng, p.astype(np.float32), _waves(rng, shape, spacing_mm, 28, 3))
  image = ndimage.gaussian_filter(hu.reshape(shape), (0.35, 0.55, 0.55))  # point spread of the scanner: partial volumes
  grain = ndimage.gaussian_filter(noise_rng.normal(size=shape).astype(np.float32), (0, 0.6, 0.6))
  image += rng.uniform(7, 15) * grain / grain.std()
  return np.clip(np.rint(image), -1024, 3071).astype(np.int16), label.reshape(shape)


def native_geometry(shape, spacing_mm, axis_codes: str, centre_ras_mm=(0.0, 0.0, 0.0)) -> Geometry:
  """The voxel grid of a file with the given orientation.

  Args:
    shape: (D, H, W) of the array in the internal orientation.
    spacing_mm: voxel size (z, y, x).
    axis_codes: direction of each axis of the file, one letter of each pair L/R, P/A, S/I, such as 'RAS'.
    centre_ras_mm: RAS coordinates of the centre of the volume.

  Returns:
    The `Geometry` of the file.
  """
  affine, native = np.eye(4), []
  for axis, code in enumerate(axis_codes):
    world = ['LR', 'PA', 'IS'].index(next(pair for pair in ('LR', 'PA', 'IS') if code in pair))
    native.append(int(shape[2 - world]))
    affine[:3, axis] = 0
    affine[world, axis] = spacing_mm[2 - world] * (1 if code in 'RAS' else -1)
  affine[:3, 3] = np.asarray(centre_ras_mm) - affine[:3, :3] @ ((np.array(native) - 1) / 2)
  return Geometry(shape=tuple(native), affine=tuple(tuple(float(v) for v in row) for row in affine))


def write_phantoms(
  folder: str,
  *,
  num_cases: int = 23,
  num_val: int = 3,
  num_test: int = 4,
  num_new: int = 1,
  seed: int = 0,
  shape: tuple[int, int, int] = (32, 120, 120),
  matrix_jitter: int = 8,
  fov_mm: tuple[float, float] = (340.0, 365.0),
  slice_mm: tuple[float, float] = (6.5, 7.8),
  axis_codes: Sequence[str] = AXIS_CODES,
) -> list[str]:
  """Writes a data set of synthetic scans for the data set 'folder': images/, labels/ and dataset.json.

  Args:
    folder: where to write; created if missing. Files of the same names are replaced.
    num_cases: number of labelled cases.
    num_val: validation cases, before the test cases.
    num_test: test cases, the last ones.
    num_new: further scans without labels, in imagesTs/, to predict on.
    seed: of the data set; case i is a pure function of (seed, i).
    shape: (D, H, W) voxels in the internal orientation, before jitter.
    matrix_jitter: H varies by up to this many voxels, W in proportion.
    fov_mm: range of the in-plane field of view.
    slice_mm: range of the slice spacing.
    axis_codes: orientations of the files, used in turn.

  Returns:
    The case ids, in order.

  Raises:
    InputError: no training case is left, or an orientation is not valid.
  """
  if num_cases - num_val - num_test < 1 or min(num_val, num_test) < 0:
    raise InputError(
      'num_cases',
      f'{num_cases} cases leave none to train on after {num_val} validation and {num_test} test cases',
      'Ask for more cases',
    )
  for code in axis_codes:
    if sorted(code.translate(str.maketrans('RAI', 'LPS'))) != ['L', 'P', 'S']:
      raise InputError(
        'axis_codes', f'{code!r} is not an orientation', "Use one letter of each of L/R, P/A, S/I: 'RAS'"
      )
  ids = [f'phantom_{i:03d}' for i in range(num_cases)]
  for sub in ('images', 'labels', 'imagesTs')[: 3 if num_new else 2]:
    os.makedirs(os.path.join(folder, sub), exist_ok=True)

  def write(i):
    rng = np.random.default_rng((seed, i))
    side = shape[1] + (matrix_jitter and int(rng.integers(-matrix_jitter, matrix_jitter + 1)))
    grid = (shape[0], side, side * shape[2] // shape[1])
    in_plane = round(rng.uniform(*fov_mm) / max(grid[1:]), 3)
    spacing_mm = (round(rng.uniform(*slice_mm), 2), in_plane, in_plane)
    centre = np.rint(rng.uniform(-60, 60, 3))
    geometry = native_geometry(grid, spacing_mm, axis_codes[i % len(axis_codes)], centre)
    image, label = make_phantom((seed, i), grid, spacing_mm)
    if i >= num_cases:
      volumes.write_image(os.path.join(folder, 'imagesTs', f'new_{i - num_cases:03d}.nii.gz'), image, geometry)
      return
    volumes.write_image(os.path.join(folder, 'images', f'{ids[i]}.nii.gz'), image, geometry)
    volumes.write_label(os.path.join(folder, 'labels', f'{ids[i]}.nii.gz'), label, geometry)

  with futures.ThreadPoolExecutor(min(4, resources.cpu_count())) as pool:  # numpy and zlib release the GIL
    list(pool.map(write, range(num_cases + num_new)))
  first_val, first_test = num_cases - num_val - num_test, num_cases - num_test
  description = {
    'name': 'phantom',
    'channel_names': {'0': 'CT'},
    'labels': {'background': 0, **{organ: i + 1 for i, organ in enumerate(ORGANS)}},
    'numTraining': num_cases,
    'file_ending': '.nii.gz',
    'split': {'train': ids[:first_val], 'val': ids[first_val:first_test], 'test': ids[first_test:]},
  }
  write_json(os.path.join(folder, 'dataset.json'), description)  # last: an unfinished folder has none
  return ids
