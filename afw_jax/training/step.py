"""The training state and the training step, a pure function of state, batch and key."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from afw_jax import losses
from afw_jax.training import accumulation

Array = jax.Array
PyTree = Any
Batch = dict[str, Array]
LossFn = Callable[[Array, Array, Array], tuple[Array, dict[str, Array]]]


class TrainState(NamedTuple):
  """Everything that training changes; arrays only.

  Attributes:
    step: () int32, the number of steps taken.
    params: {'net': the network's parameters, 'log_sigma_sq': (C,) log-variances of the loss}.
    batch_stats: running statistics of the network ({} where it has none).
    opt_state: the optimizer's state for all of params.
  """

  step: Array
  params: PyTree
  batch_stats: PyTree
  opt_state: PyTree


def init_state(model, tx: optax.GradientTransformation, key: Array, image: Array, num_classes: int) -> TrainState:
  """The state before the first step; log_sigma_sq starts at 0, so every class weighs 1.

  Args:
    model: a Linen module.
    tx: the optimizer.
    key: PRNG key of the initialisation.
    image: (B, *S, C_in), an example (or ShapeDtypeStruct under `jax.eval_shape`).
    num_classes: C, background included.
  """
  variables = model.init(key, image, train=False)
  params = {'net': variables['params'], 'log_sigma_sq': losses.init_log_sigma_sq(num_classes)}
  return TrainState(jnp.zeros((), jnp.int32), params, variables.get('batch_stats', {}), tx.init(params))


def make_train_step(
  model,
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  prepare: Callable[[Array, Batch], Batch],
  *,
  micro_batches: int = 1,
  unroll: bool | None = None,
):
  """One step of SGD on one (global) batch.

  Args:
    model: a Linen module.
    loss_fn: (logits, labels, log_sigma_sq) -> (loss, per-class terms).
    tx: the optimizer.
    prepare: (key, raw batch) -> windowed and augmented batch, 'image' (B, *S, C_in) float and 'label' (B, *S).
    micro_batches: parts of the batch that go through the network one after the other, for less memory; `accumulation`
      says what that changes (BatchNorm, dropout) and what it does not (augmentation and loss).
    unroll: of `accumulation.value_and_grad`.

  Returns:
    train_step(state, batch, key) -> (state, aux); aux has 'loss' (), 'grad_norm' () and 'terms', a dict of (C,).
    The randomness of a step depends on (key, state.step) alone.
  """

  def forward(net, batch_stats, image, key):
    logits, mutated = model.apply(
      {'params': net, 'batch_stats': batch_stats}, image, train=True, mutable=['batch_stats'], rngs={'dropout': key}
    )
    return logits, mutated.get('batch_stats', {})

  def objective(params, batch_stats, batch, key):
    logits, batch_stats = forward(params['net'], batch_stats, batch['image'], key)
    loss, terms = loss_fn(logits, batch['label'], params['log_sigma_sq'])
    return loss, (terms, batch_stats)

  value_and_grad = jax.value_and_grad(objective, has_aux=True)
  if micro_batches > 1:
    value_and_grad = accumulation.value_and_grad(forward, loss_fn, micro_batches, unroll=unroll)

  def train_step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict]:
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    batch = prepare(augment_key, batch)
    (loss, (terms, batch_stats)), grads = value_and_grad(state.params, state.batch_stats, batch, dropout_key)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    aux = {'loss': loss, 'grad_norm': optax.global_norm(grads), 'terms': terms}
    return TrainState(state.step + 1, params, batch_stats, opt_state), aux

  return train_step


def variables_of(state: TrainState) -> PyTree:
  """The variables of a state for `model.apply`."""
  return {'params': state.params['net'], 'batch_stats': state.batch_stats}
