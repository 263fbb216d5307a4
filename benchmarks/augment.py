"""Benchmark of augmentation on the device against scipy: 24 images and label maps of 224 x 224, rotated.

  PYTHONPATH=. python benchmarks/augment.py

Prints images per second (best of several interleaved rounds) and the largest difference to scipy's linear images.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from conditions import measured
from scipy import ndimage

from afw_jax.training import affine2d, augment

BATCH, SIDE, ROUNDS = 24, 224, 7


def scipy_rotate(image, label, angles, order):
  return (
    np.stack([ndimage.rotate(i, a, reshape=False, order=order) for i, a in zip(image, angles)]),
    np.stack([ndimage.rotate(m, a, reshape=False, order=0) for m, a in zip(label, angles)]),
  )


def main():
  rng = np.random.default_rng(0)
  image = ndimage.gaussian_filter(rng.random((BATCH, SIDE, SIDE)), (0, 2, 2)).astype(np.float32)
  image = (image - image.min()) / np.ptp(image)
  label = np.kron(rng.integers(0, 9, (BATCH, 14, 14)), np.ones((16, 16), int)).astype(np.uint8)
  angles = rng.uniform(-30, 30, BATCH).astype(np.float32)
  batch = {'image': jnp.asarray(image)[..., None], 'label': jnp.asarray(label)}

  rotate = jax.jit(jax.vmap(lambda i, m, a: affine2d.resample(i, m, affine2d.rotation(a))))
  paper, extended = (jax.jit(augment.make_augment(name)) for name in ('paper', 'extended'))
  key = jax.random.key(0)
  jobs = {
    'scipy order 3 + 0 (the reference)': lambda: scipy_rotate(image, label, angles, 3),
    'scipy order 1 + 0': lambda: scipy_rotate(image, label, angles, 1),
    'scipy order 0 + 0': lambda: scipy_rotate(image, label, angles, 0),
    'rotation on the device': lambda: jax.block_until_ready(rotate(batch['image'], batch['label'], angles)),
    "make_augment('paper')": lambda: jax.block_until_ready(paper(key, batch)),
    "make_augment('extended')": lambda: jax.block_until_ready(extended(key, batch)),
  }
  results = {name: job() for name, job in jobs.items()}  # compiles
  seconds = {name: [] for name in jobs}
  for _ in range(ROUNDS):
    for name, job in jobs.items():
      start = time.perf_counter()
      job()
      seconds[name].append(time.perf_counter() - start)

  print(f'{BATCH} slices of {SIDE} x {SIDE}, {jax.devices()[0].platform}, best (median) of {ROUNDS} interleaved rounds')
  reference = min(seconds['scipy order 3 + 0 (the reference)'])
  for name, s in seconds.items():
    print(
      f'{name:36s} {1e3 * min(s):7.1f} ms ({1e3 * np.median(s):7.1f})  {BATCH / min(s):7.0f} images/s'
      f'  {reference / min(s):5.1f}x'
    )

  ours, ours_label = (np.asarray(a) for a in results['rotation on the device'])
  theirs, theirs_label = results['scipy order 1 + 0']
  ones = np.ones_like(image)
  interior = scipy_rotate(ones, label, angles, 1)[0] > 0.9999
  print(
    f'largest difference to scipy order 1 in the interior: {np.abs(ours[..., 0] - theirs)[interior].max():.1e}; '
    f'labels differ at {np.mean((ours_label != theirs_label)[interior]):.1e} of its pixels'
  )


if __name__ == '__main__':
  with measured('jax', 'scipy'):
    main()
