"""VATransUNet against the numbers of the released network, its options, and the pieces only it uses."""

import os
import pathlib
import subprocess
import sys

import flax.traverse_util
import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from afw_jax import models
from afw_jax.errors import InputError
from afw_jax.models.layers import van
from afw_jax.models.layers.depthwise import depthwise
from afw_jax.models.layers.gelu import gelu
from afw_jax.weights import convert


def draw(shape, seed=0, dtype=np.float32):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def build(num_classes=4, size='testing', **options):
  return models.build('vatransunet', num_classes, size=size, **options)


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes_of(model, shape):
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))


def compiled(f):
  return jax.jit(f, compiler_options={'xla_backend_optimization_level': 0})


@pytest.fixture(scope='module')
def small():
  model, image = build(), jnp.abs(draw((3, 32, 48, 1)))
  variables = models.init(model, jax.random.key(0), image.shape)
  return model, variables, image, compiled(model.apply)(variables, image)


# -- the network


def test_logits_are_the_released_networks():
  meta, state_dict, image, golden = golden_weights.load('vatransunet')
  variables = convert.from_torch('vatransunet', state_dict)
  assert count(variables['params']) == meta['parameters'] == 8_189_209
  logits = jax.jit(models.build('vatransunet', 9).apply)(variables, image)
  assert list(logits.shape) == meta['outputs']['eval']['shape'] and logits.dtype == jnp.float32
  assert golden_weights.worst_error(logits, golden) < 1e-5


def test_parameter_counts():
  for classes, shape, parameters in (
    (9, (1, 224, 224, 1), 8_189_209),
    (9, (1, 224, 224, 3), 8_189_209),
    (5, (1, 16, 16, 1), 8_188_629),
  ):
    params = shapes_of(models.build('vatransunet', classes), shape)['params']
    assert count(params) == parameters
    assert (count(params['van']), count(params['decoder'])) == (3_848_800, 4_339_104)


def test_other_sizes_and_channels_keep_the_parameters_but_for_the_first_convolution():
  model = build()
  one, four = (shapes_of(model, (1, 16, 16, c))['params'] for c in (1, 4))
  assert count(four) - count(one) == 7 * 7 * 4
  for shape in ((2, 16, 32, 1), (1, 80, 48, 1)):
    assert jax.eval_shape(model.apply, shapes_of(model, (1, 16, 16, 1)), jnp.zeros(shape)).shape == (*shape[:-1], 4)


def test_one_channel_is_three_equal_channels(small):
  model, variables, image, logits = small
  assert np.allclose(logits, compiled(model.apply)(variables, jnp.concatenate([image] * 3, -1)), atol=1e-5)


def test_bfloat16_computes_low_and_keeps_float32(small):
  _, variables, image, full = small
  low = build(dtype='bfloat16')
  trained = jax.eval_shape(
    lambda: low.apply(variables, image, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)})
  )
  assert {leaf.dtype for leaf in jax.tree.leaves((trained, shapes_of(low, image.shape)))} == {np.dtype('float32')}
  logits = compiled(low.apply)(variables, image)
  assert 1e-4 < np.sqrt(np.mean((logits - full) ** 2)) / np.std(full) < 0.05


def test_recomputed_blocks_give_the_same_gradients():
  x = draw((3, 8, 8, 2))

  def gradients(remat):
    model = van.VAN((van.Stage(4, 2, 2),), drop_path_rate=0.5, remat=remat)

    def loss_of(params, rest):
      maps, _ = model.apply(
        {**rest, 'params': params}, x, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(1)}
      )
      return jnp.square(maps[0] - x[:, ::2, ::2, :1]).mean()

    variables = jax.tree.map(lambda a: draw(a.shape), jax.eval_shape(model.init, jax.random.key(0), x))
    return compiled(jax.grad(loss_of))(variables.pop('params'), variables)

  plain, again = (flax.traverse_util.flatten_dict(gradients(remat)) for remat in (False, True))
  assert plain.keys() == again.keys()
  largest = max(np.abs(g).max() for g in plain.values())
  for path in plain:
    assert np.abs(plain[path] - again[path]).max() < 1e-5 * largest, path


def test_a_case_does_not_depend_on_its_batch_and_no_rng_is_needed_without_dropping(small):
  model, variables, image, logits = small
  assert np.allclose(compiled(model.apply)(variables, image[1:2]), logits[1:2], atol=1e-5)
  jax.eval_shape(lambda: build(drop_path_rate=0).apply(variables, image, train=True, mutable=['batch_stats']))


