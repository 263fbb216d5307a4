"""Every network has a known parameter count, and its testing size takes a training step in well under a second."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_checks import count, trained

from afw_jax import losses, models

# name -> (options, image shape, parameters); a network that is not here fails the tests below
PARAMETERS = {
  'unet': ({'num_classes': 9}, (1, 224, 224, 3), 7_852_809),
  'unetpp': ({'num_classes': 9}, (1, 224, 224, 3), 9_163_593),
  'transunet': ({'num_classes': 9}, (1, 224, 224, 3), 105_277_081),
  'vatransunet': ({'num_classes': 9}, (1, 224, 224, 3), 8_189_209),
  # nnU-Net has 8,334 more: biases before a norm, and a head that counts nothing
  'unet3d': ({'num_classes': 14}, (1, 32, 32, 32, 1), 31_205_254 - 8_334),
  # MONAI has 18,432 more, which no input ever reaches (norm_cross_attn)
  'unetr': ({'num_classes': 14}, (1, 96, 96, 96, 1), 92_802_478 - 18_432),
  'unetrpp': ({'num_classes': 14}, (1, 64, 128, 128, 1), 42_952_850),
}
# bias before a BatchNorm with the batch's statistics: the norm takes it out again, so that its gradient is zero
BIAS_BEFORE_NORM = lambda path: path[-1] == 'bias' and path[-2] in ('conv1', 'conv2')
DEAD = {'unet': BIAS_BEFORE_NORM, 'unetpp': BIAS_BEFORE_NORM, 'vatransunet': lambda path: path[-2:] == ('proj', 'bias')}


@pytest.mark.parametrize('name', models.MODELS)
def test_parameter_count(name):
  options, shape, parameters = PARAMETERS[name]
  variables = models.abstract_variables(models.build(name, **options), shape)
  assert count(variables['params']) == parameters


@pytest.mark.parametrize('name', models.MODELS)
def test_a_train_step_of_the_testing_size_is_quick_and_reaches_every_parameter(name):
  model = models.build(name, num_classes=3, size='testing')
  shape = models.module_of(name).smallest_image(model)
  shape = (2, *(2 * n for n in shape[1:-1]), shape[-1])
  rng = np.random.default_rng(0)
  image, label = jnp.asarray(rng.random(shape, dtype=np.float32)), jnp.asarray(rng.integers(0, 3, shape[:-1]))
  variables = models.init(model, jax.random.key(0), shape)
  loss_fn = losses.deep_supervised(
    losses.make_loss('ce_dice'), getattr(model, 'head_weights', None), main=getattr(model, 'main_output', 0)
  )
  rest = {key: value for key, value in variables.items() if key != 'params'}

  @functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0}
  )  # optimising takes most of the time
  def step(params):
    def loss_of(params):
      logits, _ = trained(model, {'params': params, **rest}, image, dropout=jax.random.key(1))
      return loss_fn(logits, label, losses.init_log_sigma_sq(3))[0]

    loss, grads = jax.value_and_grad(loss_of)(params)
    return loss, grads, jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)

  before, grads, params = jax.block_until_ready(step(variables['params']))
  start = time.perf_counter()
  for _ in range(3):
    after, _, params = jax.block_until_ready(step(params))
  assert (time.perf_counter() - start) / 3 < 1
  assert np.isfinite(before) and after < before
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    path = tuple(key.key for key in path)
    assert np.isfinite(grad).all()
    assert (np.abs(grad).max() > 0) != DEAD.get(name, lambda path: False)(path), path


def test_abstract_variables_are_those_of_init():
  model = models.build('unet', num_classes=3, features=(2, 3))
  made, shapes = models.init(model, jax.random.key(0), (1, 4, 4, 2)), models.abstract_variables(model, (1, 4, 4, 2))
  assert jax.tree.map(lambda a: (a.shape, a.dtype), made) == jax.tree.map(lambda a: (a.shape, a.dtype), shapes)
  assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
