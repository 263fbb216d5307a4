"""Convolution, pooling, upsampling and BatchNorm against their plain forms, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from afw_jax.models.layers.conv import Conv, uniform_fan_in
from afw_jax.models.layers.norm import BatchNorm
from afw_jax.models.layers.pooling import max_pool
from afw_jax.models.layers.upsample import upsample_2x


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def draw(shape, seed=0, dtype=np.float32):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def value_and_gradients(f, cotangent, *args):
  value, pull = jax.vjp(f, *args)
  return (value, *pull(cotangent))


# -- convolution


def test_conv_equals_a_sum_over_taps():
  x = draw((1, 7, 6, 3))
  layer = Conv(5, 3, strides=2, padding=1)
  variables = layer.init(jax.random.key(0), x)
  kernel, bias = variables['params']['kernel'], variables['params']['bias']
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  want = sum(padded[:, i : i + 7 : 2, j : j + 6 : 2] @ kernel[i, j] for i in range(3) for j in range(3)) + bias
  assert np.allclose(layer.apply(variables, x), want, atol=1e-6)


@pytest.mark.parametrize(
  'shape, options, kernel',
  [
    ((1, 5, 6, 7, 2), {'kernel_size': 3}, (3, 3, 3, 2, 4)),
    ((1, 8, 8, 4), {'kernel_size': 5, 'groups': 4}, (5, 5, 1, 4)),
    ((1, 8, 8, 4), {'kernel_size': 7, 'dilation': 3, 'groups': 4}, (7, 7, 1, 4)),
    ((1, 8, 8, 2), {'kernel_size': (3, 1)}, (3, 1, 2, 4)),
  ],
)
def test_conv_keeps_the_size_at_any_rank_group_and_dilation(shape, options, kernel):
  y, variables = Conv(4, **options).init_with_output(jax.random.key(0), jnp.ones(shape))
  assert y.shape == (*shape[:-1], 4) and variables['params']['kernel'].shape == kernel


def test_bias_gradient_is_zero_only_where_it_is_switched_off():
  x = draw((1, 4, 4, 2))
  for on in (True, False):
    layer = Conv(3, bias_gradient=on)
    gradient = jax.grad(lambda v, layer=layer: layer.apply(v, x).sum())(layer.init(jax.random.key(0), x))['params'][
      'bias'
    ]
    assert np.array_equal(gradient, [16.0 * on] * 3)


def test_initialisation_is_pytorchs():
  variables = Conv(256, 3).init(jax.random.key(3), jnp.ones((1, 4, 4, 64)))['params']
  bound = 1 / np.sqrt(3 * 3 * 64)
  for leaf in (variables['kernel'], variables['bias']):
    assert np.abs(leaf).max() <= bound
  assert np.isclose(variables['kernel'].std(), bound / np.sqrt(3), rtol=0.01)
  assert (
    np.isclose(variables['bias'].std(), bound / np.sqrt(3), rtol=0.15) and abs(variables['bias'].mean()) < bound / 4
  )
  assert np.abs(uniform_fan_in(4)(jax.random.key(0), (1000,))).max() > 0.49


# -- max pooling


def plain_pool(x, window):
  window = (1, *window, 1)
  return lax.reduce_window(x, -jnp.inf, lax.max, window, window, 'VALID')


@pytest.mark.parametrize(
  'shape, window',
  [
    ((2, 8, 6, 3), (2, 2)),
    ((1, 7, 9, 2), (2, 2)),
    ((1, 9, 8, 2), (3, 2)),
    ((1, 4, 6, 8, 2), (2, 2, 2)),
    ((1, 5, 9, 8, 1), (1, 4, 2)),
    ((2, 11, 1), (2,)),
  ],
)
@pytest.mark.parametrize('levels', [None, 2], ids=['distinct', 'many ties'])
def test_max_pool_and_its_gradient_are_those_of_reduce_window(shape, window, levels):
  x = draw(shape) if levels is None else jnp.asarray(np.random.default_rng(1).integers(0, levels, shape), jnp.float32)
  g = draw(plain_pool(x, window).shape, 2)
  got = value_and_gradients(lambda x: max_pool(x, window), g, x)
  for a, b in zip(got, value_and_gradients(lambda x: plain_pool(x, window), g, x)):
    assert np.array_equal(a, b)


def test_max_pool_sends_ties_to_the_first_and_keeps_nan():
  gradient = jax.grad(lambda x: max_pool(x).sum())(jnp.zeros((1, 2, 4, 1)))
  assert np.array_equal(gradient[0, :, :, 0], [[1, 0, 1, 0], [0, 0, 0, 0]])
  assert np.isnan(max_pool(jnp.asarray([1.0, np.nan, 3.0, 2.0]).reshape(1, 2, 2, 1))).all()


# -- upsampling


def corner_aligned(n):
  at = np.arange(2 * n) * (n - 1) / (2 * n - 1)
  return np.maximum(1 - np.abs(at[:, None] - np.arange(n)), 0)


@pytest.mark.parametrize('shape', [(1, 5, 2), (2, 4, 7, 3), (1, 1, 2, 3), (1, 3, 5, 4, 2)])
def test_upsampling_and_its_gradient_are_those_of_the_interpolation_matrices(x64, shape):
  x = draw(shape, dtype=np.float64)

  def plain(x):
    for axis in range(1, x.ndim - 1):
      x = jnp.moveaxis(jnp.tensordot(corner_aligned(x.shape[axis]), x, (1, axis)), 0, axis)
    return x

  g = draw(plain(x).shape, 1, np.float64)
  for a, b in zip(value_and_gradients(upsample_2x, g, x), value_and_gradients(plain, g, x)):
    assert a.dtype == jnp.float64 and np.allclose(a, b, rtol=0, atol=1e-13)
  assert np.allclose(upsample_2x(x.astype(np.float32)), plain(x), atol=1e-6)


def test_upsampling_keeps_corners_constants_and_dtype():
  x = draw((1, 6, 5, 2))
  assert np.array_equal(upsample_2x(x)[:, ::11, ::9], x[:, ::5, ::4])
  assert np.allclose(upsample_2x(jnp.full((1, 6, 5, 1), 3.0)), 3)
  low = upsample_2x(x.astype(jnp.bfloat16))
  assert low.dtype == jnp.bfloat16
  assert np.allclose(low.astype(np.float32), upsample_2x(x.astype(jnp.bfloat16).astype(jnp.float32)), rtol=2**-8)


# -- BatchNorm


def plain_norm(x, scale, bias):
  axes = tuple(range(x.ndim - 1))
  mean, var = x.mean(axes), x.var(axes)
  return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


def apply_norm(x, scale, bias):
  variables = {'params': {'scale': scale, 'bias': bias}, 'batch_stats': {'mean': 0 * bias, 'var': 0 * bias + 1}}
  return BatchNorm().apply(variables, x, train=True, mutable=['batch_stats'])[0]


@pytest.mark.parametrize('shape', [(3, 5, 4, 2), (2, 3, 4, 2, 3), (6, 3)])
def test_batch_norm_and_its_gradients_are_those_of_the_formula(x64, shape):
  x = 3 * draw(shape, dtype=np.float64) + 5
  scale, bias, g = (draw(s, i, np.float64) for i, s in enumerate((shape[-1:], shape[-1:], shape), 1))
  for a, b in zip(
    value_and_gradients(apply_norm, g, x, scale, bias), value_and_gradients(plain_norm, g, x, scale, bias)
  ):
    assert a.dtype == jnp.float64 and np.allclose(a, b, rtol=1e-12, atol=1e-13)


def test_layer_gradients_agree_with_finite_differences(x64):
  x = draw((2, 4, 6, 3), dtype=np.float64)
  check_grads(upsample_2x, (x,), order=1, modes=['rev'])
  check_grads(max_pool, (x,), order=1, modes=['rev'])
  check_grads(apply_norm, (x, draw((3,), 2, np.float64), draw((3,), 3, np.float64)), order=1, modes=['rev'])


def test_batch_norm_running_statistics_are_pytorchs():
  x = draw((4, 3, 5, 2)) * 2 + 7
  variables = BatchNorm().init(jax.random.key(0), x)
  assert np.array_equal(variables['batch_stats']['mean'], [0, 0]) and np.array_equal(
    variables['batch_stats']['var'], [1, 1]
  )
  _, updates = BatchNorm().apply(variables, x, train=True, mutable=['batch_stats'])
  flat = np.asarray(x, np.float64).reshape(-1, 2)
  assert np.allclose(updates['batch_stats']['mean'], 0.1 * flat.mean(0), rtol=1e-5)
  assert np.allclose(updates['batch_stats']['var'], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
  evaluated = BatchNorm().apply({'params': variables['params'], **updates}, x)
  running = jax.tree.map(np.asarray, updates['batch_stats'])
  assert np.allclose(evaluated, (x - running['mean']) / np.sqrt(running['var'] + 1e-5), atol=1e-5)


def test_batch_norm_variance_does_not_cancel_under_a_large_mean():
  x = draw((4, 16, 16, 1)) + 10_000  # E[x^2] - E[x]^2 would be off by whole units here
  _, updates = BatchNorm(momentum=0.0).apply(
    BatchNorm().init(jax.random.key(0), x), x, train=True, mutable=['batch_stats']
  )
  assert np.allclose(updates['batch_stats']['var'], np.asarray(x, np.float64).var(ddof=1), rtol=1e-3)


def test_batch_norm_of_one_value_is_finite():
  x = jnp.full((1, 1, 1, 2), 3.0)
  y, updates = BatchNorm().apply(BatchNorm().init(jax.random.key(0), x), x, train=True, mutable=['batch_stats'])
  assert np.array_equal(y, jnp.zeros_like(x)) and np.isfinite(updates['batch_stats']['var']).all()
