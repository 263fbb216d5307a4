"""The transformer block against its formula, under the names of both networks that have it."""

import functools

import jax
import numpy as np
import pytest
import scipy.special
from network_checks import jit

from afw_jax.models import transunet
from afw_jax.models.layers.vit import Block, Names, SelfAttention


def draw(*shape):
  return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_fused_and_separate_query_key_value_are_the_same_attention():
  x = draw(2, 5, 12)
  fused, separate = SelfAttention(3, qkv_bias=True), SelfAttention(3, fused=False, qkv_bias=True)
  params = jax.tree.map(lambda a: draw(*a.shape), jax.eval_shape(fused.init, jax.random.key(0), x)['params'])
  parts = {
    name: {leaf: np.split(a, 3, -1)[i] for leaf, a in params['qkv'].items()}
    for i, name in enumerate(('query', 'key', 'value'))
  }
  y = jit(fused.apply)({'params': params}, x)
  assert np.allclose(jit(separate.apply)({'params': {**parts, 'out_proj': params['out_proj']}}, x), y, atol=1e-6)
  barely = SelfAttention(3, qkv_bias=True, attention_dropout=1e-7)  # the path that can drop, with nothing dropped
  assert np.allclose(
    jit(lambda p, x: barely.apply(p, x, True, rngs={'dropout': jax.random.key(0)}))({'params': params}, x), y, atol=1e-5
  )


NAMED = {
  'unetr': (Names(), ('mlp', 'linear1'), ('mlp', 'linear2')),
  'transunet': (transunet.BLOCK_NAMES, ('fc1',), ('fc2',)),
}


@pytest.mark.parametrize('network', NAMED)
def test_the_block_is_its_formula_under_the_names_of_each_network(network):
  x = draw(1, 4, 6)
  names, *linear = NAMED[network]
  model = Block(1, 8, eps=0.1, names=names)
  p = jax.tree.map(lambda a: draw(*a.shape), jax.eval_shape(model.init, jax.random.key(0), x)['params'])

  def norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1) * p['scale'] + p['bias']

  q, k, v = np.split(norm(np.asarray(x[0]), p[names.norm1]) @ p['attn']['qkv']['kernel'], 3, -1)
  weights = np.exp(q @ k.T / np.sqrt(6))
  attended = weights / weights.sum(-1, keepdims=True) @ v
  y = x[0] + attended @ p['attn']['out_proj']['kernel'] + p['attn']['out_proj']['bias']
  first, second = (functools.reduce(dict.__getitem__, path, p) for path in linear)
  hidden = norm(y, p[names.norm2]) @ first['kernel'] + first['bias']
  gelu = hidden * (1 + scipy.special.erf(hidden / np.sqrt(2))) / 2
  assert np.allclose(jit(model.apply)({'params': p}, x)[0], y + gelu @ second['kernel'] + second['bias'], atol=1e-5)


def test_the_rates_of_dropout_apply_where_they_are_said_to(monkeypatch):
  """`output_dropout` after the attention alone, `dropout` in the MLP and, by default, after the attention too."""
  rates = []
  bernoulli = jax.random.bernoulli

  def record(key, p, *args, **options):
    rates.append(round(1 - p, 3))
    return bernoulli(key, p, *args, **options)

  monkeypatch.setattr(jax.random, 'bernoulli', record)
  x = draw(1, 4, 6)
  cases = (({}, [0.1] * 3), ({'output_dropout': 0.3}, [0.3, 0.1, 0.1]), ({'output_dropout': 0.0}, [0.1] * 2))
  for options, wanted in cases:
    rates.clear()
    block = Block(1, 8, dropout=0.1, **options)
    variables = jax.eval_shape(block.init, jax.random.key(0), x)
    jax.eval_shape(lambda v, key: block.apply(v, x, True, rngs={'dropout': key}), variables, jax.random.key(0))  # noqa: B023
    assert rates == wanted
