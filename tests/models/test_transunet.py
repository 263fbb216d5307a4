"""TransUNet against the numbers of the reference implementation, its options and its two readings."""

import functools

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax import traverse_util
from marks import SLOW
from network_checks import count, jit, trained

from afw_jax import models
from afw_jax.errors import InputError
from afw_jax.models import transunet
from afw_jax.models.layers import resnet
from afw_jax.weights import convert

pytestmark = pytest.mark.usefixtures('float32_products')


def small(**options):
  return transunet.make(3, size='testing', **options)


def random_variables(model, shape, seed=0):
  """Variables with nothing at a special value: no zero biases, no unit scales, no zero table of positions."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    z = rng.standard_normal(leaf.shape).astype(np.float32)
    return {
      'kernel': z / np.float32(np.sqrt(np.prod(leaf.shape[:-1]))),
      'scale': 1 + 0.1 * z,
      'var': np.exp(0.2 * z),
    }.get(path[-1].key, 0.1 * z)

  return jax.tree_util.tree_map_with_path(draw, models.abstract_variables(model, shape))


@pytest.fixture(scope='module')
def case():
  """(image, variables) that fit every reading of the testing size."""
  image = np.random.default_rng(1).random((2, 32, 48, 1), dtype=np.float32)
  return image, random_variables(small(), image.shape)


@pytest.fixture(scope='module')
def logits(case):
  image, variables = case
  return np.asarray(jit(small().apply)(variables, image))


def test_logits_are_the_reference_implementations():
  facts, state, image, golden = golden_weights.load('transunet')
  variables = convert.from_torch('transunet', state)
  logits = jax.jit(transunet.make(9).apply)(variables, image)
  assert list(logits.shape) == facts['outputs']['eval']['shape'] and logits.dtype == jnp.float32
  # measured 7e-6, the rounding of the reference: in float64 it is the same (golden logits are float32)
  assert golden_weights.worst_error(logits, golden) < 2e-5
  assert count(variables['params']) == facts['parameters']


@pytest.mark.parametrize(
  'options, classes, parameters',
  [
    ({}, 9, 105_277_081),
    ({'n_skip': 2}, 9, 105_240_217),
    ({'n_skip': 1}, 9, 104_945_305),
    ({'n_skip': 0}, 9, 103_765_657),
    ({}, 5, 105_276_501),
    ({'reading': 'google'}, 9, 105_277_081),
    ({'encoder': 'vit'}, 9, 91_674_201),
  ],
)
def test_parameter_counts(options, classes, parameters):
  variables = models.abstract_variables(transunet.make(classes, **options), (1, 224, 224, 1))
  assert count(variables['params']) == parameters
  if not options and classes == 9:
    parts = {key: count(value) for key, value in variables['params'].items()}
    assert parts['resnet'] == 11_894_848 and parts['patch_embeddings'] == 787_200 and parts['head'] == 1_305
    assert parts['encoder_norm'] + sum(parts[f'layer{i}'] for i in range(12)) == 85_056_000
    assert parts['conv_more'] + sum(parts[f'decoder{i}'] for i in range(4)) == 7_387_200


def test_the_initial_values_are_those_documented():
  """MLP Xavier, its biases N(0, 1e-6), positions zero; units begin as the identity in Google's reading alone."""
  params = models.init(small(encoder='vit'), jax.random.key(0), (1, 32, 32, 1))['params']
  assert np.abs(params['position_embeddings']).max() == 0 and params['position_embeddings'].shape == (1, 4, 32)
  fc1, bound = params['layer0']['fc1'], np.sqrt(6 / (32 + 64))
  assert 0.9 * bound < np.abs(fc1['kernel']).max() <= bound and 0 < np.abs(fc1['bias']).max() < 1e-5
  assert 0.9 < np.abs(params['layer0']['attn']['query']['bias']).max() * np.sqrt(32) <= 1
  for reading, scale in (('transunet', 1), ('google', 0)):
    unit = jit(resnet.Bottleneck(2, 1, 1, reading).init)(jax.random.key(0), jnp.zeros((1, 2, 2, 4)))['params']
    assert (unit['gn3']['scale'] == scale).all() and (unit['gn_proj']['scale'] == 1).all()
    assert 0.9 < np.abs(unit['conv2']['kernel']).max() * np.sqrt(9 * 2) <= 1


