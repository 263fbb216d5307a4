"""Speed of the networks on a CPU against PyTorch: forward pass and training step with the same weights.

  python benchmarks/networks_cpu.py [--network unet unetr] [--batch 4] [--rounds 3] [--side 224]

One input channel, nine classes, float32; the training step is forward with batch statistics, cross-entropy + Dice,
backward, SGD with momentum. Outputs are compared before anything is timed, and both sides are timed in turns. The
PyTorch networks are MONAI's UNETR, nnU-Net's U-Net and, for the others, networks written from the published
descriptions, with the keys of the reference implementations.
"""

import argparse
import functools
import importlib
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from afw_jax.distributed.xla_flags import set_cpu_flags  # noqa: E402

FLAG = set_cpu_flags()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from conditions import measured  # noqa: E402
from peers import MOMENTUM, RATE, SAME_WORK, loss_torch, main_head, without_dropout  # noqa: E402

from afw_jax import models  # noqa: E402
from afw_jax.weights import convert  # noqa: E402

try:
  import torch
except ImportError:
  sys.exit(
    'PyTorch, which this compares with, is not installed: pip install -r benchmarks/requirements.txt '
    '(best in a virtual environment of its own, together with requirements.txt)'
  )

CLASSES = 9
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


class JaxSide:
  """A Linen network and its state; `forward` and `train` run one step and wait for the result."""

  def __init__(self, model, variables):
    self.model, self.variables, self.tx = model, variables, optax.sgd(RATE, MOMENTUM)
    self.trace = self.tx.init(variables['params'])
    self.predict = jax.jit(lambda variables, image: main_head(model.apply(variables, image)))
    self.step = jax.jit(self._step, donate_argnums=(0, 1))

  def _step(self, variables, trace, image, label):
    def loss_of(params):
      logits, updates = self.model.apply({**variables, 'params': params}, image, train=True, mutable=['batch_stats'])
      return loss_jax(main_head(logits), label), updates

    (loss, updates), grads = jax.value_and_grad(loss_of, has_aux=True)(variables['params'])
    moves, trace = self.tx.update(grads, trace)
    return {'params': optax.apply_updates(variables['params'], moves), **updates}, trace, loss

  def forward(self, image, label):
    return np.asarray(self.predict(self.variables, image))

  def train(self, image, label):
    self.variables, self.trace, loss = self.step(self.variables, self.trace, image, label)
    return float(loss)


class TorchSide:
  """The PyTorch network in one memory layout."""

  def __init__(self, model, layout):
    self.layout, self.model = layout, model
    self.model.to(memory_format=layout)
    self.tx = torch.optim.SGD(self.model.parameters(), lr=RATE, momentum=MOMENTUM)

  def _tensors(self, image, label):
    image = torch.from_numpy(np.moveaxis(image, -1, 1)).contiguous(memory_format=self.layout)
    return image, torch.from_numpy(label).long()

  def forward(self, image, label):
    self.model.eval()
    with torch.inference_mode():
      return np.moveaxis(main_head(self.model(self._tensors(image, label)[0])).numpy(), 1, -1)

  def train(self, image, label):
    self.model.train()
    image, label = self._tensors(image, label)
    self.tx.zero_grad(set_to_none=True)
    loss = loss_torch(main_head(self.model(image)), label)
    loss.backward()
    self.tx.step()
    return float(loss.detach())


def loss_jax(logits, label):
  truth, space = jax.nn.one_hot(label, CLASSES), tuple(range(label.ndim))
  log_p = jax.nn.log_softmax(logits)
  p = jnp.exp(log_p)
  dice = (2 * (p * truth).sum(space) + 1e-5) / ((p + truth).sum(space) + 1e-5)
  return 1 - dice.mean() - (truth * log_p).sum(-1).mean()


def make_sides(name: str, sides: tuple[int, ...]) -> dict:
  options = SAME_WORK[name]
  make = functools.partial(importlib.import_module(f'torch_{name}').make, CLASSES, image_size=sides)
  torch.manual_seed(0)
  state = make().state_dict()
  variables = convert.from_torch(name, {key: value.numpy() for key, value in state.items()}, **options)
  made = {'ours': JaxSide(models.build(name, CLASSES, **options), variables)}
  last = torch.channels_last if len(sides) == 2 else torch.channels_last_3d
  for layout_name, layout in (('torch channels_last', last), ('torch default', torch.contiguous_format)):
    model = without_dropout(make())
    model.load_state_dict(state)
    made[layout_name] = TorchSide(model, layout)
  return made


def check_equal(sides: dict, image, label) -> None:
  """Asserts equal logits, and equal losses over two training steps: otherwise the timings would not be comparable."""
  logits = {name: side.forward(image, label) for name, side in sides.items()}
  losses = {name: [side.train(image, label) for _ in range(2)] for name, side in sides.items()}
  for name in sides:
    error = np.abs(logits[name] - logits['ours']).max() / logits['ours'].std()
    assert error < 5e-3, f'{name}: logits differ by {error:.1e} of their standard deviation'
    assert np.allclose(losses[name], losses['ours'], rtol=2e-3), f'{name}: losses {losses[name]} != {losses["ours"]}'


def measure(sides: dict, what: str, image, label, rounds: int) -> dict:
  """Seconds per call and side; the sides take turns, so that a busy moment of the machine affects all of them."""
  seconds = {name: [] for name in sides}
  for done in range(rounds + 1):  # the first round warms up
    for name, side in sides.items():
      start = time.perf_counter()
      getattr(side, what)(image, label)
      if done:
        seconds[name].append(time.perf_counter() - start)
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

  print(f'{torch.get_num_threads()} torch threads, XLA flag {FLAG}, {args.rounds} rounds\n')
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
    del sides
    jax.clear_caches()


if __name__ == '__main__':
  with measured('jax', 'torch', 'monai'):
    main()