def test_constrain_sees_every_block_and_the_logits():
  seen = []
  shapes_of(build(constrain=lambda x: seen.append(x.shape[1:]) or x), (1, 32, 48, 1))
  pairs = [shape for shape in seen if len(shape) == 4]  # of rows, where they are doubled
  assert [(rows, two) for rows, two, _, _ in pairs] == [(2, 2), (4, 2), (8, 2), (16, 2)]
  assert [s for s in seen if s not in pairs] == [
    (16, 24, 4),
    (8, 12, 4),
    (4, 6, 8),
    (2, 3, 8),
    (2, 3, 16),
    (2, 3, 8),
    (4, 6, 8),
    (8, 12, 4),
    (16, 24, 4),
    (32, 48, 4),
    (32, 48, 4),
    (32, 48, 4),
  ]


@pytest.mark.parametrize(
  'shape, words',
  [((1, 200, 224, 1), ['200 x 224', '192 x 224', '208 x 224']), ((224, 224, 1), ['(B, H, W, channels)'])],
)
def test_images_it_cannot_take_are_refused_with_what_it_can(shape, words):
  with pytest.raises(InputError) as caught:
    shapes_of(build(), shape)
  assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
  'options, word',
  [
    ({'size': 'huge'}, "'testing'"),
    ({'drop_path_rate': 1}, r'\[0, 1\)'),
    ({'drop_path_rate': '0.1'}, r'\[0, 1\)'),
    ({'dtype': 'int32'}, 'bfloat16'),
  ],
)
def test_option_values_that_cannot_work_are_refused_with_those_that_do(options, word):
  with pytest.raises(InputError, match=word):
    build(**options)


# -- the encoder


def test_initialisation_is_vans():
  stages = [stage._replace(depth=1) for stage in van.VAN_B0]
  params = compiled(van.VAN(stages).init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))['params']
  wanted = {
    ('patch_embed1', 'proj'): 7 * 7 * 32,
    ('patch_embed4', 'proj'): 3 * 3 * 256,
    ('block3_0', 'mlp', 'fc1'): 640,
    ('block3_0', 'mlp', 'dwconv'): 3 * 3,
    ('block4_0', 'attn', 'spatial_gating_unit', 'conv_spatial'): 7 * 7,
  }
  for path, fan_out in wanted.items():
    leaf = params
    for name in path:
      leaf = leaf[name]
    assert np.isclose(leaf['kernel'].std(), np.sqrt(2 / fan_out), rtol=0.1), path
    assert not leaf['bias'].any()
  assert np.array_equal(params['block1_0']['layer_scale_2'], np.full(32, 1e-2, np.float32))


def test_drop_path_drops_whole_samples_of_a_branch_and_keeps_the_mean():
  x = draw((64, 2, 2, 4))
  variables = jax.eval_shape(lambda key: van.Block(2, 0.0).init(key, x, False), jax.random.key(0))
  variables = jax.tree.map(lambda a: 0.1 * draw(a.shape), variables)

  def change(rate):
    block = van.Block(2, rate)
    return compiled(lambda key: block.apply(variables, x, True, mutable=['batch_stats'], rngs={'dropout': key})[0] - x)(
      jax.random.key(1)
    )

  moved, kept = change(0.5), change(0.0)
  still = np.abs(moved).max((1, 2, 3)) == 0
  assert 5 <= still.sum() <= 28  # both branches dropped: a quarter of 64
  # both kept: twice the change, but for the second branch's norm seeing other samples changed by 1 %
  ratio = np.abs(moved).mean((1, 2, 3)) / np.abs(kept).mean((1, 2, 3))
  assert 5 <= (np.abs(ratio - 2) < 0.1).sum() <= 28


def test_drop_rates_grow_linearly_over_all_blocks():
  rates = []

  def record(next_fun, args, kwargs, context):
    if isinstance(context.module, van.Block) and context.method_name == '__call__':
      rates.append(context.module.drop_rate)
    return next_fun(*args, **kwargs)

  with van.nn.intercept_methods(record):
    jax.eval_shape(van.VAN().init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  assert np.allclose(rates, np.linspace(0, 0.1, 13))


# -- depthwise convolution and GELU


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
    cwd=pathlib.Path(__file__).parents[2],
    env=os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=4', 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.returncode == 0, done.stderr[-3000:]
