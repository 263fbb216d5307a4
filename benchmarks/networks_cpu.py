"""Speed of the networks on a CPU against PyTorch: forward pass and training step with the same weights.

  PYTHONPATH=. python benchmarks/networks_cpu.py [--network unet unetr] [--batch 4] [--rounds 3] [--side 224]

One input channel, nine classes, float32; the training step is forward with batch statistics, cross-entropy + Dice,
backward, SGD with momentum. Outputs are compared before anything is timed, and both sides are timed in turns, each in a
process of its own with the settings that its users have. The PyTorch networks are MONAI's UNETR, nnU-Net's U-Net and,
for the others, networks written from the published descriptions, with the keys of the reference implementations.
"""

import argparse
import importlib.util
import statistics
import sys

import numpy as np
from conditions import measured
from network_sides import CLASSES, LAYOUTS, Side

# network -> sides of the image, batch
WORK = {
  'unet': ((224, 224), 4),
  'unetpp': ((224, 224), 4),
  'transunet': ((224, 224), 4),
  'vatransunet': ((224, 224), 4),
  'unet3d': ((64, 128, 128), 1),
  'unetr': ((96, 96, 96), 1),
  'unetrpp': ((64, 128, 128), 1),
}


def make_sides(network: str, shape: tuple[int, ...]) -> dict[str, Side]:
  """Name -> process of each side, ours first; all have the weights that PyTorch draws."""
  theirs = {name: Side(name, network, shape) for name in LAYOUTS}
  return {'ours': Side('ours', network, shape, next(iter(theirs.values())).state), **theirs}


def check_equal(sides: dict, image, label) -> None:
  """Asserts equal logits, and equal losses over two training steps: otherwise the timings would not be comparable."""
  logits = {name: side.ask('forward', image, label)[1] for name, side in sides.items()}
  losses = {name: [side.ask('train', image, label)[1] for _ in range(2)] for name, side in sides.items()}
  for name in sides:
    error = np.abs(logits[name] - logits['ours']).max() / logits['ours'].std()
    assert error < 5e-3, f'{name}: logits differ by {error:.1e} of their standard deviation'
    assert np.allclose(losses[name], losses['ours'], rtol=2e-3), f'{name}: losses {losses[name]} != {losses["ours"]}'


def measure(sides: dict, what: str, image, label, rounds: int) -> dict[str, list[float]]:
  """Seconds per call and side; the sides take turns, so that a busy moment of the machine affects all of them."""
  seconds = {name: [] for name in sides}
  for done in range(rounds + 1):  # the first round warms up
    for name, side in sides.items():
      side.ask(what, image, label)  # PyTorch's threads wait actively after the last call
      if done:
        seconds[name].append(side.ask(what, image, label)[0])
  return seconds


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--network', nargs='+', default=list(WORK), choices=list(WORK))
  parser.add_argument('--batch', type=int, nargs='+', help='batch sizes; by default 4 in 2D, 1 in 3D')
  parser.add_argument('--rounds', type=int, default=3, help='timed rounds')
  parser.add_argument(
    '--side', type=int, nargs='+', help='sides of the image; by default 224 224, 96 96 96 or 64 128 128'
  )
  args = parser.parse_args()

  print(f'{args.rounds} rounds of two calls, the second of which counts\n')
  print(
    '| network | work | side | median s | min s | ours / it (median) | ours / it (min) |\n|---|---|---|---|---|---|---|'
  )
  for network in args.network:
    shape, usual_batch = WORK[network]
    shape = tuple(args.side or shape)
    sides = make_sides(network, shape)
    rng = np.random.default_rng(0)
    for i, batch in enumerate(args.batch or [usual_batch]):
      image = rng.random((batch, *shape, 1), dtype=np.float32)
      label = rng.integers(0, CLASSES, (batch, *shape))
      if i == 0:
        check_equal(sides, image, label)
      for what in ('forward', 'train'):
        seconds = measure(sides, what, image, label, args.rounds)
        median = {name: statistics.median(s) for name, s in seconds.items()}
        best = {name: min(s) for name, s in seconds.items()}
        for name in sides:
          ratios = f'{median["ours"] / median[name]:.2f} | {best["ours"] / best[name]:.2f}'
          work = f'{what} {" x ".join(map(str, (batch, *shape)))}'
          print(f'| {network} | {work} | {name} | {median[name]:.3f} | {best[name]:.3f} | {ratios} |', flush=True)
    for side in sides.values():
      side.end()


if __name__ == '__main__':
  if importlib.util.find_spec('torch') is None:
    sys.exit(
      'PyTorch, which this compares with, is not installed: pip install -r benchmarks/requirements.txt '
      '(best in a virtual environment of its own, together with requirements.txt)'
    )
  with measured('jax', 'torch', 'monai'):
    main()
