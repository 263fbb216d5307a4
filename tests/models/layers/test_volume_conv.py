"""The 3D convolution: every form of it gives the plain one's values and gradients, and splits over devices."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from afw_jax.models.layers.conv import Conv
from afw_jax.models.layers.volume_conv import strided_conv, volume_conv

# batches of one and of several, more inputs than outputs and fewer, volumes thinner than the kernel
CASES = [
  ((1, 5, 4, 7, 3), (3, 3, 3), 2),
  ((2, 5, 4, 7, 3), (3, 3, 3), 2),
  ((1, 5, 4, 6, 1), (3, 3, 3), 4),
  ((3, 2, 4, 3, 2), (3, 3, 3), 5),
  ((1, 1, 3, 4, 2), (5, 3, 3), 2),
  ((2, 3, 1, 4, 2), (3, 5, 5), 2),
  ((1, 3, 4, 5, 2), (1, 3, 3), 2),
  ((2, 3, 4, 5, 2), (3, 1, 1), 3),
  ((2, 3, 4, 5, 2), (1, 1, 1), 3),
]


def draw(*shape, dtype=np.float32):
  return jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)


def plain(x, kernel):
  return lax.conv_general_dilated(
    x, kernel, (1, 1, 1), [(k // 2, k // 2) for k in kernel.shape[:3]], dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC')
  )


def program(x, kernel, platform):
  """The lowered text of value and gradients."""
  traced = jax.jit(lambda x, kernel: jax.vjp(volume_conv, x, kernel)[1](volume_conv(x, kernel))).trace(x, kernel)
  return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize('shape, size, outputs', CASES)
def test_values_and_gradients_are_the_plain_convolutions(shape, size, outputs):
  x, kernel, grad = draw(*shape), draw(*size, shape[-1], outputs), draw(*shape[:-1], outputs)

  @jax.jit
  def both(x, kernel, grad):
    return [(y, *pull(grad)) for y, pull in (jax.vjp(f, x, kernel) for f in (volume_conv, plain))]

  for ours, wanted in zip(*both(x, kernel, grad)):
    assert ours.shape == wanted.shape and np.abs(ours - wanted).max() < 5e-6 * np.abs(wanted).max()


@pytest.mark.parametrize(
  'shape, size, strides',
  [
    ((1, 8, 6, 4, 3), (3, 3, 3), (2, 2, 2)),
    ((2, 5, 7, 6, 2), (3, 3, 3), (2, 2, 2)),
    ((1, 4, 9, 8, 2), (1, 3, 5), (1, 2, 3)),
    ((1, 1, 3, 2, 2), (3, 3, 3), (2, 2, 2)),
  ],
)
def test_with_strides_values_and_gradients_are_the_plain_convolutions(shape, size, strides):
  x, kernel = draw(*shape), draw(*size, shape[-1], 4)
  plain = lambda x, kernel: lax.conv_general_dilated(
    x, kernel, strides, [(k // 2, k // 2) for k in size], dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC')
  )
  y, pull = jax.vjp(lambda x, kernel: strided_conv(x, kernel, strides), x, kernel)
  wanted, plain_pull = jax.vjp(plain, x, kernel)
  grad = jnp.cos(y)
  for ours, other in zip((y, *pull(grad)), (wanted, *plain_pull(grad))):
    assert ours.shape == other.shape and np.abs(ours - other).max() < 1e-5 * np.abs(other).max()


@pytest.mark.parametrize('shape, size, outputs', [CASES[0], CASES[3]])
def test_gradients_are_finite_differences(shape, size, outputs):
  with jax.enable_x64(True):
    x, kernel = draw(*shape, dtype=np.float64), draw(*size, shape[-1], outputs, dtype=np.float64)
    check_grads(jax.jit(lambda x, k: jnp.sin(volume_conv(x, k)).sum()), (x, kernel), order=1, modes=('rev',), eps=1e-6)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_16_bit_floats_are_rounded_only_at_the_end(dtype):
  x, kernel = draw(2, 4, 5, 6, 8).astype(dtype), draw(3, 3, 3, 8, 8).astype(dtype)
  y, pull = jax.vjp(jax.jit(volume_conv), x, kernel)
  exact = plain(x.astype(jnp.float32), kernel.astype(jnp.float32))
  assert {a.dtype for a in (y, *pull(y))} == {np.dtype(dtype)}
  assert np.abs(y.astype(jnp.float32) - exact).max() <= 0.51 * jnp.finfo(dtype).eps * np.abs(exact).max()


def test_the_form_is_that_of_the_platform_compiled_for():
  x, kernel = draw(1, 4, 4, 4, 2), draw(3, 3, 3, 2, 2)
  for platform, rank in (('cpu', 4), ('cuda', 5), ('tpu', 5)):
    shapes = re.findall(r'stablehlo.convolution.*-> tensor<([\dx]+)xf32>', program(x, kernel, platform))
    assert [len(shape.split('x')) for shape in shapes] == [rank] * 3  # the value and two gradients, nothing twice


@pytest.mark.parametrize(
  'options',
  [{'strides': 2}, {'strides': (2, 1, 1)}, {'dilation': 2}, {'groups': 2}, {'padding': 0}, {'kernel_size': 2}, {}],
)
def test_the_layer_is_the_plain_convolution_with_any_option(options):
  x = draw(1, 6, 5, 7, 4)
  layer = Conv(4, **options, use_bias=False)
  y, variables = layer.init_with_output(jax.random.key(0), x)
  size, strides, dilation = (
    options.get(key, one) for key, one in (('kernel_size', 3), ('strides', 1), ('dilation', 1))
  )
  pad = options.get('padding', dilation * (size - 1) // 2)
  wanted = lax.conv_general_dilated(
    x,
    variables['params']['kernel'],
    np.broadcast_to(strides, 3),
    [(pad, pad)] * 3,
    rhs_dilation=(dilation,) * 3,
    feature_group_count=options.get('groups', 1),
    dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
  )
  assert y.shape == wanted.shape and np.allclose(y, wanted, atol=2e-6)


SPLIT = """
import functools, re, jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from afw_jax.models.layers.residual import ResBlock

