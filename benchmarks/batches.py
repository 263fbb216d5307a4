"""Slices per second of the input pipeline on one core: PYTHONPATH=. taskset -c 0 python benchmarks/batches.py

Writes 1000 cases of 10 slices (1.5 GB) to the temporary folder, and reads them in random order from the page cache.
"""

import argparse
import tempfile
import time

import numpy as np
from conditions import measured

from afw_jax.data import pipeline, resources, store


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--cases', type=int, default=1000)
  parser.add_argument('--slices', type=int, default=10, help='of each case')
  parser.add_argument('--size', type=int, default=224)
  parser.add_argument('--batch', type=int, default=24)
  parser.add_argument('--seconds', type=float, default=10)
  args = parser.parse_args()
  resources.raise_open_files()
  rng = np.random.default_rng(0)
  with tempfile.TemporaryDirectory() as folder:
    ids = [f'case_{i:04d}' for i in range(args.cases)]
    for case_id in ids:
      image = rng.integers(-1000, 1000, (args.slices, args.size, args.size), np.int16)
      label = (image % 9).astype(np.uint8)
      arrays = {'image': image, 'label': label, 'native_label': label[:1], 'foreground': np.zeros((0, 4), np.int32)}
      store.write_case(folder, case_id, arrays, {})
    start = time.perf_counter()
    source = pipeline.SliceSource(folder, ids, dict.fromkeys(ids, (-125.0, 275.0)))
    opened = time.perf_counter() - start
    batches = pipeline.train_batches(source, batch_size=args.batch, seed=0)
    for _ in range(-(-len(source) // args.batch)):  # an epoch: every case is open
      next(batches)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < args.seconds:
      count += len(next(batches)['index'])
    rate = count / (time.perf_counter() - start)
    batches.close()
  print(f'{args.cases} cases x {args.slices} slices of {args.size}^2: opened in {opened:.1f} s, {rate:,.0f} slices/s')


if __name__ == '__main__':
  with measured('grain', 'numpy'):
    main()
