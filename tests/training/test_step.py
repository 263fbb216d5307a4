"""The training step: what it changes, and that it depends on nothing but (state, batch, key)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from afw_jax import losses
from afw_jax.training import step


class Tiny(nn.Module):
  """A 1x1 network with BatchNorm."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Conv(4, (3, 3))(x))
    return nn.Conv(3, (1, 1))(nn.relu(x))


class NoStatistics(nn.Module):
  """Has no batch_stats collection."""

  @nn.compact
  def __call__(self, x, train=False):
    return nn.Conv(3, (1, 1))(x)


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  label = rng.integers(0, 3, (4, 8, 8))
  return {
    'image': jnp.asarray(label[..., None] / 2 + 0.1 * rng.normal(size=(4, 8, 8, 1)), jnp.float32),
    'label': jnp.asarray(label),
  }


def make(model, loss='ce_afw'):
  tx = optax.sgd(0.05, momentum=0.9)
  state = step.init_state(model, tx, jax.random.key(0), jnp.zeros((1, 8, 8, 1)), 3)
  return state, jax.jit(step.make_train_step(model, losses.make_loss(loss), tx, lambda key, b: b))


@pytest.mark.parametrize('model', [Tiny(), NoStatistics()])
def test_learns_the_network_and_the_log_variances(model, batch):
  state, train_step = make(model)
  first = None
  for _ in range(30):
    state, aux = train_step(state, batch, jax.random.key(1))
    first = aux['loss'] if first is None else first
  assert int(state.step) == 30 and aux['loss'] < first
  assert (np.asarray(state.params['log_sigma_sq']) != 0).all()
  assert aux['terms']['dice'].shape == (3,) and np.isfinite(aux['grad_norm'])


def test_ce_dice_leaves_the_log_variances_alone(batch):
  state, train_step = make(Tiny(), 'ce_dice')
  state, _ = train_step(state, batch, jax.random.key(1))
  assert (np.asarray(state.params['log_sigma_sq']) == 0).all()


def test_same_inputs_same_bits(batch):
  model, results = Tiny(), []
  for _ in range(2):
    state, train_step = make(model)
    for _ in range(3):
      state, _ = train_step(state, batch, jax.random.key(1))
    results.append(jax.tree.leaves(state))
  assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


def test_the_key_of_a_step_depends_on_its_number(batch):
  seen = []

  def spy(key, b):
    return {**b, 'image': jax.random.uniform(key, b['image'].shape)}

  tx = optax.sgd(0.0)
  model = NoStatistics()
  state = step.init_state(model, tx, jax.random.key(0), jnp.zeros((1, 8, 8, 1)), 3)
  train_step = jax.jit(step.make_train_step(model, losses.make_loss('ce'), tx, spy))
  for _ in range(2):
    state, aux = train_step(state, batch, jax.random.key(1))
    seen.append(float(aux['loss']))
  assert seen[0] != seen[1]
