"""UNet++ against the numbers of the reference network, and its options."""

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_checks import count, trained

from afw_jax import models
from afw_jax.errors import InputError
from afw_jax.models import unetpp
from afw_jax.weights import convert

pytestmark = pytest.mark.usefixtures('float32_products')

FEATURES = (4, 8, 16)


@pytest.fixture(scope='module')
def small():
  model = unetpp.make(4, features=FEATURES, deep_supervision=True)
  image = jnp.asarray(np.random.default_rng(0).random((2, 16, 24, 1), dtype=np.float32))
  return model, models.init(model, jax.random.key(0), image.shape), image


def relative(a, b):
  return float(np.sqrt(np.mean((np.asarray(a) - np.asarray(b)) ** 2)) / np.std(np.asarray(b)))


def test_logits_are_the_references():
  meta, state, image, golden = golden_weights.load('unetpp')
  variables = convert.from_torch('unetpp', state)
  logits = jax.jit(unetpp.make(9).apply)(variables, image)
  assert list(logits.shape) == meta['outputs']['eval']['shape'] and logits.dtype == jnp.float32
  assert golden_weights.worst_error(logits, golden) < 2e-5
  assert count(variables['params']) == meta['parameters']


def test_the_four_heads_are_the_references_shallow_to_deep():
  meta, state, image, golden = golden_weights.load('unetpp_ds')
  variables = convert.from_torch('unetpp', state, deep_supervision=True)
  heads = jax.jit(unetpp.make(9, deep_supervision=True).apply)(variables, image)
  assert [list(head.shape) for head in heads] == [meta['outputs'][f'eval_{i}']['shape'] for i in range(4)]
  for i, head in enumerate(heads):
    assert golden_weights.worst_error(head, golden, f'eval_{i}') < 2e-5
  assert count(variables['params']) == meta['parameters']


def test_weights_of_one_kind_are_refused_for_the_other():
  state = {key: np.zeros(shape) for key, shape in golden_weights.load('unetpp_ds')[0]['state_dict'].items()}
  with pytest.raises(InputError, match='final.bias.*final1.bias'):
    convert.from_torch('unetpp', state)


@pytest.mark.parametrize(
  'options, channels, classes, parameters',
  [
    ({}, 3, 9, 9_163_593),
    ({}, 1, 9, 9_163_017),
    ({}, 3, 5, 9_163_461),
    ({'repeat_to_rgb': True}, 1, 9, 9_163_593),
    ({'deep_supervision': True}, 3, 9, 9_164_484),
    ({'deep_supervision': True}, 1, 9, 9_163_908),
  ],
)
def test_parameter_counts(options, channels, classes, parameters):
  variables = models.abstract_variables(unetpp.make(classes, **options), (1, 32, 32, channels))
  assert count(variables['params']) == parameters


def test_the_answer_is_the_last_head_and_all_weigh_the_same(small):
  model, variables, image = small
  heads = jax.jit(model.apply)(variables, image)
  params = {name: leaf for name, leaf in variables['params'].items() if not name.startswith('head')}
  alone = {**variables, 'params': {**params, 'head': variables['params']['head2']}}
  assert np.allclose(heads[model.main_output], unetpp.make(4, features=FEATURES).apply(alone, image), atol=1e-5)
  assert len(heads) == len(model.head_weights) == 2 and set(model.head_weights) == {1.0}
  assert unetpp.make(4, deep_supervision=True).head_weights == (1.0,) * 4


def test_one_channel_is_repeated_where_asked(small):
  image = small[2]
  model = unetpp.make(4, features=FEATURES, repeat_to_rgb=True)
  variables = models.init(model, jax.random.key(0), image.shape)
  apply = jax.jit(model.apply)
  assert np.allclose(apply(variables, image), apply(variables, jnp.concatenate([image] * 3, -1)), atol=1e-6)
  assert variables['params']['conv0_0']['conv1']['kernel'].shape == (3, 3, 3, 4)


def test_bfloat16_computes_low_and_keeps_float32(small):
  model, variables, image = small
  low = unetpp.make(4, features=FEATURES, deep_supervision=True, dtype='bfloat16')
  shapes = jax.eval_shape(lambda: (low.init(jax.random.key(0), image), trained(low, variables, image)))
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype('float32')}
  for logits, full in zip(jax.jit(low.apply)(variables, image), jax.jit(model.apply)(variables, image)):
    assert 1e-4 < relative(logits, full) < 0.05


def test_remat_changes_neither_loss_nor_gradient_nor_statistics():
  image = jnp.asarray(np.random.default_rng(0).random((2, 4, 6, 1), dtype=np.float32))
  variables = models.init(unetpp.make(3, features=(2, 4), deep_supervision=True), jax.random.key(0), image.shape)

  def step(model):
    def loss_of(params):
      heads, updates = trained(model, {**variables, 'params': params}, image)
      return sum(jnp.square(head).mean() for head in heads), updates

    return jax.value_and_grad(loss_of, has_aux=True)

  plain, remat = (step(unetpp.make(3, features=(2, 4), deep_supervision=True, remat=r)) for r in (False, True))
  assert str(jax.make_jaxpr(remat)(variables['params'])).count('remat') >= 3
  for a, b in zip(*(jax.tree.leaves(jax.jit(f)(variables['params'])) for f in (plain, remat))):
    assert np.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_constrain_sees_every_block_and_every_head():
  seen = []
  model = unetpp.make(3, features=(2, 4, 6), deep_supervision=True, constrain=lambda x: seen.append(x.shape) or x)
  models.abstract_variables(model, (1, 8, 12, 1))
  pairs = [(1, 4, 2, 6, 4), (1, 2, 2, 3, 6), (1, 4, 2, 6, 4)]  # of rows, where they are doubled
  assert [s for s in seen if len(s) == 5] == pairs
  assert [s for s in seen if s not in pairs] == [
    (1, 8, 12, 2),
    (1, 4, 6, 4),
    (1, 8, 12, 2),
    (1, 2, 3, 6),
    (1, 4, 6, 4),
    (1, 8, 12, 2),
    (1, 8, 12, 3),
    (1, 8, 12, 3),
  ]


def test_every_size_that_its_strides_allow():
  model = unetpp.make(3)
  variables = models.abstract_variables(model, (1, 32, 32, 2))
  for shape in ((2, 16, 48, 2), (1, 304, 16, 2)):
    assert jax.eval_shape(model.apply, variables, jnp.zeros(shape)).shape == (*shape[:-1], 3)
  assert unetpp.smallest_image(model, 3) == (1, 16, 16, 3) and unetpp.SPATIAL_DIMS == 2
