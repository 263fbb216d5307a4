"""Benchmark of resampling to the working grid against scipy.ndimage.zoom: python benchmarks/prepare.py.

Both resample 512 x 512 slices to 1 mm (358 x 358 at 0.7 mm) and to 224 x 224, images cubic or linear, labels nearest;
scipy slice by slice (its whole-volume call is slower). One core each; rounds are interleaved, and the best counts.
"""

import argparse
import os
import time

os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # one core, as in the worker processes of --mode=prepare

import numpy as np  # noqa: E402
import scipy.ndimage  # noqa: E402
from conditions import measured  # noqa: E402

from afw_jax.data import resample  # noqa: E402


def scipy_zoom(volume: np.ndarray, sizes: list[int], order: int) -> np.ndarray:
  for size in sizes:
    volume = np.stack([scipy.ndimage.zoom(plane, size / plane.shape[0], order=order) for plane in volume])
  return volume


def best(function, best_so_far: float):
  start = time.perf_counter()
  result = function()
  return result, min(best_so_far, time.perf_counter() - start)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--slices', type=int, default=150)
  parser.add_argument('--repeat', type=int, default=3)
  args = parser.parse_args()
  noise = np.random.default_rng(0).normal(size=(args.slices, 512, 512))
  image = scipy.ndimage.gaussian_filter(noise, (0, 3, 3)).astype(np.float32)
  image = image * (500 / image.std())
  label = np.clip(image / 250, 0, 8).astype(np.uint8)
  cases = (
    ('0.7 -> 1 mm: 358', (None, None), (None, 1.0, 1.0), [358]),
    ('512 -> 224', (224, 224), (None, None, None), [224]),
    ('0.7 -> 1 mm -> 224', (224, 224), (None, 1.0, 1.0), [358, 224]),
  )
  print(f'{args.slices} x 512 x 512, best of {args.repeat}; range of the image {np.ptp(image):.0f}')
  print('| work | scipy.ndimage.zoom s | afw_jax s | times faster | largest difference |\n|---|---|---|---|---|')
  for name, size, spacing, sizes in cases:
    resampling = resample.make_resampling(image.shape, (3, 0.7, 0.7), size=size, spacing=spacing)
    for order, volume in ((3, image), (1, image), (0, label)):
      ours = theirs = float('inf')
      for _ in range(args.repeat):
        a, ours = best(lambda v=volume, p=resampling, o=order: resample.to_working(v, p, o), ours)
        b, theirs = best(lambda v=volume, s=sizes, o=order: scipy_zoom(v, s, o), theirs)
      worst = np.abs(a.astype(np.float64) - b).max()
      print(f'| {name}, order {order} | {theirs:.3f} | {ours:.3f} | {theirs / ours:.1f} | {worst:.1e} |')


if __name__ == '__main__':
  with measured('numpy', 'scipy', 'torch'):
    main()
