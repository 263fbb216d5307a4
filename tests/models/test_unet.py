"""UNet against the numbers of the released network, and its options."""

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_checks import count, trained

from afw_jax import models
from afw_jax.weights import convert

pytestmark = pytest.mark.usefixtures('float32_products')

FEATURES = (4, 8, 16)


@pytest.fixture(scope='module')
def golden():
  facts, state, image, numbers = golden_weights.load('unet')
  return facts, convert.from_torch('unet', state), image, numbers


@pytest.fixture(scope='module')
def small():
  model = models.build('unet', num_classes=4, features=FEATURES)
  image = jnp.asarray(np.random.default_rng(0).random((3, 32, 48, 1), dtype=np.float32))
  return model, models.init(model, jax.random.key(0), image.shape), image


def test_eval_logits_are_the_released_networks(golden):
  facts, variables, image, numbers = golden
  logits = jax.jit(models.build('unet', num_classes=9).apply)(variables, image)
  assert list(logits.shape) == facts['outputs']['eval']['shape'] and logits.dtype == jnp.float32
  error = np.abs(np.asarray(logits).ravel()[numbers['eval_index']] - numbers['eval']).max()
  assert error < 1e-4 * facts['outputs']['eval']['std']
  assert count(variables['params']) == facts['parameters']


def test_train_logits_are_the_released_networks(golden):
  facts, variables, image, numbers = golden
  model = models.build('unet', num_classes=9, recipe='released')
  logits, _ = jax.jit(lambda v, x: trained(model, v, x))(variables, image)
  error = np.abs(np.asarray(logits).ravel()[numbers['train_index']] - numbers['train']).max()
  assert error < 1e-4 * facts['outputs']['train']['std']


@pytest.mark.parametrize(
  'options, channels, classes, parameters',
  [
    ({}, 1, 9, 7_852_233),
    ({}, 3, 9, 7_852_809),
    ({}, 3, 5, 7_852_677),
    ({}, 1, 5, 7_852_101),
    ({'recipe': 'released'}, 1, 9, 7_852_809),
    ({'recipe': 'released'}, 3, 9, 7_852_809),
    ({'head_kernel': 3}, 3, 9, 7_855_113),
  ],
)
def test_parameter_counts(options, channels, classes, parameters):
  variables = models.abstract_variables(models.build('unet', num_classes=classes, **options), (1, 32, 32, channels))
  assert count(variables['params']) == parameters and count(variables['batch_stats']) == 5_888


def test_released_repeats_one_channel_to_three(small):
  _, _, image = small
  model = models.build('unet', num_classes=4, features=FEATURES, recipe='released')
  variables = models.init(model, jax.random.key(0), image.shape)
  apply = jax.jit(model.apply)
  assert np.allclose(apply(variables, image), apply(variables, jnp.concatenate([image] * 3, -1)), atol=1e-6)


def test_in_eval_mode_a_case_does_not_depend_on_its_batch(small):
  model, variables, image = small
  apply = jax.jit(model.apply)
  assert np.allclose(apply(variables, image)[1:2], apply(variables, image[1:2]), atol=1e-5)
  assert np.allclose(apply(variables, image[::-1])[::-1], apply(variables, image), atol=1e-5)


def test_jit_is_eager(small):
  model, variables, image = small
  eager, compiled = model.apply(variables, image), jax.jit(model.apply)(variables, image)
  assert np.abs(eager - compiled).max() < 1e-4 * np.std(eager)


def test_bfloat16_computes_low_and_keeps_float32(small):
  model, variables, image = small
  low = models.build('unet', num_classes=4, features=FEATURES, dtype='bfloat16')
  shapes = jax.eval_shape(
    lambda key: (low.init(key, image), trained(low, variables, image)),
    jax.random.key(0),
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype('float32')}
  logits, full = jax.jit(low.apply)(variables, image), jax.jit(model.apply)(variables, image)
  assert 1e-4 < np.sqrt(np.mean((logits - full) ** 2)) / np.std(full) < 0.05


def test_float64_goes_through():
  with jax.enable_x64(True):
    model = models.build('unet', num_classes=3, features=(2, 3), dtype='float64')
    image = np.random.default_rng(0).random((1, 4, 4, 1))
    variables = jax.tree.map(lambda a: a.astype(jnp.float64), models.init(model, jax.random.key(0), image.shape))
    logits, updates = jax.eval_shape(lambda: trained(model, variables, image))
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, updates))} == {np.dtype('float64')}


@pytest.mark.parametrize('dtype', [np.int16, np.uint8, np.float16, np.float64, jnp.bfloat16])
def test_any_image_dtype_gives_float32_logits(small, dtype):
  model, variables, image = small
  whole = np.round(100 * np.asarray(image))
  got = model.apply(variables, np.asarray(whole, dtype))
  assert got.dtype == jnp.float32 and np.allclose(got, model.apply(variables, whole), atol=1e-4)


def test_constrain_sees_every_block_and_the_logits():
  seen = []
  model = models.build('unet', num_classes=3, features=(2, 4, 6), constrain=lambda x: seen.append(x.shape) or x)
  models.abstract_variables(model, (1, 8, 12, 1))
  pairs = [(1, 2, 2, 3, 6), (1, 4, 2, 6, 4)]  # of rows, where they are doubled
  assert [s for s in seen if len(s) == 5] == pairs
  assert [s for s in seen if s not in pairs] == [
    (1, 8, 12, 2),
    (1, 4, 6, 4),
    (1, 2, 3, 6),
    (1, 4, 6, 4),
    (1, 8, 12, 2),
    (1, 8, 12, 3),
  ]
