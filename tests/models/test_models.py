"""What must hold for every network: it has a known parameter count, and its testing size trains in no time."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afw_jax import losses, models
from afw_jax.errors import InputError

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
  variables = jax.eval_shape(models.build(name, **options).init, jax.random.key(0), jnp.zeros(shape))
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == parameters


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
      logits, _ = model.apply(
        {'params': params, **rest}, image, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(1)}
      )
      return loss_fn(logits, label, jnp.zeros(3))[0]

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


def test_unknown_names_and_options_are_refused_with_those_that_work():
  with pytest.raises(InputError, match="did you mean 'unet'.*these work: unet"):
    models.build('unett', num_classes=3)
  with pytest.raises(InputError, match="did you mean 'head_kernel'.*recipe"):
    models.build('unet', num_classes=3, head_kernal=1)
  for classes in (1, 0, -3, 2.5, '9', True):
    with pytest.raises(InputError, match='num_classes'):
      models.build('unet', num_classes=classes)
