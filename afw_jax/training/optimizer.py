"""SGD with momentum and the polynomial learning-rate schedule of the paper (section 3.1)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from afw_jax.errors import InputError

UNITS = ('epoch', 'step')


def polynomial_schedule(
  base_lr: float, *, epochs: int, steps_per_epoch: int, unit: str = 'epoch', power: float = 0.9
) -> Callable:
  """Polynomial decay of the learning rate: lr(t) = base_lr (1 - t/T)^power.

  Args:
    base_lr: the learning rate at the start.
    epochs: length T of the run in epochs.
    steps_per_epoch: steps of one epoch.
    unit: 'epoch' (the paper): t counts whole epochs, constant within one. 'step' (the released code): t counts
      steps and is updated after each step, so that steps 0 and 1 both use the base rate.
    power: the exponent, 0.9 in both.

  Returns:
    A function step -> learning rate: of a traced step for optax, or of a number, which needs no device.

  Raises:
    InputError: for an unknown unit.
  """
  if unit not in UNITS:
    raise InputError('optimizer.schedule_unit', f'{unit!r} is not a valid unit', f'Use one of {UNITS}.')
  total = epochs if unit == 'epoch' else epochs * steps_per_epoch

  def schedule(step):
    xp = jnp if isinstance(step, jax.Array) else np
    t = step // steps_per_epoch if unit == 'epoch' else xp.maximum(step - 1, 0)
    return base_lr * xp.clip(1 - t / total, 0, 1) ** power

  return schedule


def sgd(
  schedule: Callable,
  *,
  momentum: float = 0.9,
  weight_decay: float = 0.0,
  clip_norm: float = 0.0,
  factors: Any = None,
) -> optax.GradientTransformation:
  """SGD with momentum, as torch.optim.SGD computes it.

  Args:
    schedule: step -> learning rate.
    momentum: decay of the running sum of gradients.
    weight_decay: factor of the L2 penalty on every parameter, log_sigma_sq included, as in the authors' released code
      (1e-4); the paper gives none (0).
    clip_norm: largest global norm of the gradient; 0 = no clipping.
    factors: of the learning rate of each parameter, a tree like the parameters; None: 1 for all.
  """
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
  decay = optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity()
  parts = [clip, decay, optax.sgd(schedule, momentum=momentum)]
  if factors is not None:
    parts.append(optax.stateless(lambda updates, _: jax.tree.map(lambda u, factor: u * factor, updates, factors)))
  return optax.chain(*parts)
