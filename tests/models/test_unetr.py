"""UNETR against the numbers of MONAI's implementation, and its options."""

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_checks import count, jit

from afw_jax import models
from afw_jax.errors import InputError
from afw_jax.models import unetr
from afw_jax.models.layers.positions import resize_table
from afw_jax.weights import convert

pytestmark = pytest.mark.usefixtures('float32_products')

SMALL = (2, 16, 32, 16, 2)
DEAD_IN_MONAI = 18_432  # norm_cross_attn


def draw(*shape):
  return jnp.asarray(np.random.default_rng(0).random(shape, dtype=np.float32))


def random_variables(model, shape):
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda a: rng.standard_normal(a.shape, np.float32) * (0.1 if a.ndim == 1 else a.size**-0.3),
    models.abstract_variables(model, shape),
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


def test_logits_are_monais(golden):
  facts, _, variables, image, numbers = golden
  logits = jax.jit(unetr.make(9).apply)(variables, image)
  assert list(logits.shape) == facts['outputs']['eval']['shape'] and logits.dtype == jnp.float32
  assert golden_weights.worst_error(logits, numbers) < 2e-5  # measured 7.4e-6; a tight bound: test_golden_float64.py
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
  variables = models.abstract_variables(unetr.make(classes, **options), (1, *shape, 1))
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
  assert {leaf.dtype for leaf in jax.tree.leaves(models.abstract_variables(low, SMALL))} == {np.dtype('float32')}
  logits = jit(low.apply)(variables, image)
  assert logits.dtype == jnp.float32 and 1e-4 < np.sqrt(np.mean((logits - full) ** 2)) / np.std(full) < 0.05


def test_remat_changes_no_gradient():
  model, image = unetr.make(3, size='testing', conv_block=False), draw(*SMALL)
  variables = random_variables(model, SMALL)
  programs = [
    jit(jax.grad(lambda v, m=m: jnp.sin(m.apply(v, image, True)).sum())).lower(variables)
    for m in (model, model.clone(remat=True))
  ]
  kept, recomputed = (p.as_text().count('optimization_barrier') for p in programs)  # `materialized` has some, too
  assert kept < recomputed
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
  assert models.abstract_variables(told, (1, 48, 16, 16, 2))['params']['patch_embedding'][
    'position_embeddings'
  ].shape == (1, 2, 24)
  resized = resize_table(variables['params']['patch_embedding']['position_embeddings'], (1, 2, 1), (2, 1, 3))
  patches = {**variables['params']['patch_embedding'], 'position_embeddings': resized}
  wanted = unetr.PatchEmbedding(24, True, 0.0).apply({'params': patches}, larger)
  told = unetr.PatchEmbedding(24, True, 0.0, (1, 2, 1))
  assert np.allclose(told.apply({'params': variables['params']['patch_embedding']}, larger), wanted, atol=1e-5)


def test_constrain_sees_tokens_features_and_logits():
  seen = []
  model = unetr.make(3, size='testing', constrain=lambda x: seen.append(x.shape) or x)
  models.abstract_variables(model, (1, 32, 16, 16, 1))
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
