"""Gradient accumulation: the gradient of the loss of a whole batch, computed from one micro-batch at a time.

A batch Dice is not a mean over micro-batches: its class sums run over all of the batch before they are divided, so
accumulating the gradients of micro-batch losses would minimise another loss. Here the loss sees the whole batch:

  1. forward pass of one micro-batch after the other, keeping only their logits;
  2. loss and its gradient with respect to the logits of the whole batch and to log_sigma_sq;
  3. for one micro-batch after the other, the forward pass again, then the backward pass from its rows of the logits'
     gradient; the gradients are summed.

That is the chain rule in another order, so it holds for every loss and for any number of heads, and costs one more
forward pass (about 4/3 of the time). Of the whole batch, only the image, the labels and a few copies of the logits stay
in memory. Without BatchNorm and dropout the gradient is that of the whole batch up to rounding. With them:

- BatchNorm normalises each micro-batch by its own statistics, as it would with a small batch, and its running
  statistics move once per micro-batch, in turn, in 1 (so `momentum` forgets faster per step; 3 moves nothing). Of a
  small UNet and 8 samples in 2 and 4 parts, the gradient moves by 11 % and 18 % of its length, the loss by 0.2 %.
- dropout draws the masks of micro-batch j from fold_in(key, j), the same in 1 and in 3.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from afw_jax.errors import InputError

Array = jax.Array
PyTree = Any


def check(micro_batches: int, batch_size: int, parts: int) -> None:
  """Checks that a batch divides into micro-batches.

  Args:
    micro_batches: how many.
    batch_size: of the global batch.
    parts: devices that the batch is divided over.

  Raises:
    InputError: the samples of each device do not divide into so many micro-batches.
  """
  rows = batch_size // parts
  if micro_batches < 1 or rows % micro_batches:
    share = f'{rows} samples' + (f' ({batch_size} over {parts} devices)' if parts > 1 else '')
    raise InputError(
      'train.micro_batches',
      f'{micro_batches} does not divide a batch of {share}',
      f'Use one of {", ".join(str(m) for m in range(1, rows + 1) if rows % m == 0)}.',
    )


def value_and_grad(forward: Callable, loss_fn: Callable, micro_batches: int, *, unroll: bool | None = None) -> Callable:
  """Loss and gradients of a batch, computed from its micro-batches one after the other.

  Args:
    forward: (net, batch_stats, image (B/m, *S, C_in), key) -> (logits or a list of heads, new batch_stats).
    loss_fn: (logits, labels, log_sigma_sq) -> (loss, per-class terms).
    micro_batches: m, which divides B; over several devices, the rows of each.
    unroll: m copies of the backward pass in the program (False: one, in a loop). A CPU computes the weight gradients of
      convolutions 6 to 60 times slower inside a loop; elsewhere copies only take longer to compile. None: on a CPU.

  Returns:
    fn(params, batch_stats, batch, key) -> ((loss, (terms, batch_stats)), gradients of params), with params
    {'net', 'log_sigma_sq'} and batch {'image' (B, *S, C_in), 'label' (B, *S)}. It raises InputError for a batch that
    `micro_batches` does not divide.
  """
  m = micro_batches

  def whole(params: PyTree, batch_stats: PyTree, batch: dict[str, Array], key: Array):
    net, image = params['net'], batch['image']
    if len(image) % m:
      raise InputError('train.micro_batches', f'{m} does not divide a batch of {len(image)}', 'Use a divisor of it.')
    of_part = lambda j, batch_stats: (
      lambda net: forward(net, batch_stats, _part(image, j, m), jax.random.fold_in(key, j))
    )

    def logits_of(moved, j):
      logits, moved = of_part(j, moved)(net)
      return moved, logits

    moved, logits = jax.lax.scan(logits_of, batch_stats, jnp.arange(m))
    logits = jax.tree.map(_joined, logits)

    value = jax.value_and_grad(loss_fn, argnums=(0, 2), has_aux=True)
    (loss, terms), (to_logits, to_log_sigma_sq) = value(logits, batch['label'], params['log_sigma_sq'])

    def add(total, j):
      _, backward, _ = jax.vjp(of_part(j, batch_stats), net, has_aux=True)
      (gradient,) = backward(jax.tree.map(lambda a: _part(a, j, m), to_logits))
      return jax.tree.map(jnp.add, total, gradient)

    total = jax.tree.map(jnp.zeros_like, net)
    if jax.default_backend() == 'cpu' if unroll is None else unroll:
      for j in range(m):
        total = add(total, j + _zero_after((loss, total)))
    else:
      total = jax.lax.fori_loop(0, m, lambda j, total: add(total, j), total)
    return (loss, (terms, moved)), {'net': total, 'log_sigma_sq': to_log_sigma_sq}

  return whole


def _part(x: Array, j: Array, m: int) -> Array:
  """Rows j, j + m, j + 2m, ... of x (B, ...).

  B/m neighbouring rows would all lie on a few of the devices that the batch is divided over. These rows come from every
  device alike, so that none is idle and no row moves.
  """
  return jax.lax.dynamic_index_in_dim(x.reshape(len(x) // m, m, *x.shape[1:]), j, 1, keepdims=False)


def _joined(parts: Array) -> Array:
  """(m, B/m, ...), one part after the other -> (B, ...) in the order of the batch."""
  return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])


def _zero_after(arrays: PyTree) -> Array:
  """An int32 0 that depends on all arrays, so that a computation that uses it waits for them.

  Without it XLA may run the copies of an unrolled pass side by side, with the activations of all in memory
  (`lax.optimization_barrier` would prevent it, but the CPU's compiler drops it).
  """
  total = sum(jnp.sum(a, dtype=jnp.float32) for a in jax.tree.leaves(arrays))
  return (total > jnp.inf).astype(jnp.int32)  # never true, not even for NaN; the compiler does not know that
