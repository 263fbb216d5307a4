"""UNETR against the numbers of MONAI's, its parts against plain readings, and its options."""

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax import linen as nn
from flax import traverse_util

from afw_jax.errors import InputError
from afw_jax.models import unetr
from afw_jax.models.layers.positions import position_table, resize_table
from afw_jax.models.layers.residual import ResBlock
from afw_jax.models.layers.vit import Block, SelfAttention
from afw_jax.weights import convert

SMALL = (2, 16, 32, 16, 2)
DEAD_IN_MONAI = 18_432  # norm_cross_attn


def jit(function):
  """Compiled without optimisation: compiling is what takes the time here."""
  return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0})


def draw(*shape):
  return jnp.asarray(np.random.default_rng(0).random(shape, dtype=np.float32))


def shapes(model, shape):
  return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def random_variables(model, shape):
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda a: rng.standard_normal(a.shape, np.float32) * (0.1 if a.ndim == 1 else a.size**-0.3), shapes(model, shape)
  )


@pytest.fixture(scope='module')
def golden():
  facts, state, image, numbers = golden_weights.load('unetr')
  return facts, state, convert.from_torch('unetr', state), image, numbers


@pytest.fixture(scope='module')
def small():
  """(model, variables, image, logits)"""
  model, image = unetr.make(3, size='testing'), draw(*SMALL)
  variables = random_variables(model, SMALL)
  return model, variables, image, jit(model.apply)(variables, image)


# -- the whole network


def test_logits_are_monais(golden):
  facts, _, variables, image, numbers = golden
  logits = jax.jit(unetr.make(9).apply)(variables, image)
  assert list(logits.shape) == facts['outputs']['eval']['shape'] and logits.dtype == jnp.float32
  assert golden_weights.worst_error(logits, numbers) < 2e-5
  assert count(variables) == facts['parameters'] - DEAD_IN_MONAI


@pytest.mark.parametrize(
  'classes, options, shape, parameters',
  [
    (14, {}, (96, 96, 96), 92_802_478),
    (9, {}, (96, 96, 96), 92_802_393),
    (5, {}, (96, 96, 96), 92_802_325),
    (14, {'feature_size': 32}, (96, 96, 96), 101_805_646),
    (14, {'conv_block': False}, (96, 96, 96), 92_470_702),
    (14, {'qkv_bias': True}, (96, 96, 96), 92_830_126),
    (14, {}, (128, 128, 64), 92_833_198),
    (9, {}, (64, 128, 128), 92_833_113),
    (5, {}, (256, 256, 128), 94_209_301),
    (5, {}, (128, 128, 128), 93_029_653),
    (5, {'patch_embedding': 'conv'}, (128, 128, 128), 93_029_653),
  ],
)
def test_parameter_counts(classes, options, shape, parameters):
  variables = shapes(unetr.make(classes, **options), (1, *shape, 1))
  assert count(variables) == parameters - DEAD_IN_MONAI


def test_unknown_and_missing_keys_are_refused_but_not_the_dead_ones(golden):
  _, state, _, _, _ = golden
  assert sum('norm_cross_attn' in key for key in state) == 24
  with pytest.raises(InputError, match='missing: .*patch_embeddings.weight; .*unknown: .*patch_embeddings.1.weight'):
    convert.from_torch('unetr', state, patch_embedding='conv')
  with pytest.raises(InputError, match=r'missing: encoder2.blocks.0.conv.weight.*unknown: encoder2.blocks.0.0'):
    convert.from_torch('unetr', state, conv_block=False)
  with pytest.raises(InputError, match='position_embeddings is .1, 32, 768., not .1, 216, 768.'):
    convert.from_torch('unetr', state, position_grid=(6, 6, 6))


def test_both_patch_embeddings_are_one_function_of_differently_shaped_weights(golden, small):
  _, state, variables, _, _ = golden
  perceptron, conv = (f'vit.patch_embedding.patch_embeddings.{kind}' for kind in ('1.weight', 'weight'))
  other = {key.replace('embeddings.1.', 'embeddings.'): value for key, value in state.items()}
  other[conv] = state[perceptron].reshape(768, 16, 16, 16, 1).transpose(0, 4, 1, 2, 3)  # (p1 p2 p3 c) -> c, p1, p2, p3
  flat, shaped = (
    v['params']['patch_embedding'][kind]['kernel']
    for v, kind in ((variables, 'perceptron'), (convert.from_torch('unetr', other, patch_embedding='conv'), 'conv'))
  )
  assert shaped.shape == (16, 16, 16, 1, 768) and np.array_equal(shaped.reshape(flat.shape), flat)

  _, variables, image, _ = small
  patches = variables['params']['patch_embedding']
  tokens = unetr.PatchEmbedding(24, True, 0.0).apply({'params': patches}, image)
  moved = {
    **patches,
    'conv': {**patches['perceptron'], 'kernel': patches['perceptron']['kernel'].reshape(16, 16, 16, 2, 24)},
  }
  assert np.array_equal(tokens, unetr.PatchEmbedding(24, False, 0.0).apply({'params': moved}, image))
  kernel, bias = patches['perceptron']['kernel'], patches['perceptron']['bias']
  second = image[1, :, 16:].reshape(-1) @ kernel + bias + patches['position_embeddings'][0, 1]
  assert np.allclose(tokens[1, 1], second, atol=1e-5)


