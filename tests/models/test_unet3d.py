"""The 3D U-Net against the numbers of nnU-Net's own, and its options."""

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afw_jax import models
from afw_jax.errors import InputError
from afw_jax.models import unet3d
from afw_jax.weights import convert

FEATURES = (2, 3, 4, 5)


def jit(function):
  """Compiled without optimisation: compiling is what takes the time here."""
  return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0})


@pytest.fixture(scope='module')
def small():
  model = unet3d.make(4, features=FEATURES)
  image = jnp.asarray(np.random.default_rng(0).random((2, 16, 8, 24, 1), dtype=np.float32))
  return model, models.init(model, jax.random.key(0), image.shape), image


def count(variables):
  return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


def shapes(model, channels=1):
  return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 32, channels), jnp.float32))


def test_logits_of_the_heads_are_nnunets():
  facts, state, image, numbers = golden_weights.load('unet3d')
  aliases = {
    'encoder.stages.0.0.convs.0.all_modules.1.bias': 'encoder.stages.0.0.convs.0.norm.bias',
    'decoder.encoder.stages.3.0.convs.1.conv.weight': 'encoder.stages.3.0.convs.1.conv.weight',
  }
  state |= {alias: np.zeros_like(state[key]) for alias, key in aliases.items()}  # second names count nowhere
  variables = convert.from_torch('unet3d', state)
  assert count(variables) == facts['parameters'] - facts['dead_parameters']
  logits = jax.jit(unet3d.make(14).apply)(variables, image)
  assert len(logits) == 4 and {head.dtype for head in logits} == {np.dtype('float32')}
  with jax.enable_x64(True):
    variables64 = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    logits64 = jax.jit(unet3d.make(14, dtype='float64').apply)(variables64, image.astype(np.float64))
  for i, (head, head64) in enumerate(zip(logits, logits64, strict=True)):
    assert list(head.shape) == facts['outputs'][f'eval_{i}']['shape']
    # In float64, since the reference's own rounding is 1.5e-5; float32 adds up to as much, depending on the CPU.
    assert golden_weights.worst_error(head64, numbers, f'eval_{i}') < 2e-5
    assert np.abs(np.asarray(head) - np.asarray(head64)).max() < 2e-5 * np.asarray(head64).std()
  single = convert.from_torch('unet3d', state, deep_supervision=False)
  assert set(variables['params']) - set(single['params']) == {'head1', 'head2', 'head3'}


@pytest.mark.parametrize(
  'options, channels, classes, parameters',
  [({}, 1, 14, 31_196_920), ({}, 2, 14, 31_197_784), ({'deep_supervision': False}, 1, 14, 31_190_606)],
)
def test_parameter_counts(options, channels, classes, parameters):
  assert count(shapes(unet3d.make(classes, **options), channels)) == parameters


def test_it_starts_as_nnunet_does():
  """He's initialisation for slope 0.01, measured by PyTorch's fans, and no bias."""
  net = models.init(unet3d.make(3, features=(8, 16, 24)), jax.random.key(0), (1, 4, 4, 4, 2))['params']
  for kernel, fan_in in (
    (net['encoder1']['conv1']['kernel'], 27 * 16),
    (net['encoder0']['conv0']['kernel'], 27 * 2),
    (net['up0']['transposed_kernel'], 8 * 16),
    (net['decoder1']['conv0']['kernel'], 27 * 16),
  ):
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (1.0001 * fan_in)), rel=0.1)
  assert not np.any(net['up0']['bias']) and not np.any(net['head1']['bias'])


def test_without_deep_supervision_it_is_the_first_head(small):
  model, variables, image = small
  assert model.head_weights == (1, 0.5) and model.main_output == 0
  single = unet3d.make(4, features=FEATURES, deep_supervision=False)
  heads = jit(model.apply)(variables, image)
  assert [head.shape for head in heads] == [(2, 16, 8, 24, 4), (2, 8, 4, 12, 4)]
  kept = {'params': {k: v for k, v in variables['params'].items() if k != 'head1'}}
  np.testing.assert_allclose(jit(single.apply)(kept, image), heads[0], atol=1e-5)


def test_a_case_does_not_depend_on_its_batch_in_training_either(small):
  model, variables, image = small
  apply = jit(lambda image: model.apply(variables, image, train=True)[0])
  np.testing.assert_allclose(apply(image)[1:], apply(image[1:]), atol=1e-5)


def test_constrain_sees_every_level_and_the_logits():
  seen = []
  model = unet3d.make(3, features=(2, 4, 6, 8), constrain=lambda x: seen.append(x.shape[1:]) or x)
  jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 16, 8, 1)))
  assert seen == [
    (8, 16, 8, 2),
    (4, 8, 4, 4),
    (2, 4, 2, 6),
    (1, 2, 1, 8),
    (2, 4, 2, 6),
    (4, 8, 4, 4),
    (8, 16, 8, 2),
    (8, 16, 8, 3),
    (4, 8, 4, 3),
  ]


def test_remat_changes_nothing():
  image = jnp.asarray(np.random.default_rng(0).random((1, 4, 8, 4, 1), dtype=np.float32))
  kept, again = (unet3d.make(2, features=(2, 3, 4), deep_supervision=False, remat=remat) for remat in (False, True))
  variables = models.init(kept, jax.random.key(0), image.shape)
  grads = [jit(jax.grad(lambda v: (m.apply(v, image) ** 2).sum()))(variables) for m in (kept, again)]  # noqa: B023
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()), *grads)


@pytest.mark.parametrize(
  'shape, words',
  [
    ((1, 40, 32, 64, 1), ['40 x 32 x 64', '32 x 32 x 64', '64 x 32 x 64']),
    ((1, 32, 32, 1), ['(B, D, H, W, channels)']),
  ],
)
def test_images_it_cannot_take_are_refused_with_what_it_can(shape, words):
  with pytest.raises(InputError) as caught:
    models.init(unet3d.make(3), jax.random.key(0), shape)
  assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
  'options, word',
  [
    ({'size': 'huge'}, "'testing'"),
    ({'features': (8, 8)}, 'three or more'),
    ({'features': (8, 0, 8)}, 'three or more'),
    ({'deep_supervision': 2}, 'True'),
  ],
)
def test_option_values_that_cannot_work_are_refused_with_those_that_do(options, word):
  with pytest.raises(InputError, match=word):
    unet3d.make(3, **options)