def test_the_two_readings_differ_on_the_same_variables(case, logits):
  image, variables = case
  assert jax.tree.structure(models.abstract_variables(small(reading='google'), image.shape)) == jax.tree.structure(
    variables
  )
  google = jit(small(reading='google').apply)(variables, image)
  assert np.abs(google - logits).max() > 0.1 * logits.std()


def test_block_1_works_on_a_smaller_map_whose_skip_is_padded_with_zeros(case):
  image, variables = case

  def captured(image, **options):
    only = lambda module, _: module.name in ('resnet', 'block1_unit1')
    _, state = small(**options).apply(variables, image, capture_intermediates=only, mutable=['intermediates'])
    found = state['intermediates']['resnet']
    (deepest, skips), block1 = found['__call__'][0], found['block1_unit1']['__call__'][0]
    assert [x.shape for x in (deepest, *skips)] == [(2, 2, 3, 128), (2, 4, 6, 64), (2, 8, 12, 32), (2, 16, 24, 8)]
    return skips[1], block1

  skip, block1 = jit(captured)(image)
  assert block1.shape == (2, 7, 11, 32) and (skip[:, :7, :11] == block1).all()
  assert not skip[:, 7:].any() and not skip[:, :, 11:].any()
  assert jax.eval_shape(lambda x: captured(x, reading='google'), image)[1].shape == (2, 8, 12, 32)


@pytest.mark.parametrize(
  'encoder, channels, shape',
  [('r50', 1, (16, 16)), ('r50', 3, (224, 160)), ('r50', 4, (512, 512)), ('vit', 1, (16, 48)), ('vit', 2, (240, 240))],
)
def test_any_size_divisible_by_16_and_any_number_of_channels(encoder, channels, shape):
  model = transunet.make(4, encoder=encoder)
  image = jax.ShapeDtypeStruct((2, *shape, channels), jnp.float32)
  logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
  assert logits.shape == (2, *shape, 4)
  first = variables['params']['resnet']['root']['conv'] if encoder == 'r50' else variables['params']['patch_embeddings']
  assert first['kernel'].shape[2] == (3 if channels == 1 else channels)


def test_smallest_image_is_one_token():
  for options in ({}, {'encoder': 'vit'}):
    model = small(**options)
    shape = models.module_of('transunet').smallest_image(model, 2)
    assert shape == (1, 16, 16, 2)
    assert models.abstract_variables(model, shape)['params']['position_embeddings'].shape == (1, 1, 32)


def test_one_channel_is_repeated_to_three_and_cases_do_not_mix(case, logits):
  image, variables = case
  again = jit(small().apply)(variables, np.concatenate([image[:1]] * 3, -1))
  assert np.abs(again - logits[:1]).max() < 1e-5 * logits.std()


def test_the_table_of_positions_is_resized_to_another_grid(case):
  image, _ = case
  other = np.random.default_rng(2).random((1, 48, 64, 1), dtype=np.float32)
  variables = random_variables(small(encoder='vit'), image.shape)
  table = variables['params']['position_embeddings']  # of 2 x 3 tokens, not a square
  with pytest.raises(InputError, match='position_grid'):
    small(encoder='vit').apply(variables, other)
  resized = scipy.ndimage.zoom(table.reshape(2, 3, 32), (1.5, 4 / 3, 1), order=1).reshape(1, 12, 32)
  apply = jit(small(encoder='vit', position_grid=(2, 3)).apply)
  wanted = jit(small(encoder='vit').apply)(
    {**variables, 'params': {**variables['params'], 'position_embeddings': resized}}, other
  )
  assert np.abs(apply(variables, other) - wanted).max() < 1e-5 * np.std(wanted)


def test_torch_weights_of_any_size_and_grid():
  model = small(n_skip=2)
  variables = random_variables(model, (1, 32, 48, 3))
  state = {}
  for path, leaf in traverse_util.flatten_dict(variables).items():
    leaf = np.moveaxis(leaf, (-2, -1), (1, 0)) if path[-1] == 'kernel' else leaf
    state[convert.torch_key(path, transunet.TORCH_NAMES)] = leaf
  for options in ({}, {'position_grid': (3, 2)}):
    back = convert.from_torch('transunet', state, size='testing', n_skip=2, **options)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
  with pytest.raises(InputError, match='1 of another shape: decoder.blocks.2.conv1.0.weight'):
    convert.from_torch('transunet', state, size='testing')
  del state['transformer.embeddings.position_embeddings']
  with pytest.raises(InputError, match='1 missing: transformer.embeddings.position_embeddings'):
    convert.from_torch('transunet', state, size='testing', n_skip=2)