def test_initialisation_is_the_references():
  perceptron, conv = (
    unetr.PatchEmbedding(24, flat, 0.0).init(jax.random.key(0), jnp.zeros((1, 32, 32, 32, 1)))['params']
    for flat in (True, False)
  )
  assert (
    np.isclose(perceptron['perceptron']['kernel'].std(), 0.02, rtol=0.02) and not perceptron['perceptron']['bias'].any()
  )
  assert np.isclose(perceptron['position_embeddings'].std(), 0.02, rtol=0.2)
  assert (
    np.isclose(conv['conv']['kernel'].std(), 1 / 64 / np.sqrt(3), rtol=0.02)
    and np.abs(conv['conv']['kernel']).max() < 1 / 64
  )
  assert conv['conv']['bias'].any()


def test_bfloat16_computes_low_and_keeps_float32(small):
  model, variables, image, full = small
  low = model.clone(dtype=jnp.dtype('bfloat16'))
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes(low, SMALL))} == {np.dtype('float32')}
  logits = jit(low.apply)(variables, image)
  assert logits.dtype == jnp.float32 and 1e-4 < np.sqrt(np.mean((logits - full) ** 2)) / np.std(full) < 0.05


def test_remat_changes_no_gradient():
  model, image = unetr.make(3, size='testing', conv_block=False), draw(*SMALL)
  variables = random_variables(model, SMALL)
  programs = [
    jit(jax.grad(lambda v, m=m: jnp.sin(m.apply(v, image, True)).sum())).lower(variables)
    for m in (model, model.clone(remat=True))
  ]
  assert ['optimization_barrier' in p.as_text() for p in programs] == [False, True]
  for plain, again in zip(*(jax.tree.leaves(p.compile()(variables)) for p in programs)):
    assert np.abs(plain - again).max() <= 1e-4 * np.abs(plain).max()


def test_dropout_drops_in_training_only(small):
  _, variables, image, logits = small
  model = unetr.make(3, size='testing', dropout_rate=0.3)
  train = jit(lambda key: model.apply(variables, image, train=True, rngs={'dropout': key}))
  one, same, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
  assert np.array_equal(one, same) and np.abs(one - other).max() > 0.01
  assert np.allclose(jit(model.apply)(variables, image), logits, atol=1e-5)


def test_another_size_takes_the_interpolated_positions(small):
  model, variables, image, logits = small
  larger = draw(1, 32, 16, 48, 2)
  with pytest.raises(InputError, match='table of 2 positions for a grid of 2 x 1 x 3.*position_grid'):
    jax.eval_shape(model.apply, variables, larger)
  told = model.clone(position_grid=(1, 2, 1))
  assert np.allclose(jit(told.apply)(variables, image), logits, atol=1e-5)
  assert shapes(told, (1, 48, 16, 16, 2))['params']['patch_embedding']['position_embeddings'].shape == (1, 2, 24)
  resized = resize_table(variables['params']['patch_embedding']['position_embeddings'], (1, 2, 1), (2, 1, 3))
  patches = {**variables['params']['patch_embedding'], 'position_embeddings': resized}
  wanted = unetr.PatchEmbedding(24, True, 0.0).apply({'params': patches}, larger)
  told = unetr.PatchEmbedding(24, True, 0.0, (1, 2, 1))
  assert np.allclose(told.apply({'params': variables['params']['patch_embedding']}, larger), wanted, atol=1e-5)


