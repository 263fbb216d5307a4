"""Depthwise convolution and GELU against XLA's own, their gradients, and sharding."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from afw_jax.models.layers import depthwise as depthwise_module
from afw_jax.models.layers.depthwise import depthwise
from afw_jax.models.layers.gelu import gelu


def draw(shape, seed=0, dtype=np.float32):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def plain_depthwise(x, kernel, dilation):
  pads = [(dilation * (k // 2),) * 2 for k in kernel.shape[:2]]
  return lax.conv_general_dilated(
    x,
    kernel,
    (1, 1),
    pads,
    rhs_dilation=(dilation,) * 2,
    feature_group_count=x.shape[-1],
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


@pytest.mark.parametrize(
  'shape, kernel, dilation',
  [((2, 9, 8, 3), (5, 5), 1), ((1, 12, 7, 2), (7, 7), 3), ((2, 4, 5, 20), (3, 3), 1), ((1, 6, 5, 2), (3, 1), 2)],
)
def test_depthwise_is_the_grouped_convolution_with_its_gradients(shape, kernel, dilation):
  x, kernel, grad = draw(shape), draw((*kernel, 1, shape[-1]), 1), draw(shape, 2)
  ours, pull = jax.vjp(lambda x, k: depthwise(x, k, dilation), x, kernel)
  plain, plain_pull = jax.vjp(lambda x, k: plain_depthwise(x, k, dilation), x, kernel)
  for one, other in zip((ours, *pull(grad)), (plain, *plain_pull(grad))):
    assert one.shape == other.shape and np.allclose(one, other, atol=1e-4)


def lowered(function, platform, *arrays):
  return jax.jit(function).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize('dtype, error', [(np.float32, 1e-5), (jnp.bfloat16, 5e-3)])
@pytest.mark.parametrize('dilation, parts', [(1, 1), (2, 1), (1, 2)])
def test_gradients_for_other_platforms_are_those_for_cpus(dtype, error, dilation, parts):
  x, kernel, grad = draw((2, 12, 7, 16), dtype=dtype), draw((5, 3, 1, 16), 1, dtype), draw((2, 12, 7, 16), 2, dtype)
  forms = depthwise_module._gradients_in_one, depthwise_module._gradients_by_tap
  for one, other in zip(*(form(x, kernel, grad, dilation=dilation, parts=parts) for form in forms)):
    assert one.shape == other.shape and one.dtype == other.dtype == dtype
    one, other = np.float32(one), np.float32(other)
    assert np.abs(one - other).max() <= error * np.abs(one).max()


def test_only_cpus_sum_several_taps_at_once():
  x, kernel = draw((1, 8, 8, 2)), draw((3, 3, 1, 2))
  gradients = lambda x, kernel, grad: jax.vjp(depthwise, x, kernel)[1](grad)
  sums_in_one = lambda platform: max(
    line.count(' init: ') for line in lowered(gradients, platform, x, kernel, x).splitlines()
  )
  assert {p: sums_in_one(p) for p in ('cpu', 'cuda', 'tpu')} == {'cpu': 9, 'cuda': 1, 'tpu': 1}


@pytest.mark.parametrize(
  'rows, size, dilation, parts',
  [(12, 3, 1, 4), (16, 7, 2, 2), (8, 7, 3, 4), (9, 3, 1, 2)],
  ids=['divided', 'wide', 'borders wider than parts', 'uneven'],
)
def test_parts_change_nothing(rows, size, dilation, parts):
  x, kernel, grad = draw((2, rows, 5, 3)), draw((size, 3, 1, 3), 1), draw((2, rows, 5, 3), 2)
  whole, pull = jax.vjp(lambda x, k: depthwise(x, k, dilation), x, kernel)
  divided, divided_pull = jax.vjp(lambda x, k: depthwise(x, k, dilation, parts), x, kernel)
  for one, other in zip((whole, *pull(grad)), (divided, *divided_pull(grad))):
    assert one.shape == other.shape and np.allclose(one, other, atol=1e-4)


def test_gradients_are_those_of_finite_differences():
  with jax.enable_x64(True):
    x, kernel = draw((1, 5, 4, 2), dtype=np.float64), draw((3, 3, 1, 2), 1, np.float64)
    check_grads(depthwise, (x, kernel), order=1, modes=['rev'])
    check_grads(gelu, (3 * x,), order=1, modes=['rev'])


def test_depthwise_sums_bfloat16_in_float32():
  x, kernel = draw((1, 16, 16, 4), dtype=jnp.bfloat16), draw((7, 7, 1, 4), 1, jnp.bfloat16)
  low, pull = jax.vjp(depthwise, x, kernel)
  full, full_pull = jax.vjp(depthwise, x.astype(jnp.float32), kernel.astype(jnp.float32))
  for one, other in zip((low, *pull(low)), (full, *full_pull(low.astype(jnp.float32)))):
    assert one.dtype == jnp.bfloat16 and np.allclose(one, other.astype(jnp.bfloat16), rtol=1e-2)


def test_gelu_is_the_one_of_the_error_function():
  x = jnp.linspace(-12, 12, 1001)
  assert np.allclose(gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
  assert gelu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


SHARDED = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from afw_jax.models.layers import depthwise as depthwise_module
from afw_jax.models.layers.depthwise import depthwise
mesh = jax.make_mesh((2, 2), ('rows', 'columns'), axis_types=(AxisType.Auto,) * 2)
x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 24, 16, 4)), jnp.float32)
kernel = jnp.asarray(np.random.default_rng(1).standard_normal((3, 3, 1, 4)), jnp.float32)
def work(x, kernel):
  y, pull = jax.vjp(depthwise, x, kernel)
  return (y, *pull(jnp.sin(y)))
alone = jax.jit(work)(x, kernel)
split, whole = NamedSharding(mesh, PartitionSpec(None, 'rows', 'columns')), NamedSharding(mesh, PartitionSpec())
apart = jax.jit(work, in_shardings=(split, whole), out_shardings=(split, split, whole)).lower(x, kernel).compile()
for one, other in zip(alone, apart(jax.device_put(x, split), kernel)):
  assert np.allclose(one, other, atol=1e-4), np.abs(one - other).max()
by_tap = lambda x, kernel, grad: depthwise_module._gradients_by_tap(x, kernel, grad, dilation=1, parts=2)  # on GPUs
by_tap = jax.jit(by_tap, in_shardings=(split, whole, split), out_shardings=(split, whole))
for one, other in zip(alone[1:], by_tap(jax.device_put(x, split), kernel, jax.device_put(jnp.sin(alone[0]), split))):
  assert np.allclose(one, other, atol=1e-4), np.abs(one - other).max()
text = apart.as_text()
assert 'collective-permute' in text
# what is gathered, if columns are split, is the sums over a row's parts, not the features
gathered = re.findall(r'= f32.([0-9,]+).\\S* all-(?:gather|to-all).', text)
assert all(np.prod([int(n) for n in shape.split(',')]) <= x.size / 8 for shape in gathered), gathered
"""


def test_depthwise_splits_over_devices_exchanging_only_borders():
  done = subprocess.run(
    [sys.executable, '-c', SHARDED],
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parents[3],
    env=os.environ | {'JAX_NUM_CPU_DEVICES': '4', 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.returncode == 0, done.stderr[-3000:]
