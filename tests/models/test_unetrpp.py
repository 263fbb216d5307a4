"""UNETR++ against the numbers of the released network, and its options."""

import re

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from marks import SLOW
from network_checks import count, jit, trained

from afw_jax import models
from afw_jax.errors import InputError
from afw_jax.models import unetrpp
from afw_jax.weights import convert

pytestmark = pytest.mark.usefixtures('float32_products')

SMALL = (1, 8, 16, 32, 1)  # two tokens in the deepest stage
STILL = {'size': 'testing', 'attention_dropout': 0, 'channel_dropout': 0}


@pytest.fixture(scope='module')
def initial():
  return models.init(unetrpp.make(3, size='testing'), jax.random.key(0), SMALL)


@pytest.fixture(scope='module')
def small(initial):
  """(model, variables with every parameter at work, image, logits): gamma of 1e-6 would hide the attention."""
  model = unetrpp.make(3, size='testing')
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda a: (
      np.abs(a) + 0.2 * rng.standard_normal(a.shape, np.float32) ** 2
      if len(a.shape) == 1
      else a + 0.1 * rng.standard_normal(a.shape, np.float32)
    ),
    initial,
  )
  image = jnp.asarray(rng.random((2, *SMALL[1:]), dtype=np.float32))
  return model, variables, image, jit(model.apply)(variables, image)


def test_logits_of_the_three_heads_are_the_released_networks():
  facts, state, image, numbers = golden_weights.load('unetrpp')
  variables = convert.from_torch('unetrpp', state)
  logits = jax.jit(unetrpp.make(14).apply)(variables, image)
  assert count(variables['params']) == facts['parameters']
  assert len(logits) == 3 and {head.dtype for head in logits} == {np.dtype('float32')}
  for i, head in enumerate(logits):
    assert list(head.shape) == facts['outputs'][f'eval_{i}']['shape']
    assert golden_weights.worst_error(head, numbers, f'eval_{i}') < 2e-5


@pytest.mark.parametrize(
  'sides, classes, deep, parameters',
  [
    ((64, 128, 128), 14, True, 42_952_850),
    ((64, 128, 128), 9, True, 42_952_275),
    ((64, 128, 128), 5, True, 42_951_815),
    ((64, 128, 128), 14, False, 42_951_478),
    ((64, 128, 128), 9, False, 42_951_393),
    ((64, 128, 128), 5, False, 42_951_325),
    ((96, 96, 96), 14, True, 39_411_410),
    ((96, 96, 96), 5, True, 39_410_375),
    ((64, 160, 160), 14, True, 55_702_034),
    ((64, 160, 160), 5, True, 55_700_999),
    ((128, 256, 256), 14, True, 201_609_362),
    ((128, 256, 256), 5, True, 201_608_327),
  ],
)
def test_parameter_counts(sides, classes, deep, parameters):
  assert (
    count(models.abstract_variables(unetrpp.make(classes, deep_supervision=deep), (1, *sides, 1))['params'])
    == parameters
  )


def test_parameters_of_the_parts():
  params = models.abstract_variables(unetrpp.make(14), (1, 64, 128, 128, 1))['params']
  parts = {
    'stage0': 9_622_584,
    'stage1': 2_312_088,
    'stage2': 3_247_704,
    'stage3': 11_858_808,
    'encoder1': 7_360,
    '(up|decoder)5': 3_509_848,
    '(up|decoder)4': 2_377_624,
    '(up|decoder)3': 9_638_968,
    '(up|decoder)2': 30_208,
    'out1': 238,
    'out2': 462,
    'out3': 910,
    'stage|down': 27_387_232,
  }
  assert {part: count([params[key] for key in params if re.match(part, key)]) for part in parts} == parts


