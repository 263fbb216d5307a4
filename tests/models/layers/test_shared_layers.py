"""Layers that several networks share, against their formulas."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from afw_jax.models.layers import attention
from afw_jax.models.layers.conv import Linear
from afw_jax.models.layers.norm import GroupNorm, InstanceNorm, LayerNorm
from afw_jax.models.layers.residual import ResBlock
from afw_jax.models.layers.transposed import UpConv

rng = np.random.default_rng(0)


def random(*shape):
  return rng.standard_normal(shape).astype(np.float32)


def run(module, x):
  """(output, params) with random parameters, so that none is 0 or 1 by chance of its initialisation."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)
  params = jax.tree.map(lambda a: random(*a.shape), shapes)
  return module.apply(params, x), params.get('params', {})


@pytest.mark.parametrize('shape, factor', [((2, 3, 4, 5), 2), ((1, 2, 3, 2, 4), (2, 4, 4)), ((2, 3, 4, 5), (1, 3))])
def test_up_conv_is_the_transposed_convolution_by_its_definition(shape, factor):
  x = random(*shape)
  y, params = run(UpConv(6, factor), x)
  kernel = params['transposed_kernel']
  sides = np.broadcast_to(factor, len(shape) - 2)
  wanted = np.zeros((shape[0], *(n * k for n, k in zip(shape[1:-1], sides)), 6), np.float32)
  for offset in np.ndindex(*sides):
    block = (slice(None), *(slice(o, None, k) for o, k in zip(offset, sides)))
    wanted[block] = x @ kernel[offset]
  np.testing.assert_allclose(y, wanted, atol=1e-5)


def test_up_conv_adds_its_bias():
  x = random(1, 2, 3, 4)
  y, params = run(UpConv(5, 2, use_bias=True), x)
  without = UpConv(5, 2).apply({'params': {'transposed_kernel': params['transposed_kernel']}}, x)
  np.testing.assert_allclose(y, without + params['bias'], atol=1e-6)


def test_up_conv_is_laxs_transposed_convolution_with_a_flipped_kernel():
  x = random(1, 3, 4, 2, 5)
  y, params = run(UpConv(3, 2), x)
  flipped = params['transposed_kernel'][::-1, ::-1, ::-1]
  wanted = jax.lax.conv_transpose(x, flipped, (2, 2, 2), 'VALID', dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'))
  np.testing.assert_allclose(y, wanted, atol=1e-5)


def test_norms_are_their_formulas_and_leave_a_bf16_input_bf16():
  x = 1000 + random(2, 3, 4, 5, 8)  # a large mean: E[x^2] - E[x]^2 would lose four digits

  def formula(x, axes, eps):
    x = x.astype(np.float64)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)

  y, params = run(InstanceNorm(), x)
  np.testing.assert_allclose(y, formula(x, (1, 2, 3), 1e-5), atol=3e-3)
  assert not params
  y, params = run(InstanceNorm(affine=True), x)
  np.testing.assert_allclose(y, formula(x, (1, 2, 3), 1e-5) * params['scale'] + params['bias'], atol=3e-3)
  y, params = run(LayerNorm(1e-6), x)
  np.testing.assert_allclose(y, formula(x, -1, 1e-6) * params['scale'] + params['bias'], atol=3e-3)
  y, params = run(GroupNorm(4, 1e-6), x)
  wanted = formula(x.reshape(2, 3, 4, 5, 4, 2), (1, 2, 3, 5), 1e-6).reshape(x.shape)
  np.testing.assert_allclose(y, wanted * params['scale'] + params['bias'], atol=3e-3)
  for norm in (InstanceNorm(), LayerNorm(), GroupNorm(2)):
    y, _ = run(norm, x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16 and np.isfinite(y.astype(np.float32)).all()


def test_norms_agree_with_flax_in_float32_gradients_too():
  x, g = random(2, 6, 6, 8), random(2, 6, 6, 8)

  def gradients(module, params):
    return jax.grad(lambda params, x: (module.apply({'params': params}, x) * g).sum(), (0, 1))(params, x)

  for ours, theirs in (
    (LayerNorm(1e-6), nn.LayerNorm(1e-6, use_fast_variance=False)),
    (GroupNorm(4, 1e-6), nn.GroupNorm(4, epsilon=1e-6, use_fast_variance=False)),
  ):
    _, params = run(ours, x)
    for a, b in zip(*map(jax.tree.leaves, (gradients(ours, params), gradients(theirs, params)))):
      np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(b).max())


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_attention_is_the_formula(dtype):
  q, k, v = random(2, 5, 3, 8), random(2, 7, 3, 8), random(2, 7, 3, 8)
  y = attention.attend(*(jnp.asarray(a, dtype) for a in (q, k, v)))
  scores = np.einsum('bnhd,bmhd->bhnm', q, k) / np.sqrt(8)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  wanted = np.einsum('bhnm,bmhd->bnhd', weights / weights.sum(-1, keepdims=True), v)
  assert y.dtype == dtype
  np.testing.assert_allclose(y.astype(np.float32), wanted, atol=1e-5 if dtype == 'float32' else 0.05)