def test_constrain_sees_tokens_features_and_logits():
  seen = []
  model = unetr.make(3, size='testing', constrain=lambda x: seen.append(x.shape) or x)
  shapes(model, (1, 32, 16, 16, 1))
  full, half, quarter, eighth = ((1, 32 // k, 16 // k, 16 // k) for k in (1, 2, 4, 8))
  assert seen == [(1, 2, 24)] * 5 + [
    (*full, 4),
    (*half, 8),
    (*quarter, 16),
    (*eighth, 32),
    (*eighth, 32),
    (*quarter, 16),
    (*half, 8),
    (*full, 4),
    (*full, 3),
  ]


@pytest.mark.parametrize(
  'shape, words',
  [
    ((1, 96, 96, 90, 1), ['96 x 96 x 90', '96 x 96 x 80 or 96 x 96 x 96']),
    ((1, 8, 16, 16, 1), ['16 x 16 x 16']),
    ((1, 32, 32, 1), ['(B, D, H, W, channels)']),
  ],
)
def test_images_it_cannot_take_are_refused_with_what_it_can(shape, words):
  with pytest.raises(InputError) as caught:
    shapes(unetr.make(3, size='testing'), shape)
  assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
  'options, words',
  [
    ({'size': 'huge'}, "'testing'"),
    ({'patch_embedding': 'linear'}, "'perceptron', 'conv'"),
    ({'feature_size': 0}, '16 or 32'),
    ({'dropout_rate': 1.0}, 'less than 1'),
    ({'position_grid': (6, 6)}, r'\(6, 6, 6\)'),
    ({'dtype': 'int8'}, 'bfloat16'),
  ],
)
def test_option_values_that_cannot_work_are_refused_with_those_that_do(options, words):
  with pytest.raises(InputError, match=words):
    unetr.make(3, **options)


# -- its parts


class Table(nn.Module):
  position_grid: tuple | None = None

  @nn.compact
  def __call__(self, grid):
    return position_table(self, 'table', grid, 3, nn.initializers.normal(), self.position_grid)


@pytest.mark.parametrize('source, target', [((2, 3, 4), (4, 2, 5)), ((3, 3, 3), (3, 6, 1)), ((4, 4), (7, 3))])
def test_positions_are_resized_as_scipy_does_with_corners_onto_corners(source, target):
  table = draw(1, int(np.prod(source)), 3)
  ours = np.reshape(resize_table(table, source, target), (*target, 3))
  zoom = [m / n for n, m in zip(source, target)]
  wanted = scipy.ndimage.zoom(np.reshape(table, (*source, 3)), [*zoom, 1], order=1, grid_mode=False, mode='nearest')
  assert np.allclose(ours, wanted, atol=1e-6)


def test_a_table_of_positions_fits_the_grid_at_hand():
  variables = {'params': {'table': draw(1, 64, 3)}}
  assert np.array_equal(Table().apply(variables, (2, 4, 8)), variables['params']['table'])
  assert np.array_equal(
    Table().apply(variables, (2, 4, 4)), resize_table(variables['params']['table'], (4, 4, 4), (2, 4, 4))
  )
  assert np.array_equal(
    Table().apply(variables, (16, 16)), resize_table(variables['params']['table'], (8, 8), (16, 16))
  )
  assert np.array_equal(
    Table((8, 2, 4)).apply(variables, (2, 4, 8)), resize_table(variables['params']['table'], (8, 2, 4), (2, 4, 8))
  )
  assert np.array_equal(resize_table(variables['params']['table'], (4, 4, 4), (4, 4, 4)), variables['params']['table'])
  for wrong in ((4, 4, 5), (8, 8)):
    with pytest.raises(InputError, match='position_grid.*has 64 along 3'):
      Table(wrong).apply(variables, (2, 4, 8))
  resized = jax.grad(lambda v: jnp.sum(Table((8, 2, 4)).apply(v, (3, 3, 3))))(variables)
  assert np.isclose(
    np.sum(resized['params']['table']), 27 * 3, rtol=1e-5
  )  # the weights of every new position sum to one


def test_fused_and_separate_query_key_value_are_the_same_attention():
  x = draw(2, 5, 12)
  fused, separate = SelfAttention(3, qkv_bias=True), SelfAttention(3, fused=False, qkv_bias=True)
  params = jax.tree.map(lambda a: draw(*a.shape), jax.eval_shape(fused.init, jax.random.key(0), x)['params'])
  parts = {
    name: {leaf: jnp.split(a, 3, -1)[i] for leaf, a in params['qkv'].items()}
    for i, name in enumerate(('query', 'key', 'value'))
  }
  y = fused.apply({'params': params}, x)
  assert np.allclose(separate.apply({'params': {**parts, 'out_proj': params['out_proj']}}, x), y, atol=1e-6)
  barely = SelfAttention(3, qkv_bias=True, attention_dropout=1e-7)  # the path that can drop, with nothing dropped
  assert np.allclose(barely.apply({'params': params}, x, True, rngs={'dropout': jax.random.key(0)}), y, atol=1e-5)


def test_the_block_is_its_formula():
  x = draw(1, 4, 6)
  model = Block(1, 8, eps=0.1)
  p = jax.tree.map(lambda a: draw(*a.shape), jax.eval_shape(model.init, jax.random.key(0), x)['params'])

  def norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1) * p['scale'] + p['bias']

  q, k, v = np.split(norm(np.asarray(x[0]), p['norm1']) @ p['attn']['qkv']['kernel'], 3, -1)
  weights = np.exp(q @ k.T / np.sqrt(6))
  y = (
    x[0]
    + weights / weights.sum(-1, keepdims=True) @ v @ p['attn']['out_proj']['kernel']
    + p['attn']['out_proj']['bias']
  )
  hidden = norm(y, p['norm2']) @ p['mlp']['linear1']['kernel'] + p['mlp']['linear1']['bias']
  gelu = hidden * (1 + scipy.special.erf(hidden / np.sqrt(2))) / 2
  wanted = y + gelu @ p['mlp']['linear2']['kernel'] + p['mlp']['linear2']['bias']
  assert np.allclose(model.apply({'params': p}, x)[0], wanted, atol=1e-5)


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