def test_without_deep_supervision_it_is_the_first_head(small):
  model, variables, image, logits = small
  params = {key: value for key, value in variables['params'].items() if key not in ('out2', 'out3')}
  alone = unetrpp.make(3, size='testing', deep_supervision=False)
  assert [head.shape for head in logits] == [(2, 8, 16, 32, 3), (2, 4, 4, 8, 3), (2, 2, 2, 4, 3)]
  assert np.allclose(jit(alone.apply)({**variables, 'params': params}, image), logits[model.main_output], atol=1e-5)
  assert models.abstract_variables(alone, SMALL)['params'].keys() == params.keys() and model.head_weights == (
    1,
    1 / 2,
    1 / 4,
  )


def test_the_fixed_layout_is_another_network_and_a_case_does_not_depend_on_its_batch(small):
  _, variables, image, logits = small
  fixed = jit(unetrpp.make(3, size='testing', epa_layout='fixed').apply)
  both = fixed(variables, image)
  assert np.allclose(both[0][::-1], fixed(variables, image[::-1])[0], atol=1e-4)
  assert np.abs(both[0] - logits[0]).max() > 1e-2 * np.std(logits[0])


def test_training_drops_by_the_given_key_and_needs_none_without_dropout(small):
  model, variables, image, _ = small
  still = unetrpp.make(3, **STILL)
  run = jit(lambda key: (trained(model, variables, image, dropout=key), trained(still, variables, image)))
  (first, stats), (none, _) = run(jax.random.key(0))
  (other, _), _ = run(jax.random.key(1))
  assert np.abs(first[0] - other[0]).max() > 1e-3 and np.abs(first[0] - none[0]).max() > 1e-3
  assert jax.tree.structure(stats['batch_stats']) == jax.tree.structure(variables['batch_stats'])


@SLOW
def test_rematerialisation_changes_no_gradient(small):
  _, variables, image, _ = small

  def gradient(model):
    loss = lambda params: sum((head**2).mean() for head in trained(model, {**variables, 'params': params}, image)[0])
    return jit(jax.grad(loss))(variables['params'])

  plain, again = (gradient(unetrpp.make(3, remat=remat, **STILL)) for remat in (False, True))
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again)):
    assert np.abs(a).max() > 0 and np.abs(a - b).max() <= 1e-4 * np.abs(a).max()
  dropping = unetrpp.make(3, size='testing', remat=True)
  jax.eval_shape(lambda key: trained(dropping, variables, image, dropout=key), jax.random.key(0))


def test_bfloat16_computes_low_and_keeps_float32(small):
  _, variables, image, full = small
  low = unetrpp.make(3, size='testing', dtype='bfloat16')
  fresh, result = jax.eval_shape(
    lambda key: (low.init(key, image), trained(low, variables, image, dropout=key)), jax.random.key(0)
  )
  assert {leaf.dtype for leaf in jax.tree.leaves((fresh, result))} == {np.dtype('float32')}
  for found, wanted in zip(jit(low.apply)(variables, image), full):
    assert 1e-4 < np.sqrt(np.mean((found - wanted) ** 2)) / np.std(wanted) < 0.1


def test_float64_goes_through():
  with jax.enable_x64(True):
    model = unetrpp.make(3, size='testing', dtype='float64')
    image = jax.ShapeDtypeStruct(SMALL, jnp.float64)
    variables = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float64), models.abstract_variables(model, SMALL)
    )
    result = jax.eval_shape(lambda v, x: trained(model, v, x, dropout=jax.random.key(0)), variables, image)
    assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {np.dtype('float64')}


def test_initial_values_are_the_released_codes(initial):
  params = initial['params']
  encoder, decoder = params['stage1_0'], params['decoder4_0']
  for block in (encoder, decoder):
    assert np.all(block['gamma'] == np.float32(1e-6)) and not block['pos_embed'].any()
    assert np.all(block['epa_block']['temperature'] == 1) and np.all(block['epa_block']['temperature2'] == 1)
  for name in ('qkvv', 'project', 'out_proj', 'out_proj2'):
    kernel = encoder['epa_block'][name]['kernel']
    assert (
      abs(kernel.std() / 0.02 - 1) < 5 / np.sqrt(2 * kernel.size)
      and not encoder['epa_block'][name].get('bias', jnp.zeros(1)).any()
    )
    layer = decoder['epa_block'][name]
    bound = 1 / np.sqrt(layer['kernel'].shape[0])
    assert all(0.8 * bound < np.abs(leaf).max() <= bound for leaf in layer.values() if leaf.size > 8)
  assert 0.8 < np.abs(encoder['conv51']['conv1']['kernel']).max() * np.sqrt(27 * 16) <= 1


