"""The 3D U-Net against the numbers of nnU-Net's own, and its options."""

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_checks import count, jit

from afw_jax import models
from afw_jax.models import unet3d
from afw_jax.weights import convert

pytestmark = pytest.mark.usefixtures('float32_products')

FEATURES = (2, 3, 4, 5)


@pytest.fixture(scope='module')
def small():
  model = unet3d.make(4, features=FEATURES)
  image = jnp.asarray(np.random.default_rng(0).random((2, 16, 8, 24, 1), dtype=np.float32))
  return model, models.init(model, jax.random.key(0), image.shape), image


def test_logits_of_the_heads_are_nnunets():
  facts, state, image, numbers = golden_weights.load('unet3d')
  aliases = {
    'encoder.stages.0.0.convs.0.all_modules.1.bias': 'encoder.stages.0.0.convs.0.norm.bias',
    'decoder.encoder.stages.3.0.convs.1.conv.weight': 'encoder.stages.3.0.convs.1.conv.weight',
  }
  state |= {alias: np.zeros_like(state[key]) for alias, key in aliases.items()}  # second names count nowhere
  variables = convert.from_torch('unet3d', state)
  assert count(variables['params']) == facts['parameters'] - facts['dead_parameters']
  logits = jax.jit(unet3d.make(14).apply)(variables, image)
  assert len(logits) == 4 and {head.dtype for head in logits} == {np.dtype('float32')}
  for i, head in enumerate(logits):
    assert list(head.shape) == facts['outputs'][f'eval_{i}']['shape']
    # The reference's own rounding is 1.48e-5 (the bound of test_golden_float64.py), ours up to 1.5e-5: measured were
    # 1.93e-5 to 1.97e-5 on CPUs with AVX-512, and 2.15e-5 without.
    assert golden_weights.worst_error(head, numbers, f'eval_{i}') < 3e-5
  single = convert.from_torch('unet3d', state, deep_supervision=False)
  assert set(variables['params']) - set(single['params']) == {'head1', 'head2', 'head3'}


@pytest.mark.parametrize(
  'options, channels, classes, parameters',
  [({}, 1, 14, 31_196_920), ({}, 2, 14, 31_197_784), ({'deep_supervision': False}, 1, 14, 31_190_606)],
)
def test_parameter_counts(options, channels, classes, parameters):
  variables = models.abstract_variables(unet3d.make(classes, **options), (1, 32, 32, 32, channels))
  assert count(variables['params']) == parameters


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
  models.abstract_variables(model, (1, 8, 16, 8, 1))
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
