"""Every network learns from every loss: a finite loss, a gradient for every parameter that can have one, quick steps.

The gradient of a training step is that of the loss with respect to the logits, pulled back through the network. So each
network is compiled once and each loss once per shape of logits, and all pairs are combinations of the two.
"""

import functools
import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afw_jax import losses, models

CLASSES = 4
RARE = {'ce_afw': {'rare': (2, 3)}, 'afw': {'rare': (2, 3)}}
LEARNED = {'ce_afw', 'afw'}  # the losses that train log_sigma_sq
# bias before a BatchNorm with the batch's statistics: the norm takes it out again, so that its gradient is zero
BIAS_BEFORE_NORM = lambda path: path[-1] == 'bias' and path[-2] in ('conv1', 'conv2')
DEAD = {'unet': BIAS_BEFORE_NORM, 'unetpp': BIAS_BEFORE_NORM, 'vatransunet': lambda path: path[-2:] == ('proj', 'bias')}


def compiled(f, *args):
  return jax.jit(f).lower(*args).compile(compiler_options={'xla_backend_optimization_level': 0})


def drawn(path, leaf):
  """A value for a variable: drawing it here takes no compilation, and no branch starts switched off."""
  name = path[-1].key
  z = np.random.default_rng(zlib.crc32(str(path).encode())).standard_normal(leaf.shape).astype(np.float32)
  if name == 'var' or leaf.size == 1:
    return np.exp(0.2 * z)
  if 'kernel' in name:
    return z / np.sqrt(np.float32(np.prod(leaf.shape[:-1])))
  return 0.1 * z + (name == 'scale')


@functools.cache
def network(name):
  """(model, parameters, function (parameters, gradient of the logits) -> (logits, gradient of the parameters))."""
  model = models.build(name, num_classes=CLASSES, size='testing')
  shape = models.module_of(name).smallest_image(model)
  shape = (2, *(2 * n for n in shape[1:-1]), shape[-1])
  image = jnp.asarray(np.random.default_rng(0).random(shape, dtype=np.float32))
  variables = jax.tree_util.tree_map_with_path(drawn, models.abstract_variables(model, shape))
  params = variables.pop('params')

  def forward(params):
    return model.apply(
      {'params': params, **variables}, image, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(1)}
    )[0]

  def pull(params, grads):
    logits, backward = jax.vjp(forward, params)
    return logits, backward(grads)[0]

  zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(forward, params))
  pull = compiled(pull, params, zeros)
  return model, params, pull, pull(params, zeros)[0]


@functools.cache
def gradient_of(loss, shapes, weights, main):
  """The loss and its gradients towards logits and log_sigma_sq, compiled for these shapes of logits."""
  loss_fn = losses.deep_supervised(losses.make_loss(loss, **RARE.get(loss, {})), weights, main=main)
  heads = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  logits = heads if weights else heads[0]
  labels = jax.ShapeDtypeStruct(shapes[main][:-1], jnp.int32)
  step = jax.value_and_grad(lambda logits, labels, s: loss_fn(logits, labels, s)[0], argnums=(0, 2))
  return compiled(step, logits, labels, jax.ShapeDtypeStruct((CLASSES,), jnp.float32))


def loss_and_gradients(name, loss):
  """Function logits -> (loss, gradients towards the logits and log_sigma_sq), for random labels."""
  model, _, _, logits = network(name)
  several = isinstance(logits, list | tuple)
  shapes = tuple(head.shape for head in logits) if several else (logits.shape,)
  main = getattr(model, 'main_output', 0) if several else 0
  step = gradient_of(loss, shapes, tuple(model.head_weights) if several else None, main)
  labels = np.random.default_rng(1).integers(0, CLASSES, shapes[main][:-1]).astype(np.int32)
  return lambda logits: step(logits, labels, jnp.full(CLASSES, 0.3))


@pytest.mark.parametrize('loss', losses.LOSSES)
@pytest.mark.parametrize('name', models.MODELS)
def test_a_train_step_reaches_every_parameter(name, loss):
  _, params, pull, logits = network(name)
  value, (to_logits, to_s) = loss_and_gradients(name, loss)(logits)

  assert np.isfinite(value) and np.isfinite(to_s).all()
  assert np.all(np.asarray(to_s) != 0) if loss in LEARNED else not np.any(to_s)
  for path, grad in jax.tree_util.tree_leaves_with_path(pull(params, to_logits)[1]):
    path = tuple(key.key for key in path)
    assert np.isfinite(grad).all(), path
    assert (np.abs(grad).max() > 0) != DEAD.get(name, lambda path: False)(path), path


@pytest.mark.parametrize('name', models.MODELS)
def test_steps_of_the_testing_size_are_quick_and_lower_the_loss(name):
  _, params, pull, logits = network(name)
  step, values, start = loss_and_gradients(name, 'ce_dice'), [], time.process_time()
  for _ in range(3):
    value, (to_logits, _) = step(logits)
    _, grads = pull(params, to_logits)
    params = jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)
    logits, _ = pull(params, jax.tree.map(jnp.zeros_like, logits))
    values.append(float(value))
  assert (time.process_time() - start) / 3 < 3  # CPU seconds, with two passes in each
  assert values[2] < values[1] < values[0]
