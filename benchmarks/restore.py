"""Benchmark of label maps on the scan's grid from probabilities on the working grid: python benchmarks/restore.py.

9 classes, from 224 x 224 (or a 3D grid) to 512 x 512. In turns: this package as it predicts on a CPU (sums of
neighbours, no probability written on the scan's grid), its products of matrices (on accelerators), and where PyTorch is
installed its interpolate (bilinear or trilinear, aligned corners) and argmax, eight slices or the volume at a time.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from conditions import measured

from afw_jax.data import resample
from afw_jax.inference import restoration

CLASSES = 9
CASES = (((64, 512, 512), (64, 224, 224)), ((148, 512, 512), (96, 160, 160)))


@jax.jit
def by_products(slab):
  return jnp.argmax(restoration._by_products(slab), -1).astype(jnp.uint8)


def ours(probabilities, matrices, restore):
  along = [jax.device_put(restoration.interpolation(matrix)) for matrix in matrices[1:]]
  blocks = restoration.blocks(iter([(0, probabilities)]), matrices[0])
  parts = [np.asarray(restore(restoration.Slab(b.slices, b.along_z, *along)))[: b.count] for b in blocks]
  return np.concatenate(parts)


def torchs(probabilities, native):
  import torch

  with torch.inference_mode():
    channels = torch.from_numpy(np.array(probabilities)).permute(0, 3, 1, 2)
    if native[0] == len(channels):
      resized = lambda part: torch.nn.functional.interpolate(part, native[1:], mode='bilinear', align_corners=True)
      return torch.cat([resized(part).argmax(1).to(torch.uint8) for part in channels.split(8)]).numpy()
    volume = channels.permute(1, 0, 2, 3)[None]
    whole = torch.nn.functional.interpolate(volume, native, mode='trilinear', align_corners=True)
    return whole.argmax(1)[0].to(torch.uint8).numpy()


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--repeat', type=int, default=3)
  args = parser.parse_args()
  print(f'best of {args.repeat} in turns')
  print(
    '| working grid | scan | this package s | products s | PyTorch s | labels that differ |\n|---|---|---|---|---|---|'
  )
  for native, working in CASES:
    matrices = resample.restore_matrices(
      resample.make_resampling(native, (3.0, 0.8, 0.8), size=working, spacing=(None,) * 3)
    )
    drawn = np.random.default_rng(0).random((*working, CLASSES), np.float32)
    probabilities = jnp.asarray(drawn)
    forms = {
      'ours': lambda: ours(probabilities, matrices, lambda s: restoration.restore([s], keep_probabilities=False)[0]),  # noqa: B023
      'products': lambda: ours(probabilities, matrices, by_products),  # noqa: B023
      'torch': lambda: torchs(drawn, native),  # noqa: B023
    }
    best, labels = dict.fromkeys(forms, float('inf')), {}
    for turn in range(args.repeat + 1):  # the first compiles
      for name, form in forms.items():
        start = time.perf_counter()
        try:
          labels[name] = form()
        except ImportError:
          continue
        best[name] = min(best[name], time.perf_counter() - start) if turn else float('inf')
    differ = ', '.join(f'{np.mean(labels["ours"] != other):.1e}' for n, other in labels.items() if n != 'ours')
    print(f'| {working} | {native} | {best["ours"]:.2f} | {best["products"]:.2f} | {best["torch"]:.2f} | {differ} |')


if __name__ == '__main__':
  with measured('jax', 'torch'):
    main()
