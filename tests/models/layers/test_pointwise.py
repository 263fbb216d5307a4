"""The product along the channels: both forms have the same values and gradients; which platform takes which."""

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


def test_samples_stay_apart_on_nvidia_gpus_alone():
  traced = jax.jit(pointwise).trace(draw(2, 3, 3, 4), draw(4, 5))
  apart = {
    platform: 'batching_dims' in traced.lower(lowering_platforms=(platform,)).as_text()
    for platform in ('cpu', 'cuda', 'tpu')
  }
  assert apart == {'cpu': False, 'cuda': True, 'tpu': False}
