"""Residual streams are added up once on a CPU, with the same values, and nothing is changed on other platforms."""

import collections
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from afw_jax.models.layers import vit
from afw_jax.models.layers.materialized import materialized, materialized_gradient

DEPTH = 8


def network(keep, kernels, x):
  """Residual blocks of a product each, as deep as the stream has uses."""
  for kernel in kernels:
    x = keep(x + jnp.tanh(x) @ kernel)
  return (x * x).sum()


def identity(x):
  return x


@pytest.fixture(scope='module')
def arguments():
  rng = np.random.default_rng(0)
  return 0.1 * rng.normal(size=(DEPTH, 48, 48)), rng.normal(size=(4, 32, 48))


@pytest.mark.parametrize('keep', [materialized, materialized_gradient])
def test_same_value_and_gradients(keep, arguments):
  of = lambda keep: jax.jit(jax.value_and_grad(functools.partial(network, keep), (0, 1)))(*arguments)
  for a, b in zip(jax.tree.leaves(of(keep)), jax.tree.leaves(of(identity)), strict=True):
    assert a.dtype == b.dtype
    assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('keep', [materialized, materialized_gradient])
def test_is_the_identity_in_both_directions(keep, dtype):
  x = jnp.arange(-3, 3, dtype=dtype).at[0].set(jnp.nan)
  all_found = []
  for function in (jax.jit(keep), jax.jit(jax.remat(keep))):
    y, pull_back = jax.vjp(function, x)
    all_found += [y, *pull_back(x)]
  for found in all_found:
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(x, np.float32))


class Blocks(nn.Module):
  """Transformer blocks, one after the other."""

  depth: int

  @nn.compact
  def __call__(self, x):
    for _ in range(self.depth):
      x = vit.Block(2, 64)(x)
    return (x * x).sum()


def additions(depth):
  """The sums in the compiled program of the gradient."""
  model, x = Blocks(depth), jnp.ones((2, 16, 32))
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  return jax.jit(jax.grad(model.apply)).lower(variables, x).compile().as_text().count(' add(')


def test_each_sum_is_computed_once(monkeypatch):
  """Without, each use adds up the stream from its start: the number of sums grows with the square of the depth."""
  assert additions(6) < 3.3 * additions(2)
  monkeypatch.setattr(vit, 'materialized', materialized_gradient)
  assert additions(6) < 3.3 * additions(2)
  monkeypatch.setattr(vit, 'materialized', identity)
  assert additions(6) > 5 * additions(2)


@pytest.mark.parametrize('keep', [materialized, materialized_gradient])
@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
def test_the_program_for_other_platforms_is_as_without_it(keep, platform, arguments):
  """It is lowered for them and, for want of the device, simplified by XLA for the CPU."""

  def program(keep):
    function = jax.jit(jax.grad(functools.partial(network, keep), (0, 1)))
    checks = [export.DisabledSafetyCheck.platform()]
    exported = export.export(function, platforms=[platform], disabled_checks=checks)(*arguments)
    return jax.jit(exported.call).lower(*arguments).compile().as_text()

  operations = lambda text: collections.Counter(re.findall(r' = \S+ ([\w-]+)\(', text))
  assert operations(program(keep)) == operations(program(identity))


def test_prediction_is_as_without_it(arguments):
  program = jax.jit(functools.partial(network, materialized)).lower(*arguments).as_text()
  assert 'case' not in program and 'barrier' not in program
