"""Convolutions of images with fewer rows than the kernel: the values, and the gradients over devices."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from afw_jax.models.layers.conv import convolve


@pytest.mark.parametrize('rows', [1, 2, 4])
@pytest.mark.parametrize(
  'size, strides, before, dilation, groups',
  [
    ((3, 3), (1, 1), 1, 1, 1),
    ((7, 7), (2, 2), 3, 1, 1),
    ((3, 3), (2, 2), 1, 1, 2),
    ((5, 3), (1, 2), 2, 2, 1),
    ((2, 2), (1, 1), 1, 1, 4),
    ((3, 3, 3), (1, 1, 1), 1, 1, 1),
    ((3, 3, 3), (2, 2, 2), 1, 1, 1),
    ((3, 1, 3), (2, 1, 1), 2, 1, 1),
  ],
)
def test_equals_the_plain_convolution(rows, size, strides, before, dilation, groups):
  rng, rank = np.random.default_rng(0), len(size)
  x = jnp.asarray(rng.normal(size=(2, rows, *range(5, 4 + rank), 4)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(*size, 4 // groups, 8)), jnp.float32)
  padding = [(before * dilation, before * dilation)] + [(before, k // 2) for k in size[1:]]
  letters = 'DHW'[-rank:]
  plain = lambda x, kernel: lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    rhs_dilation=(dilation,) * rank,
    feature_group_count=groups,
    dimension_numbers=(f'N{letters}C', f'{letters}IO', f'N{letters}C'),
  )
  ours = lambda x, kernel: convolve(x, kernel, strides, padding, (dilation,) * rank, groups)
  if any(n <= 0 for n in jax.eval_shape(plain, x, kernel).shape):
    pytest.skip('no output')
  a, b = ours(x, kernel), plain(x, kernel)
  assert a.shape == b.shape and np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def test_patches_without_overlap_equal_the_plain_convolution():
  rng = np.random.default_rng(0)
  x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 9, 8, 3), (4, 2, 3, 5)))
  plain = lax.conv_general_dilated(x, kernel, (4, 2), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  ours = convolve(x, kernel, (4, 2), [(0, 0), (0, 0)])
  assert ours.shape == plain.shape == (2, 2, 4, 5) and np.abs(ours - plain).max() <= 1e-5 * np.abs(plain).max()


OVER_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from afw_jax.models.layers.conv import convolve

mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ('data', 'spatial'))
whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P('data', 'spatial'))
for rows, size, stride in ((2, (3, 3), 1), (4, (7, 7), 1), (4, (3, 3), 2), (2, (3, 3, 3), 1)):
  rng, rank = np.random.default_rng(0), len(size)
  x = jnp.asarray(rng.normal(size=(8, rows, *[3] * (rank - 1), 16)))
  kernel = jnp.asarray(rng.normal(size=(*size, 16, 16)))
  f = jax.grad(lambda x, k: jnp.sin(convolve(x, k, (stride,) * rank, [(n // 2, n // 2) for n in size])).sum(), (0, 1))
  one, many = jax.jit(f)(x, kernel), jax.jit(f, in_shardings=(split, whole), out_shardings=(split, whole))(x, kernel)
  for a, b in zip(one, many):
    assert np.abs(a - b).max() <= 1e-12 * np.abs(a).max(), (rows, size, stride)

from afw_jax.distributed import sharding
from afw_jax.models.layers.upsample import upsample_2x
x = jnp.asarray(rng.normal(size=(2, 2, 3, 4)))
constrain = sharding.make_constrain(sharding.make_mesh(1, 4, jax.devices()[:4]))
f = lambda x, constrain: constrain(upsample_2x(constrain(x), constrain))
value = lambda constrain: jax.jit(jax.value_and_grad(lambda x: (f(x, constrain)**2).sum()))(x)
for a, b in zip(value(lambda x: x), value(constrain)):
  assert np.abs(a - b).max() <= 1e-12 * np.abs(a).max(), 'upsampled'
print('equal')
"""


def test_gradients_over_devices_that_share_few_rows():
  """Without the special cases gradients are wrong (jaxlib 0.10.2).

  Those of the plain convolution are four times too large or too small; those of two rows doubled over four devices,
  without `constrain` inside, are doubled.
  """
  run = subprocess.run(
    [sys.executable, '-c', OVER_DEVICES],
    capture_output=True,
    text=True,
    cwd=Path(__file__).parents[3],
    env=os.environ | {'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu', 'JAX_ENABLE_X64': '1'},
  )
  assert run.stdout.strip() == 'equal', run.stderr[-2000:]
