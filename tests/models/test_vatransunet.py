"""VATransUNet against the numbers of the released network, and its options."""

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_checks import count, jit, trained

from afw_jax import models
from afw_jax.weights import convert

pytestmark = pytest.mark.usefixtures('float32_products')


def draw(shape, seed=0, dtype=np.float32):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def build(num_classes=4, size='testing', **options):
  return models.build('vatransunet', num_classes, size=size, **options)


@pytest.fixture(scope='module')
def small():
  model, image = build(), jnp.abs(draw((3, 32, 48, 1)))
  variables = models.init(model, jax.random.key(0), image.shape)
  return model, variables, image, jit(model.apply)(variables, image)


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
    params = models.abstract_variables(models.build('vatransunet', classes), shape)['params']
    assert count(params) == parameters
    assert (count(params['van']), count(params['decoder'])) == (3_848_800, 4_339_104)


def test_other_sizes_and_channels_keep_the_parameters_but_for_the_first_convolution():
  model = build()
  one, four = (models.abstract_variables(model, (1, 16, 16, c))['params'] for c in (1, 4))
  assert count(four) - count(one) == 7 * 7 * 4
  for shape in ((2, 16, 32, 1), (1, 80, 48, 1)):
    assert jax.eval_shape(model.apply, models.abstract_variables(model, (1, 16, 16, 1)), jnp.zeros(shape)).shape == (
      *shape[:-1],
      4,
    )


def test_one_channel_is_three_equal_channels(small):
  model, variables, image, logits = small
  assert np.allclose(logits, jit(model.apply)(variables, jnp.concatenate([image] * 3, -1)), atol=1e-5)


def test_bfloat16_computes_low_and_keeps_float32(small):
  _, variables, image, full = small
  low = build(dtype='bfloat16')
  shapes = jax.eval_shape(
    lambda key: (low.init(key, image), trained(low, variables, image, dropout=key)), jax.random.key(0)
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype('float32')}
  logits = jit(low.apply)(variables, image)
  assert 1e-4 < np.sqrt(np.mean((logits - full) ** 2)) / np.std(full) < 0.05


def test_a_case_does_not_depend_on_its_batch_and_no_rng_is_needed_without_dropping(small):
  model, variables, image, logits = small
  assert np.allclose(jit(model.apply)(variables, image[1:2]), logits[1:2], atol=1e-5)
  jax.eval_shape(lambda: trained(build(drop_path_rate=0), variables, image))


def test_constrain_sees_every_block_and_the_logits():
  seen = []
  models.abstract_variables(build(constrain=lambda x: seen.append(x.shape[1:]) or x), (1, 32, 48, 1))
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


# -- depthwise convolution and GELU