def test_every_stage_has_weights_for_each_token_and_another_size_is_refused(small):
  model, variables, *_ = small
  tokens = {name: params['pos_embed'].shape[1] for name, params in variables['params'].items() if 'pos_embed' in params}
  assert tokens == {'stage0_0': 128, 'stage1_0': 16, 'stage2_0': 2, 'decoder4_0': 16, 'decoder3_0': 128}
  for shape in ((1, 8, 16, 16, 1), (1, 16, 32, 32, 1)):
    with pytest.raises(
      InputError, match=f'image of {shape[1]} x {shape[2]} x {shape[3]} voxels.*made for images of 4,096 voxels'
    ):
      jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize(
  'stem, shape', [((2, 4, 4), (2, 32, 96, 64, 3)), ((1, 4, 4), (1, 16, 32, 32, 4)), ((4, 4, 4), (1, 32, 32, 64, 2))]
)
def test_any_size_its_strides_allow_and_any_number_of_channels(stem, shape):
  model = unetrpp.make(7, size='testing', stem=stem)
  full, half, quarter = jax.eval_shape(
    lambda key, x: model.init_with_output(key, x)[0], jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32)
  )
  coarse = tuple(n // s for n, s in zip(shape[1:], stem))
  assert full.shape == (*shape[:-1], 7) and half.shape == (shape[0], *coarse, 7)
  assert quarter.shape == (shape[0], *(n // 2 for n in coarse), 7)
  assert (
    models.abstract_variables(model, unetrpp.smallest_image(model, 5))['params']['encoder1']['conv1']['kernel'].shape[
      -2
    ]
    == 5
  )


def test_constrain_sees_tokens_blocks_and_logits():
  seen = []
  model = unetrpp.make(3, size='testing', constrain=lambda x: seen.append(x.shape) or x)
  models.abstract_variables(model, (1, 8, 16, 16, 1))
  assert seen[:4] == [(1, 64, 8), (1, 64, 8), (1, 4, 4, 4, 8), (1, 8, 16)] and seen[-3:] == [
    (1, 8, 16, 16, 3),
    (1, 4, 4, 4, 3),
    (1, 2, 2, 2, 3),
  ]
  assert len(seen) == 3 * 5 + 2 + 3 + 3  # EPA blocks thrice, ResBlocks, upsampled features, heads


def test_weights_for_any_image_size_convert_and_of_the_shared_layer_the_later_name_counts(small):
  _, variables, *_ = small
  paths = traverse_util.flatten_dict(variables)
  state = {
    convert.torch_key(path, unetrpp.TORCH_NAMES): np.moveaxis(leaf, (-2, -1), convert.CHANNEL_AXES[path[-1]])
    if path[-1] in convert.CHANNEL_AXES
    else leaf
    for path, leaf in paths.items()
  }
  shared = [key for key in state if '.epa_block.F.' in key]
  assert len(shared) == 2 * 5
  state.update({key.replace('.F.', '.E.'): np.full_like(state[key], np.nan) for key in shared})
  back = convert.from_torch('unetrpp', state, size='testing')
  assert jax.tree.all(jax.tree.map(np.array_equal, back, variables))
  alone = {
    key.replace('.F.', '.E.'): value for key, value in state.items() if '.E.' not in key
  }  # as savers of tied weights may leave it
  assert jax.tree.all(jax.tree.map(np.array_equal, convert.from_torch('unetrpp', alone, size='testing'), variables))
