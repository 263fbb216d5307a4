"""Speed of the scores: eight organs in one volume, against scipy's distance transform on crops and medpy on volumes.

  python benchmarks/metrics.py [--shape 150 512 512] [--repeats 3] [--medpy 8]

medpy is not a dependency: run this with any Python that has numpy, scipy and medpy, and with PYTHONPATH=.
"""

import argparse
import time

import numpy as np
from conditions import measured
from scipy import ndimage

from afw_jax.metrics import score_case

SPACING_MM = (3.0, 0.7, 0.7)
# centre and half axes as fractions of the volume: roughly an abdomen, the first as large as a big liver
ORGANS = {
  'liver': ((0.55, 0.45, 0.30), (0.30, 0.22, 0.18)),
  'spleen': ((0.50, 0.55, 0.75), (0.16, 0.12, 0.08)),
  'kidney_right': ((0.40, 0.62, 0.35), (0.16, 0.07, 0.07)),
  'kidney_left': ((0.40, 0.62, 0.65), (0.16, 0.07, 0.07)),
  'gallbladder': ((0.55, 0.40, 0.45), (0.07, 0.05, 0.04)),
  'pancreas': ((0.50, 0.50, 0.50), (0.07, 0.06, 0.14)),
  'aorta': ((0.50, 0.60, 0.50), (0.45, 0.03, 0.03)),
  'stomach': ((0.60, 0.40, 0.60), (0.15, 0.12, 0.12)),
}
LABELS = {organ: i for i, organ in enumerate(ORGANS, 1)}


def ellipsoids(shape: tuple[int, ...], *, jitter: float = 0.0, seed: int = 0) -> np.ndarray:
  """(D, H, W) uint8 labels of eight ellipsoids; `jitter` varies centres and sizes by about that share of it."""
  rng = np.random.default_rng(seed)
  labels = np.zeros(shape, np.uint8)
  for organ, (centre, radius) in ORGANS.items():
    centre = np.add(centre, jitter * rng.uniform(-1, 1, 3)) * shape
    radius = np.multiply(radius, 1 + 6 * jitter * rng.uniform(-1, 1, 3)) * shape
    box = tuple(slice(max(0, int(c - r)), int(c + r) + 2) for c, r in zip(centre, radius))
    grid = np.ogrid[tuple(slice(b.start, min(b.stop, n)) for b, n in zip(box, shape))]
    labels[box][sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radius)) <= 1] = LABELS[organ]
  return labels


def by_edt_on_crops(pred: np.ndarray, true: np.ndarray) -> dict[str, float]:
  """Pooled HD95 by two distance transforms on the bounding box of each organ."""
  boxes = [ndimage.find_objects(a) for a in (pred, true)]
  out = {}
  for organ, i in LABELS.items():
    box = tuple(slice(min(p.start, t.start), max(p.stop, t.stop)) for p, t in zip(boxes[0][i - 1], boxes[1][i - 1]))
    p, t = (a[box] == i for a in (pred, true))
    p, t = p & ~ndimage.binary_erosion(p), t & ~ndimage.binary_erosion(t)
    to_t, to_p = (ndimage.distance_transform_edt(~m, sampling=SPACING_MM) for m in (t, p))
    out[organ] = float(np.percentile(np.concatenate([to_t[p], to_p[t]]), 95))
  return out


def by_medpy(pred: np.ndarray, true: np.ndarray, organs: list[str]) -> dict[str, float]:
  """Pooled HD95 by medpy on the whole volume, as published evaluation scripts call it."""
  from medpy.metric.binary import hd95

  return {organ: float(hd95(pred == LABELS[organ], true == LABELS[organ], voxelspacing=SPACING_MM)) for organ in organs}


def timed(function, *arguments):
  start = time.perf_counter()
  result = function(*arguments)
  return result, time.perf_counter() - start


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--shape', type=int, nargs=3, default=(150, 512, 512), help='z y x')
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--medpy', type=int, default=0, help='organs to time with medpy (about 20 s each); 0 = none')
  options = parser.parse_args()
  true, pred = ellipsoids(options.shape), ellipsoids(options.shape, jitter=0.01, seed=1)
  print(f'shape {tuple(options.shape)}, spacing {SPACING_MM} mm, one thread used')

  ours, edt = [], []
  for _ in range(options.repeats):  # in turns, so that noise of the machine affects both
    scores, seconds = timed(lambda: score_case(pred, true, spacing_mm=SPACING_MM, labels=LABELS))
    ours.append(seconds)
    expected, seconds = timed(by_edt_on_crops, pred, true)
    edt.append(seconds)
  worst = max(abs(scores[o]['hd95_pooled_mm'] - expected[o]) for o in LABELS)
  print(f'afw_jax   all six scores, eight organs   {np.median(ours):8.2f} s   (median of {options.repeats})')
  print(f'scipy     EDT on crops, HD95 only        {np.median(edt):8.2f} s   max difference {worst:.1e} mm')
  if options.medpy:
    organs = list(LABELS)[: options.medpy]
    expected, seconds = timed(by_medpy, pred, true, organs)
    worst = max(abs(scores[o]['hd95_pooled_mm'] - expected[o]) for o in organs)
    done = f'for {len(organs)} organ(s), max difference {worst:.1e} mm'
    print(f'medpy     whole volume, HD95 only        {seconds:8.2f} s   {done}')


if __name__ == '__main__':
  with measured('numpy', 'scipy', 'medpy'):
    main()
