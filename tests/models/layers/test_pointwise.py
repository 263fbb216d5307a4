"""The product along the channels: both forms have the same values and gradients; which platform takes which."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afw_jax.models.layers import pointwise as module
from afw_jax.models.layers.pointwise import pointwise


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), np.float32)


@pytest.mark.parametrize('shape', [(2, 3, 4, 5, 6), (3, 4, 4, 8), (1, 7, 2), (4, 3)])
def test_both_forms_have_the_values_and_gradients_of_the_product(shape):
  x, kernel, grad = draw(*shape), draw(shape[-1], 5, seed=1), draw(*shape[:-1], 5, seed=2)
  wanted, pull = jax.vjp(jnp.dot, x, kernel)
  for form in (pointwise, module._by_samples):
    y, pull_form = jax.vjp(form, x, kernel)
    for one, other in zip((y, *pull_form(grad)), (wanted, *pull(grad))):
      assert one.shape == other.shape and np.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_gradients_of_samples_are_added_in_float32():
  """As those of one product are: added in bfloat16, the error would grow with the number of samples."""
  x, kernel, grad = (draw(*shape, seed=i).astype(jnp.bfloat16) for i, shape in enumerate(SHAPES))
  wanted = np.einsum('bhwi,bhwo->io', np.float64(x), np.float64(grad))
  error = {}
  for form in (jnp.dot, module._by_samples):
    _, pull = jax.vjp(form, x, kernel)
    error[form] = np.sqrt(np.mean((np.float64(pull(grad)[1]) - wanted) ** 2) / np.mean(wanted**2))
  assert error[module._by_samples] < 1.6 * error[jnp.dot]  # each sample is rounded once


SHAPES = (24, 14, 14, 64), (64, 64), (24, 14, 14, 64)
UNEVEN = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from afw_jax.distributed import sharding
from afw_jax.models.layers.pointwise import _by_samples
mesh = sharding.make_mesh(1, 4)
constrain = sharding.make_constrain(mesh)
def work(form, x, kernel, grad):
  y, pull = jax.vjp(lambda x, k: constrain(form(constrain(x), k)), x, kernel)
  return (y, *pull(constrain(grad)))
count = {}
for form in (jnp.dot, _by_samples):
  x, kernel = jnp.zeros((2, 6, 5, 5, 8)), jnp.zeros((8, 4))
  text = jax.jit(lambda x, k, g: work(form, x, k, g)).lower(x, kernel, jnp.zeros((2, 6, 5, 5, 4))).compile().as_text()
  count[form] = text.count(' all-gather(') + text.count(' collective-permute(') + text.count(' all-to-all(')
print(count[_by_samples] <= count[jnp.dot], count)
"""


def test_samples_that_are_divided_unevenly_cost_no_more_messages():
  done = subprocess.run(
    [sys.executable, '-c', UNEVEN],
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parents[3],
    env=os.environ | {'JAX_NUM_CPU_DEVICES': '4', 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.stdout.startswith('True'), done.stdout + done.stderr[-3000:]


def test_samples_stay_apart_on_nvidia_gpus_alone():
  traced = jax.jit(pointwise).trace(draw(2, 3, 3, 4), draw(4, 5))
  apart = {
    platform: 'batching_dims' in traced.lower(lowering_platforms=(platform,)).as_text()
    for platform in ('cpu', 'cuda', 'tpu')
  }
  assert apart == {'cpu': False, 'cuda': True, 'tpu': False}