def check(block, batch, inputs, devices, spec):
  x = jnp.asarray(np.random.default_rng(0).random((batch, 16, 16, 8, inputs)))
  variables = jax.jit(block.init)(jax.random.key(0), x)
  def step(variables, x):
    loss = lambda v, x: jnp.sin(block.apply(v, x, True, mutable=['batch_stats'])[0]).mean()
    return jax.value_and_grad(loss, (0, 1))(variables, x)
  jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
  mesh = Mesh(np.array(jax.devices()[:np.prod(devices)]).reshape(devices), ('data', 'depth', 'height'))
  whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(*spec))
  many = jit(step, in_shardings=(whole, split), out_shardings=(whole, (whole, split))).lower(variables, x).compile()
  text = many.as_text()
  assert 'collective-permute' in text and not re.search('all-gather|all-to-all', text), (batch, devices)
  apart = many(jax.device_put(variables, whole), jax.device_put(x, split))
  for a, b in zip(*map(jax.tree.leaves, (jit(step)(variables, x), apart))):
    assert np.abs(a - b).max() <= 1e-6 * np.abs(a).max(), (batch, devices)

check(ResBlock(4, dtype=jnp.float64), 1, 6, (1, 8, 1), (None, 'depth'))
check(ResBlock(4, norm='batch', dtype=jnp.float64), 4, 2, (2, 2, 2), ('data', 'depth', 'height'))
print('equal')
"""


def test_a_residual_block_over_eight_devices_exchanges_only_edges():
  run = subprocess.run(
    [sys.executable, '-c', SPLIT],
    capture_output=True,
    text=True,
    cwd=Path(__file__).parents[3],
    env=os.environ | {'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu', 'JAX_ENABLE_X64': '1'},
  )
  assert run.stdout.strip() == 'equal', run.stderr[-2000:]
