"""A network on a CPU in a process of its own: the side of this package, or of PyTorch in one memory layout.

A process each, since in one process a side would be timed with the allocator, the threads and the caches of the other.
They stay alive and are asked in turns, so that nothing is compiled twice and one waits while the other works.
"""

import importlib
import multiprocessing
import time
import traceback

import numpy as np
from peers import MOMENTUM, RATE, SAME_WORK, loss_torch, main_head, without_dropout

CLASSES = 9
LAYOUTS = {'torch channels_last': True, 'torch default': False}


class JaxSide:
  """A Linen network and its state; `forward` and `train` run one step and wait for the result."""

  def __init__(self, network: str, state: dict):
    from afw_jax.distributed.xla_flags import set_cpu_flags
    from afw_jax.system import allocator

    set_cpu_flags()  # this and the next as the program does
    allocator.keep_freed_memory()
    import jax
    import optax

    from afw_jax import models
    from afw_jax.weights import convert

    options = SAME_WORK[network]
    model, tx = models.build(network, CLASSES, **options), optax.sgd(RATE, MOMENTUM)
    self.variables = convert.from_torch(network, state, **options)
    self.trace = tx.init(self.variables['params'])

    def step(variables, trace, image, label):
      def loss_of(params):
        logits, updates = model.apply({**variables, 'params': params}, image, train=True, mutable=['batch_stats'])
        return loss_jax(main_head(logits), label), updates

      (loss, updates), grads = jax.value_and_grad(loss_of, has_aux=True)(variables['params'])
      moves, trace = tx.update(grads, trace)
      return {'params': optax.apply_updates(variables['params'], moves), **updates}, trace, loss

    self.predict = jax.jit(lambda variables, image: main_head(model.apply(variables, image)))
    self.step = jax.jit(step, donate_argnums=(0, 1))

  def forward(self, image, label):
    return np.asarray(self.predict(self.variables, image))

  def train(self, image, label):
    self.variables, self.trace, loss = self.step(self.variables, self.trace, image, label)
    return float(loss)


class TorchSide:
  """The PyTorch network in one memory layout."""

  def __init__(self, network: str, sides: tuple[int, ...], channels_last: bool):
    import torch

    last = torch.channels_last if len(sides) == 2 else torch.channels_last_3d
    self.torch, self.layout = torch, last if channels_last else torch.contiguous_format
    torch.manual_seed(0)  # so that all sides have the same weights
    model = importlib.import_module(f'torch_{network}').make(CLASSES, image_size=sides)
    self.state = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    self.model = without_dropout(model).to(memory_format=self.layout)
    self.tx = torch.optim.SGD(self.model.parameters(), lr=RATE, momentum=MOMENTUM)

  def _tensors(self, image, label):
    image = self.torch.from_numpy(np.moveaxis(image, -1, 1)).contiguous(memory_format=self.layout)
    return image, self.torch.from_numpy(label).long()

  def forward(self, image, label):
    self.model.eval()
    with self.torch.inference_mode():
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
  """As `loss_torch`, channels last."""
  import jax
  import jax.numpy as jnp

  truth, space = jax.nn.one_hot(label, CLASSES), tuple(range(label.ndim))
  log_p = jax.nn.log_softmax(logits)
  p = jnp.exp(log_p)
  dice = (2 * (p * truth).sum(space) + 1e-5) / ((p + truth).sum(space) + 1e-5)
  return 1 - dice.mean() - (truth * log_p).sum(-1).mean()


class Side:
  """The process of a side: `ask` makes it do one step."""

  def __init__(self, name: str, network: str, sides: tuple[int, ...], state: dict | None = None):
    self.name = f'{name}, {network}'
    self.pipe, theirs = multiprocessing.get_context('spawn').Pipe()
    arguments = (theirs, name, network, sides, state)
    self.process = multiprocessing.get_context('spawn').Process(target=serve, args=arguments, daemon=True)
    self.process.start()
    theirs.close()
    self.state = self._answer()

  def ask(self, what: str, image, label):
    """(seconds, result) of 'forward' or 'train'."""
    self.pipe.send((what, image, label))
    return self._answer()

  def end(self) -> None:
    self.pipe.send(None)
    self.process.join()  # so that its time is counted as this program's

  def _answer(self):
    try:
      failed, answer = self.pipe.recv()
    except EOFError as error:
      self.process.join()
      raise SystemExit(f'{self.name}: its process ended with code {self.process.exitcode}') from error
    if failed:
      raise SystemExit(answer)
    return answer


def serve(pipe, name: str, network: str, sides: tuple[int, ...], state: dict | None) -> None:
  """Answers with the initial weights (PyTorch only), then each step that is asked for with its seconds and result."""
  try:
    side = TorchSide(network, sides, LAYOUTS[name]) if name in LAYOUTS else JaxSide(network, state or {})
    pipe.send((False, getattr(side, 'state', None)))
    while asked := pipe.recv():
      what, image, label = asked
      start = time.perf_counter()
      result = getattr(side, what)(image, label)
      pipe.send((False, (time.perf_counter() - start, result)))
  except Exception:  # said by the process that asked
    pipe.send((True, f'{name}, {network}:\n{traceback.format_exc()}'))