@SLOW
def test_remat_changes_nothing(case):
  """Values and gradients, in training, with the same dropout."""
  image, _ = case
  tiny = {'layers': 1, 'decoder': (8, 8, 8, 4, 4), 'hidden': 16, 'heads': 2, 'mlp_features': 16}
  variables = random_variables(small().clone(**tiny), image.shape)

  def loss_of(**options):
    model = small(**options).clone(**tiny)

    def loss(params):
      y, updates = model.apply(
        {**variables, 'params': params}, image, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(3)}
      )
      return jnp.square(y - 1).mean(), updates

    return jit(jax.value_and_grad(loss, has_aux=True))(variables['params'])

  (kept, stats), grads = loss_of()
  (again, stats2), grads2 = loss_of(remat=True)
  assert np.isclose(kept, again, rtol=1e-5)
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
  for a, b in zip(jax.tree.leaves((grads, stats)), jax.tree.leaves((grads2, stats2))):
    assert np.abs(a - b).max() < 1e-4 * max(scale, np.abs(a).max())
  for path, grad in traverse_util.flatten_dict(grads).items():
    assert np.isfinite(grad).all() and np.abs(grad).max() > 0, path
    # A key's bias adds one number to a query's logits, which the softmax takes out: its gradient is rounding.
    assert (np.abs(grad).max() < 1e-6 * scale) == (path[-2:] == ('key', 'bias')), path


def test_dropout(case, monkeypatch):
  image, variables = case
  drawn = []
  bernoulli = jax.random.bernoulli
  monkeypatch.setattr(jax.random, 'bernoulli', lambda *args, **kwargs: drawn.append(1) or bernoulli(*args, **kwargs))
  train = lambda model, **rngs: jax.eval_shape(lambda: trained(model, variables, image, **rngs))
  for reading, times in (('transunet', 1 + 2 * 2), ('google', 1 + 2 * 3)):  # tokens once, and per layer
    drawn.clear()
    train(small(reading=reading), dropout=jax.random.key(0))
    assert len(drawn) == times
  drawn.clear()
  train(small(dropout_rate=0.0))  # needs no rng
  jax.eval_shape(lambda: small().apply(variables, image))
  assert not drawn


def test_bfloat16_computes_low_and_keeps_float32(case, logits):
  image, variables = case
  low = small(dtype='bfloat16')
  shapes = jax.eval_shape(
    lambda key: (low.init(key, image), trained(low, variables, image, dropout=key)), jax.random.key(0)
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype('float32')}
  error = np.asarray(jit(low.apply)(variables, image)) - logits
  assert 1e-4 < np.sqrt(np.mean(error**2)) / logits.std() < 0.05
  google = small(dtype='bfloat16', reading='google')
  assert jax.eval_shape(google.apply, variables, image).dtype == jnp.float32


def test_float64_goes_through(case):
  image, variables = case
  with jax.enable_x64(True):
    for reading in ('transunet', 'google'):
      wide = jax.tree.map(lambda a: np.asarray(a, np.float64), variables)
      model = small(dtype='float64', reading=reading)
      apply = functools.partial(model.apply, train=True, mutable=['batch_stats'])
      logits, updates = jax.eval_shape(apply, wide, image.astype(np.float64), rngs={'dropout': jax.random.key(0)})
      assert {leaf.dtype for leaf in jax.tree.leaves((logits, updates))} == {np.dtype('float64')}


def test_constrain_sees_every_block_the_tokens_and_the_logits():
  seen = []
  models.abstract_variables(small(constrain=lambda x: seen.append(x.shape[1:]) or x), (1, 32, 48, 1))
  pairs = [shape for shape in seen if len(shape) == 4]  # of rows, where they are doubled
  assert pairs == [(2, 2, 3, 32), (4, 2, 6, 16), (8, 2, 12, 16), (16, 2, 24, 8)]
  assert [s for s in seen if s not in pairs] == [
    (16, 24, 8),
    (7, 11, 32),
    (4, 6, 64),
    (2, 3, 128),
    *[(6, 32)] * 3,
    (2, 3, 32),
    (4, 6, 16),
    (8, 12, 16),
    (16, 24, 8),
    (32, 48, 8),
    (32, 48, 3),
  ]
