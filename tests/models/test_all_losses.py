"""Every network learns from every loss: a finite loss, and a gradient for every parameter that can have one.

The gradient of a training step is that of the loss with respect to the logits, pulled back through the network. So each
network is compiled once and each loss once per shape of logits, and all pairs are combinations of the two.
"""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import DEAD

from afw_jax import losses, models

CLASSES = 4
RARE = {'ce_afw': {'rare': (2, 3)}, 'afw': {'rare': (2, 3)}}
LEARNED = {'ce_afw', 'afw'}  # the losses that train log_sigma_sq


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
  """(model, logits of a train step, function from the logits' gradient to the parameters')."""
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
  return model, pull(params, zeros)[0], lambda grads: pull(params, grads)[1]


@functools.cache
def gradient_of(loss, shapes, weights, main):
  """The loss and its gradients towards logits and log_sigma_sq, compiled for these shapes of logits."""
  loss_fn = losses.deep_supervised(losses.make_loss(loss, **RARE.get(loss, {})), weights, main=main)
  heads = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  logits = heads if weights else heads[0]
  labels = jax.ShapeDtypeStruct(shapes[main][:-1], jnp.int32)
  step = jax.value_and_grad(lambda logits, labels, s: loss_fn(logits, labels, s)[0], argnums=(0, 2))
  return compiled(step, logits, labels, jax.ShapeDtypeStruct((CLASSES,), jnp.float32))


@pytest.mark.parametrize('loss', losses.LOSSES)
@pytest.mark.parametrize('name', models.MODELS)
def test_a_train_step_reaches_every_parameter(name, loss):
  model, logits, pull = network(name)
  several = isinstance(logits, list | tuple)
  shapes = tuple(head.shape for head in logits) if several else (logits.shape,)
  main = getattr(model, 'main_output', 0)
  step = gradient_of(loss, shapes, tuple(model.head_weights) if several else None, main if several else 0)
  labels = np.random.default_rng(1).integers(0, CLASSES, shapes[main if several else 0][:-1]).astype(np.int32)
  value, (to_logits, to_s) = step(logits, labels, jnp.full(CLASSES, 0.3))

  assert np.isfinite(value) and np.isfinite(to_s).all()
  assert np.all(np.asarray(to_s) != 0) if loss in LEARNED else not np.any(to_s)
  for path, grad in jax.tree_util.tree_leaves_with_path(pull(to_logits)):
    path = tuple(key.key for key in path)
    assert np.isfinite(grad).all(), path
    assert (np.abs(grad).max() > 0) != DEAD.get(name, lambda path: False)(path), path
