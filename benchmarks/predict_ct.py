"""Prediction of CT files against the usual loops in PyTorch: python benchmarks/predict_ct.py [--network unet unet3d].

From file to file, with the same weights: a folder of NIfTI scans in, label maps on the grid of the scans out. Both
sides are commands of their own, timed in turns with one scan and with several: the first number has everything that a
user waits for (start, imports, compilation), the difference is what a further scan takes.

unet    slices of 224 x 224. The peer is the test loop of TransUNet's code, from its description: each slice by scipy's
        zoom (order 3) to 224 x 224, through the network, the most probable class by zoom (order 0) back to 512 x 512.
        This package takes batches of slices, and interpolates probabilities.
unet3d  sliding windows of 64 x 128 x 128 that overlap by half, on a grid of 2 x 1.5 x 1.5 mm. The peer is nnU-Net's
        network with MONAI: sliding_window_inference, resampling before and after as trilinear interpolation, argmax.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import nibabel as nib
import numpy as np
from conditions import measured

HERE = pathlib.Path(__file__).resolve()
CLASSES, WINDOW = 9, (-125.0, 275.0)
SPACING_MM = (2.0, 1.5, 1.5)
PATCH = (64, 128, 128)
OPTIONS = {
  'unet': ['--config.data.size=(224, 224)', '--config.data.spacing_mm=()'],
  'unet3d': [
    '--config.data.size=()',
    f'--config.data.spacing_mm={SPACING_MM}',
    '--config.data.fit=crop_pad',
    f'--config.train.patch_size={PATCH}',
    '--config.eval.batch_size=1',
  ],
}


def write_scans(folder: pathlib.Path, count: int, shape: tuple[int, ...]) -> None:
  """Noisy scans (z, y, x) of 3 x 0.8 x 0.8 mm."""
  folder.mkdir()
  for i in range(count):
    values = np.random.default_rng(i).normal(50, 200, shape[::-1]).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag((0.8, 0.8, 3.0, 1.0))), folder / f'scan_{i}.nii.gz')


def network(name: str):
  import importlib

  import torch

  torch.manual_seed(0)
  return importlib.import_module(f'torch_{name}').make(CLASSES, image_size=PATCH).eval()


def predict_slices(model, values: np.ndarray) -> np.ndarray:
  """(x, y, z) windowed intensities -> labels, slice by slice, as TransUNet's test loop does."""
  import torch
  from scipy.ndimage import zoom

  labels = np.zeros(values.shape, np.uint8)
  height, width = values.shape[:2]
  for z in range(values.shape[2]):
    small = zoom(values[..., z], (224 / height, 224 / width), order=3)
    logits = model(torch.from_numpy(small)[None, None])
    found = torch.argmax(torch.softmax(logits, 1), 1)[0].numpy()
    labels[..., z] = zoom(found, (height / 224, width / 224), order=0)
  return labels


def predict_windows(model, values: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
  """(x, y, z) windowed intensities -> labels, by MONAI's sliding windows on a grid of `SPACING_MM`."""
  import torch
  from monai.inferers.utils import sliding_window_inference
  from torch.nn.functional import interpolate

  volume = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 1, 0)))[None, None]
  size = [round(n * s / t) for n, s, t in zip(volume.shape[2:], spacing[::-1], SPACING_MM)]
  image = interpolate(volume, size, mode='trilinear', align_corners=True)
  logits = sliding_window_inference(image, PATCH, 1, model, overlap=0.5, mode='gaussian')
  whole = interpolate(logits, volume.shape[2:], mode='trilinear', align_corners=True)
  return whole.argmax(1)[0].to(torch.uint8).numpy().transpose(2, 1, 0)


def peer(name: str, source: pathlib.Path, output: pathlib.Path) -> None:
  """What somebody writes with PyTorch, MONAI and nibabel."""
  import torch

  model = network(name)
  output.mkdir(exist_ok=True)
  with torch.inference_mode():
    for path in sorted(source.iterdir()):
      scan = nib.as_closest_canonical(nib.load(path))
      low, high = WINDOW
      values = (np.clip(scan.get_fdata(dtype=np.float32), low, high) - low) / (high - low)
      labels = (
        predict_slices(model, values) if name == 'unet' else predict_windows(model, values, scan.header.get_zooms())
      )
      nib.save(nib.Nifti1Image(labels, scan.affine), output / path.name)


def timed(command: list[str]) -> tuple[float, float]:
  """Seconds, and peak GiB, of a command."""
  start = time.perf_counter()
  child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
  assert child.stderr is not None
  said = child.stderr.read()
  _, status, usage = os.wait4(child.pid, 0)
  if status:
    sys.exit(said.decode()[-3000:])
  return time.perf_counter() - start, usage.ru_maxrss / 2**20


def compare(name: str, shape: tuple[int, ...], more: int, rounds: int) -> None:
  import torch

  with tempfile.TemporaryDirectory() as made:
    folder = pathlib.Path(made)
    write_scans(folder / 'one', 1, shape)
    write_scans(folder / 'several', 1 + more, shape)
    torch.save(network(name).state_dict(), folder / 'weights.pt')
    ours = [sys.executable, '-m', 'afw_jax.main']
    config = ['--config=synapse', f'--config.model.name={name}', '--config.data.window=transunet', *OPTIONS[name]]
    timed([*ours, '--mode=convert', *config, f'--input={folder / "weights.pt"}', f'--workdir={folder / "run"}'])
    found: dict[str, list[tuple[float, float, float]]] = {'this package': [], 'peer': []}
    for _ in range(rounds):
      for side in found:
        seconds, peak = [], 0.0
        for scans in ('one', 'several'):
          to = folder / f'{side}_{scans}'
          command = (
            [
              *ours,
              '--mode=predict',
              f'--workdir={folder / "run"}',
              f'--input={folder / scans}',
              f'--output={to}',
              '--overwrite',
            ]
            if side == 'this package'
            else [sys.executable, str(HERE), '--peer', name, str(folder / scans), str(to)]
          )
          s, gib = timed(command)
          seconds.append(s)
          peak = max(peak, gib)
        found[side].append((seconds[0], (seconds[1] - seconds[0]) / more, peak))
    best = {side: tuple(map(min, zip(*values))) for side, values in found.items()}
    for side, (first, further, peak) in best.items():
      print(f'| {name} | {side} | {first:.1f} | {further:.1f} | {peak:.2f} |')
    ratios = [ours / theirs for ours, theirs in zip(best['this package'], best['peer'])]
    print(f'| {name} | this package / peer | {ratios[0]:.2f} | {ratios[1]:.2f} | {ratios[2]:.2f} |', flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--network', nargs='+', default=list(OPTIONS), choices=OPTIONS)
  parser.add_argument('--shape', type=int, nargs=3, default=(96, 512, 512), help='z y x of each scan')
  parser.add_argument('--more', type=int, default=2, help='scans after the first')
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument('--peer', nargs=3, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.peer:
    peer(args.peer[0], *map(pathlib.Path, args.peer[1:]))
    return
  with measured('jax', 'torch', 'monai', 'scipy'):
    print(f'scans of {" x ".join(map(str, args.shape))}, {args.rounds} rounds in turns, the least of each\n')
    print('| network | side | first scan, s | each further scan, s | peak GiB |\n|---|---|---|---|---|')
    for name in args.network:
      compare(name, tuple(args.shape), args.more, args.rounds)


if __name__ == '__main__':
  main()
