"""UNet on a CPU against PyTorch: forward and train step, the same weights, interleaved in one run.

  python benchmarks/unet_cpu.py [--batch 4 24] [--rounds 5] [--size 224] [--naive]

Both sides: 7.85 M parameters, one input channel, nine classes, float32; the train step is forward with batch statistics,
cross entropy + Dice, backward, SGD with momentum. The outputs are compared before anything is timed. `--naive` adds JAX
as one would first write it (Flax's BatchNorm, max_pool and gathers), under the same XLA flag.
"""

import argparse
import functools
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from afw_jax.xla_flags import set_cpu_flags  # noqa: E402

FLAG = set_cpu_flags()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import naive_unet  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from afw_jax import convert, models  # noqa: E402

try:
  import torch
  import torch_unet
except ImportError:
  sys.exit('PyTorch is the peer and is not installed here: pip install -r benchmarks/requirements.txt '
           '(best in a virtual environment of its own, with requirements.txt)')

CLASSES, RATE, MOMENTUM = 9, 0.01, 0.9


class JaxSide:
  """A Linen UNet and its state; `forward` and `train` do one piece of work and wait for it."""

  def __init__(self, model, variables):
    self.model, self.variables, self.tx = model, variables, optax.sgd(RATE, MOMENTUM)
    self.trace = self.tx.init(variables['params'])
    self.predict = jax.jit(model.apply)
    self.step = jax.jit(self._step, donate_argnums=(0, 1))

  def _step(self, variables, trace, image, label):
    def loss_of(params):
      logits, updates = self.model.apply({**variables, 'params': params}, image, train=True, mutable=['batch_stats'])
      return loss_jax(logits, label), updates

    (loss, updates), grads = jax.value_and_grad(loss_of, has_aux=True)(variables['params'])
    moves, trace = self.tx.update(grads, trace)
    return {'params': optax.apply_updates(variables['params'], moves), **updates}, trace, loss

  def forward(self, image, label):
    return np.asarray(self.predict(self.variables, image))

  def train(self, image, label):
    self.variables, self.trace, loss = self.step(self.variables, self.trace, image, label)
    return float(loss)


class TorchSide:
  """The PyTorch UNet in one memory layout."""

  def __init__(self, layout, state):
    self.layout = layout
    self.model = torch_unet.UNet(1, CLASSES)
    self.model.load_state_dict(state)
    self.model.to(memory_format=layout)
    self.tx = torch.optim.SGD(self.model.parameters(), lr=RATE, momentum=MOMENTUM)

  def _tensors(self, image, label):
    image = torch.from_numpy(image).permute(0, 3, 1, 2).contiguous(memory_format=self.layout)
    return image, torch.from_numpy(label).long()

  def forward(self, image, label):
    self.model.eval()
    with torch.inference_mode():
      return self.model(self._tensors(image, label)[0]).permute(0, 2, 3, 1).numpy()

  def train(self, image, label):
    self.model.train()
    image, label = self._tensors(image, label)
    self.tx.zero_grad(set_to_none=True)
    loss = loss_torch(self.model(image), label)
    loss.backward()
    self.tx.step()
    return float(loss.detach())


def loss_jax(logits, label):
  truth = jax.nn.one_hot(label, CLASSES)
  log_p = jax.nn.log_softmax(logits)
  p = jnp.exp(log_p)
  dice = (2 * (p * truth).sum((0, 1, 2)) + 1e-5) / ((p + truth).sum((0, 1, 2)) + 1e-5)
  return 1 - dice.mean() - (truth * log_p).sum(-1).mean()


def loss_torch(logits, label):
  p = torch.softmax(logits, 1)
  truth = torch.nn.functional.one_hot(label, CLASSES).permute(0, 3, 1, 2).to(p.dtype)
  dice = (2 * (p * truth).sum((0, 2, 3)) + 1e-5) / ((p + truth).sum((0, 2, 3)) + 1e-5)
  return 1 - dice.mean() + torch.nn.functional.cross_entropy(logits, label)


def make_sides(naive: bool) -> dict:
  torch.manual_seed(0)
  state = torch_unet.UNet(1, CLASSES).state_dict()
  variables = convert.from_torch('unet', {key: value.numpy() for key, value in state.items()})
  copy = functools.partial(jax.tree.map, jnp.array)  # the step donates its state: every side needs its own
  sides = {'ours': JaxSide(models.build('unet', CLASSES), copy(variables))}
  sides['torch channels_last'] = TorchSide(torch.channels_last, state)
  sides['torch default'] = TorchSide(torch.contiguous_format, state)
  if naive:
    sides['naive JAX'] = JaxSide(naive_unet.UNet(CLASSES), copy(variables))
  return sides


def check_equal(sides: dict, image, label) -> None:
  """Same logits and the same losses over two train steps, or the timing would be of different work."""
  logits = {name: side.forward(image, label) for name, side in sides.items()}
  losses = {name: [side.train(image, label) for _ in range(2)] for name, side in sides.items()}
  for name in sides:
    error = np.abs(logits[name] - logits['ours']).max() / logits['ours'].std()
    assert error < 1e-3, f'{name}: logits differ by {error:.1e} of their standard deviation'
    assert np.allclose(losses[name], losses['ours'], rtol=1e-3), f'{name}: losses {losses[name]} != {losses["ours"]}'


def measure(sides: dict, what: str, image, label, rounds: int) -> dict:
  """Seconds per call and side; the sides take turns, so that a busy moment falls on all of them."""
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
  parser.add_argument('--batch', type=int, nargs='+', default=[4, 24], help='batch sizes')
  parser.add_argument('--rounds', type=int, default=5, help='timed rounds')
  parser.add_argument('--size', type=int, default=224, help='side of the image, a multiple of 16')
  parser.add_argument('--naive', action='store_true', help='time JAX in its first-written form as well')
  args = parser.parse_args()

  sides = make_sides(args.naive)
  rng = np.random.default_rng(0)
  small = rng.random((2, 32, 32, 1), dtype=np.float32), rng.integers(0, CLASSES, (2, 32, 32))
  check_equal(sides, *small)
  print(f'jax {jax.__version__}, torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} torch '
        f'threads, XLA flag {FLAG}, load before {os.getloadavg()[0]:.2f}, size {args.size}, {args.rounds} rounds\n')
  print('| work | side | median s | min s | images/s | ours / it (median) | ours / it (min) |\n|---|---|---|---|---|---|---|')
  for batch in args.batch:
    image = rng.random((batch, args.size, args.size, 1), dtype=np.float32)
    label = rng.integers(0, CLASSES, (batch, args.size, args.size))
    for what in ('forward', 'train'):
      seconds = measure(sides, what, image, label, args.rounds)
      median = {name: statistics.median(s) for name, s in seconds.items()}
      best = {name: min(s) for name, s in seconds.items()}
      for name in sides:
        print(f'| {what} B={batch} | {name} | {median[name]:.3f} | {best[name]:.3f} | {batch / median[name]:.2f} | '
              f'{median["ours"] / median[name]:.2f} | {best["ours"] / best[name]:.2f} |', flush=True)


if __name__ == '__main__':
  main()
