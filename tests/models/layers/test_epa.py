"""Efficient paired attention against a literal reading of its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_checks import jit

from afw_jax.models.layers import epa


def literal_epa(params, x, layout, heads=4):
  """Paired attention step by step as published, one image's tokens (N, C), in float64."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  tokens, width = x.shape
  q, k, v_channel, v_spatial = (
    a.reshape(tokens, heads, -1).transpose(1, 2, 0) for a in np.split(x @ p['qkvv']['kernel'], 4, axis=-1)
  )
  k_projected, v_projected = (a @ p['project']['kernel'] + p['project']['bias'] for a in (k, v_spatial))
  q, k = (a / np.maximum(np.linalg.norm(a, axis=-1, keepdims=True), 1e-12) for a in (q, k))
  softmax = lambda a: np.exp(a) / np.exp(a).sum(-1, keepdims=True)
  channel = softmax(q @ k.transpose(0, 2, 1) * p['temperature']) @ v_channel
  channel = channel.transpose(2, 0, 1).reshape(tokens, width)
  spatial = softmax(q.transpose(0, 2, 1) @ k_projected * p['temperature2']) @ v_projected.transpose(0, 2, 1)
  spatial = spatial.transpose((2, 0, 1) if layout == 'released' else (1, 0, 2)).reshape(tokens, width)
  return np.concatenate(
    [half @ p[name]['kernel'] + p[name]['bias'] for name, half in (('out_proj', spatial), ('out_proj2', channel))],
    axis=-1,
  )


@pytest.mark.parametrize('layout', epa.LAYOUTS)
def test_paired_attention_is_its_literal_reading(layout):
  rng = np.random.default_rng(1)
  x = rng.standard_normal((2, 30, 16)).astype(np.float32)
  module = epa.EPA(projected=5, layout=layout)
  params = jax.tree.map(
    lambda a: jnp.asarray(rng.standard_normal(a.shape), jnp.float32), jax.eval_shape(module.init, jax.random.key(0), x)
  )['params']
  found = module.apply({'params': params}, x)
  assert np.allclose(found, [literal_epa(params, image, layout) for image in x], rtol=1e-4, atol=1e-4)


def test_the_gradient_is_finite_where_queries_keys_and_tokens_are_zero():
  module = epa.EPA(projected=5)
  x = jnp.zeros((1, 12, 8))
  params = module.init(jax.random.key(0), x)
  grads = jit(jax.grad(lambda params, x: (module.apply(params, x) ** 2).sum(), (0, 1)))
  zero = jax.tree.map(jnp.zeros_like, params)
  for case in ((params, x), (zero, x), (zero, x + 1)):
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads(*case)))


def test_attention_weights_are_dropped_as_after_the_softmax():
  """Dropped weights keep their share of the sum: on average over masks the attention is the one without dropout."""
  module = epa.EPA(projected=6, dropout=0.4)
  x = jnp.asarray(np.random.default_rng(2).standard_normal((1, 20, 8)), jnp.float32)
  params = module.init(jax.random.key(0), x)
  draw = lambda key: module.apply(params, x, train=True, rngs={'dropout': key})
  draws, whole = jit(lambda keys: (jax.vmap(draw)(keys), module.apply(params, x)))(
    jax.random.split(jax.random.key(1), 4000)
  )
  assert draws.std(0).min() > 0
  assert np.abs(draws.mean(0) - whole).max() < 5 * (draws.std(0) / np.sqrt(4000)).max()