DETERMINISTIC = '--xla_gpu_deterministic_ops'
H200 = ('NVIDIA H200', '9.0')


@pytest.mark.parametrize(
  'kind, capability, dtype, channels, flags, wanted',
  [
    (*H200, 'bfloat16', 64, '', 'cudnn'),
    (*H200, 'float16', 128, '--xla_dump_to=x', 'cudnn'),
    (*H200, 'float32', 64, '', 'xla'),
    (*H200, 'bfloat16', 12, '', 'xla'),
    (*H200, 'bfloat16', 256, '', 'xla'),
    ('Tesla T4, NVIDIA', '7.5', 'bfloat16', 64, '', 'xla'),
    ('AMD MI300', 'gfx942', 'bfloat16', 64, '', 'xla'),
    # XLA may use deterministic kernels only
    (*H200, 'bfloat16', 64, f'{DETERMINISTIC}=true', 'xla'),
    (*H200, 'bfloat16', 64, f'--xla_dump_to=x {DETERMINISTIC}', 'xla'),
    (*H200, 'bfloat16', 64, '--xla_gpu_exclude_nondeterministic_ops=1', 'xla'),
    (*H200, 'bfloat16', 64, f'{DETERMINISTIC}=false', 'cudnn'),
    (*H200, 'bfloat16', 64, f'{DETERMINISTIC}=true {DETERMINISTIC}=false', 'cudnn'),
  ],
)
def test_flash_attention_is_asked_for_only_where_it_exists(
  monkeypatch, kind, capability, dtype, channels, flags, wanted
):
  device = types.SimpleNamespace(platform='gpu', device_kind=kind, compute_capability=capability)
  assert attention.kernel(jnp.dtype(dtype), channels, device, flags) == wanted
  monkeypatch.setenv('XLA_FLAGS', flags)
  monkeypatch.setattr(jax, 'devices', lambda: [device])
  used = []
  monkeypatch.setattr(jax.nn, 'dot_product_attention', lambda q, k, v, implementation: used.append(implementation))
  token = jnp.zeros((1, 1, 1, channels), dtype)
  attention.attend(token, token, token)
  attention.attend(token, token, token, divided=True)
  attention.plain_attend(token, token, token)
  assert used == [wanted, 'xla', 'xla']


def test_linear_starts_as_pytorch_does():
  params = Linear(4000).init(jax.random.key(0), jnp.zeros((1, 25)))['params']
  for leaf in (params['kernel'], params['bias']):
    assert np.abs(leaf).max() <= 0.2 and np.abs(leaf).max() > 0.195 and abs(float(leaf.mean())) < 0.01


def test_residual_block_has_a_third_convolution_only_where_widths_differ():
  def leaves(block, channels):
    variables = jax.eval_shape(block.init, jax.random.key(0), jnp.zeros((1, 4, 4, 4, channels)))
    return {'/'.join(path): leaf.shape for path, leaf in traverse_util.flatten_dict(variables).items()}

  kernels = {'params/conv1/kernel': (3, 3, 3, 4, 4), 'params/conv2/kernel': (3, 3, 3, 4, 4)}
  assert leaves(ResBlock(4), 4) == kernels
  assert leaves(ResBlock(4, shortcut=False), 2) == {**kernels, 'params/conv1/kernel': (3, 3, 3, 2, 4)}
  assert set(leaves(ResBlock(4), 2)) == {*kernels, 'params/conv3/kernel'}
  assert {'params/norm3/scale', 'params/norm3/bias', 'batch_stats/norm3/mean'} < set(
    leaves(ResBlock(4, norm='batch'), 2)
  )
