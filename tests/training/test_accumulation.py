"""Gradient accumulation: loss and gradient of the whole batch from its parts, in less memory, on several devices."""

import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import SLOW

from afw_jax import losses, models
from afw_jax.errors import InputError
from afw_jax.training import accumulation, step

CLASSES = 3
KEY = jax.random.key(7)
GRADIENT = optax.trace(0.0)  # an optimizer whose state after a step is the gradient


class Tiny(nn.Module):
  """Two heads, the second at half the size; BatchNorm and dropout if wanted."""

  norm: bool = False
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.gelu(nn.Conv(4, (3, 3))(x))
    if self.norm:
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return [nn.Conv(CLASSES, (3, 3))(x), nn.Conv(CLASSES, (1, 1))(x[:, ::2, ::2])]


def make_batch(shape, seed=0):
  """Samples that differ: class 2 is in the first alone."""
  rng = np.random.default_rng(seed)
  label = rng.integers(0, 2, shape)
  label[0, :2] = 2
  image = label[..., None] / 2 + 0.5 * rng.normal(size=(*shape, 1)) + np.arange(shape[0]).reshape(-1, *[1] * len(shape))
  return {'image': jnp.asarray(image, jnp.float32), 'label': jnp.asarray(label)}


def fresh_state(model, batch):
  """A state whose parameters are drawn here: that takes no compilation."""
  rng = np.random.default_rng(1)

  def drawn(path, leaf):
    z = rng.standard_normal(leaf.shape)
    if path[0].name != 'params':
      z = np.full(leaf.shape, path[-1].key == 'var' if path[0].name == 'batch_stats' else 0)
    elif 'kernel' in path[-1].key:
      z = z / np.sqrt(np.prod(leaf.shape[:-1]))
    else:
      z = 0.1 * z + (path[-1].key == 'scale')
    return jnp.asarray(z, leaf.dtype)

  init = lambda image: step.init_state(model, GRADIENT, jax.random.key(0), image, CLASSES)
  return jax.tree_util.tree_map_with_path(drawn, jax.eval_shape(init, batch['image'][:1]))


def compiled(function, *arguments):
  return jax.jit(function).lower(*arguments).compile(compiler_options={'xla_backend_optimization_level': 0})


def stepped(model, loss_fn, state, batch, prepare=lambda key, batch: batch, **options):
  """(state, aux) after one step; its optimizer's state is the gradient."""
  train_step = step.make_train_step(model, loss_fn, GRADIENT, prepare, **options)
  return compiled(train_step, state, batch, KEY)(state, batch, KEY)


def in_float64(tree):
  return jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, tree)


def assert_close(got, expected, tolerance):
  """Compares each array relative to its largest entry, or to a thousandth of the largest of all."""
  largest = max(float(jnp.abs(e).max()) for e in jax.tree.leaves(expected))
  for (path, e), g in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(got), strict=True):
    bound = tolerance * max(float(jnp.abs(e).max()), 1e-3 * largest)
    np.testing.assert_allclose(g, e, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
  'names, unroll, x64, tolerance',
  [(losses.LOSSES, True, True, 1e-12), (('ce_afw', 'focal_dice', 'unified_focal'), False, False, 1e-5)],
)
def test_every_loss_of_several_heads_is_that_of_the_whole_batch(names, unroll, x64, tolerance):
  with jax.enable_x64(x64):
    batch = make_batch((4, 8, 8))
    state = fresh_state(Tiny(), batch)
    if x64:
      batch, state = in_float64((batch, state))
    made = {name: losses.deep_supervised(losses.make_loss(name), (1.0, 0.5)) for name in names}

    def every(micro_batches):
      steps = {
        name: step.make_train_step(Tiny(), fn, GRADIENT, lambda key, b: b, micro_batches=micro_batches, unroll=unroll)
        for name, fn in made.items()
      }
      return compiled(lambda *a: {k: f(*a) for k, f in steps.items()}, state, batch, KEY)(state, batch, KEY)

    whole, parts = every(1), every(2)
    for name in names:
      (w_state, w_aux), (p_state, p_aux) = whole[name], parts[name]
      assert w_aux['loss'].dtype == (np.float64 if x64 else np.float32) and float(w_aux['grad_norm']) > 1e-4, name
      assert_close(p_aux, w_aux, tolerance)
      assert_close(p_state.opt_state, w_state.opt_state, tolerance)


@SLOW
def test_unetr_without_batchnorm_takes_the_step_of_the_whole_batch_with_the_same_augmentation():
  """In float64: in float32 rounding alone moves small entries of the gradient by 1e-2 of themselves."""
  model, loss_fn = (
    models.build('unetr', num_classes=CLASSES, size='testing', dtype='float64'),
    losses.make_loss('ce_afw'),
  )

  def augment(key, batch):  # another for each sample
    noise = jax.random.normal(key, batch['image'].shape)
    flipped = jax.random.bernoulli(key, 0.5, (2, 1, 1, 1))
    return {'image': batch['image'] + noise, 'label': jnp.where(flipped, batch['label'][:, ::-1], batch['label'])}

  with jax.enable_x64(True):
    batch = in_float64(make_batch((2, 16, 16, 32)))
    state = in_float64(fresh_state(model, batch))
    (whole, w_aux), (parts, p_aux) = (stepped(model, loss_fn, state, batch, augment, micro_batches=m) for m in (1, 2))
    assert_close(p_aux, w_aux, 1e-10)
    assert_close(parts.opt_state, whole.opt_state, 1e-10)
    assert_close(parts.params, whole.params, 1e-10)
    assert int(parts.step) == 1


def test_the_dice_is_the_batchs_and_not_the_mean_of_the_micro_batches_dices():
  """Class 2 lies in one sample of four; without a true voxel to meet, the little that softmax gives it is all wrong."""

  class Right(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
      return self.param('scale', nn.initializers.constant(6.0), ()) * x

  label = make_batch((4, 8, 8))['label']
  batch = {'image': jax.nn.one_hot(label, CLASSES), 'label': label}
  state = step.init_state(Right(), GRADIENT, jax.random.key(0), batch['image'], CLASSES)

  def seen(batch, m):  # loss of class 2, gradient
    after, aux = stepped(Right(), losses.make_loss('dice'), state, batch, micro_batches=m)
    return float(aux['terms']['dice'][2]), float(after.opt_state.trace['net']['scale'])

  whole, parts = seen(batch, 1), seen(batch, 4)
  mean = np.mean([seen({k: v[i : i + 1] for k, v in batch.items()}, 1) for i in range(4)], axis=0)
  assert parts == pytest.approx(whole, rel=1e-5)
  assert (*whole, *mean) == pytest.approx((0.0206, -0.00931, 0.7515, -0.00314), rel=5e-3)


@pytest.mark.parametrize('unroll', [True, False])
def test_batchnorm_and_dropout_are_those_of_the_micro_batches(unroll):
  """To the last digits the derivative of the definition: the parts side by side in one differentiable function."""
  model, m = Tiny(norm=True, dropout=0.4), 3
  with jax.enable_x64(True):
    batch = in_float64(make_batch((6, 8, 8)))
    state = in_float64(fresh_state(model, batch))
    loss_fn = losses.deep_supervised(losses.make_loss('ce_afw'), (1.0, 0.5))

    def by_definition(params):
      moved, dropout_key = state.batch_stats, jax.random.split(jax.random.fold_in(KEY, 0))[1]
      logits = [jnp.zeros((6, 8, 8, CLASSES)), jnp.zeros((6, 4, 4, CLASSES))]
      for j in range(m):
        heads, mutated = model.apply(
          {'params': params['net'], 'batch_stats': moved},
          batch['image'][j::m],
          train=True,
          mutable=['batch_stats'],
          rngs={'dropout': jax.random.fold_in(dropout_key, j)},
        )
        moved = mutated['batch_stats']
        logits = [whole.at[j::m].set(head) for whole, head in zip(logits, heads)]
      loss, _ = loss_fn(logits, batch['label'], params['log_sigma_sq'])
      return loss, moved

    value = jax.value_and_grad(by_definition, has_aux=True)
    (loss, moved), gradient = compiled(value, state.params)(state.params)
    parts, aux = stepped(model, loss_fn, state, batch, micro_batches=m, unroll=unroll)
    assert_close(aux['loss'], loss, 1e-12)
    assert_close(parts.opt_state.trace, gradient, 1e-12)
    assert_close(parts.batch_stats, moved, 1e-12)
    assert not np.allclose(jax.tree.leaves(moved)[0], jax.tree.leaves(state.batch_stats)[0])


@SLOW
def test_what_batchnorm_changes_in_a_unet():
  """Of 8 samples in 2 and 4 parts: with fewer samples to normalise by, loss and gradient move away from the batch's."""
  model, rng = models.build('unet', num_classes=CLASSES, features=(8, 16, 32)), np.random.default_rng(0)
  rows = np.arange(32)
  middle, radius = rng.uniform(8, 24, (8, 2, 1, 1)), rng.uniform(4, 8, (8, 1, 1))
  far = np.hypot(rows[:, None] - middle[:, 0], rows - middle[:, 1])
  label = (far < radius).astype(int) + (far < radius / 2)
  image = (label / 2 + 0.2 * rng.normal(size=label.shape))[..., None]
  batch = {'image': jnp.asarray(image, jnp.float32), 'label': jnp.asarray(label)}
  state, loss_fn = fresh_state(model, batch), losses.make_loss('ce_afw')
  whole, aux = stepped(model, loss_fn, state, batch)
  flat = lambda state: np.concatenate([np.ravel(a) for a in jax.tree.leaves(state.opt_state.trace)])
  seen = []
  for m in (2, 4):
    parts, p_aux = stepped(model, loss_fn, state, batch, micro_batches=m, unroll=False)
    of_loss = abs(float(p_aux['loss'] - aux['loss'])) / float(aux['loss'])
    of_gradient = np.linalg.norm(flat(parts) - flat(whole)) / np.linalg.norm(flat(whole))
    seen.append((of_loss, of_gradient))
  (loss_2, gradient_2), (loss_4, gradient_4) = seen
  assert 1e-5 < loss_2 < 5e-4 and 5e-4 < loss_4 < 5e-3, seen  # measured: 0.00015, 0.0017
  assert 0.05 < gradient_2 < 0.15 and 0.15 < gradient_4 < 0.25, seen  # measured: 0.11, 0.18


@pytest.mark.parametrize('unroll', [True, False])
def test_memory_falls(unroll):
  """Of a UNet and 8 samples, in 4 parts; the program as it runs, not as it is written."""
  model, image = models.build('unet', num_classes=CLASSES, features=(16, 32, 64)), jnp.zeros((8, 32, 32, 1))
  batch = {'image': image, 'label': jnp.zeros((8, 32, 32), jnp.int32)}
  state = fresh_state(model, batch)

  def temp(micro_batches):
    train_step = step.make_train_step(
      model, losses.make_loss('ce_afw'), GRADIENT, lambda key, b: b, micro_batches=micro_batches, unroll=unroll
    )
    return compiled(train_step, state, batch, KEY).memory_analysis().temp_size_in_bytes

  assert temp(4) < 0.35 * temp(1)  # measured: 0.27 unrolled, 0.26 in a loop


FOUR_DEVICES = """
import jax, jax.numpy as jnp, numpy as np, optax
from afw_jax import losses, models
from afw_jax.distributed import sharding
from afw_jax.training import step
from test_accumulation import GRADIENT, KEY, fresh_state, make_batch

assert jax.device_count() == 4
batch = make_batch((8, 32, 32))
state = fresh_state(models.build('unet', num_classes=3, features=(8, 12)), batch)

def program(arguments, constrain, m, unroll=None, **options):
  model = models.build('unet', num_classes=3, features=(8, 12), constrain=constrain)
  loss_fn = losses.make_loss('ce_afw')
  train_step = step.make_train_step(model, loss_fn, GRADIENT, lambda key, b: b, micro_batches=m, unroll=unroll)
  lowered = jax.jit(train_step, **options).lower(*arguments)
  return lowered.compile(compiler_options={'xla_backend_optimization_level': 0})

temp = lambda program: program.memory_analysis().temp_size_in_bytes
expected = program((state, batch, KEY), lambda x: x, 2)(state, batch, KEY)
for data, spatial, unrolls in ((4, 1, (True, False)), (2, 2, (True,))):
  mesh = sharding.make_mesh(data, spatial)
  everywhere, constrain = sharding.replicated(mesh), sharding.make_constrain(mesh)
  placed = *jax.device_put((state, KEY), everywhere), sharding.put_batch(batch, mesh)
  placed = placed[0], placed[2], placed[1]
  whole = program(placed, constrain, 1, out_shardings=everywhere)
  for unroll in unrolls:
    parts = program(placed, constrain, 2, unroll, out_shardings=everywhere)
    print('temp', data, spatial, unroll, temp(parts) / temp(whole))
    assert 'all-gather' not in parts.as_text()
    assert temp(parts) < 0.75 * temp(whole)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(parts(*placed)), strict=True):
      assert np.allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max()), np.abs(a - b).max()
    print('equal')
"""


def test_four_devices_equal_one():
  tests = pathlib.Path(__file__).parents[1]
  flags = {
    'JAX_NUM_CPU_DEVICES': '4',
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': f'{tests.parent}:{tests}/support:{tests}/training',
  }
  done = subprocess.run(
    [sys.executable, '-c', FOUR_DEVICES], env={**os.environ, **flags}, capture_output=True, text=True
  )
  assert done.stdout.count('equal') == 3, done.stdout + done.stderr[-3000:]


def test_refuses_parts_that_do_not_divide_the_batch_of_a_device():
  accumulation.check(3, 24, 4)
  accumulation.check(24, 24, 1)
  with pytest.raises(
    InputError, match=r'train.micro_batches: 4 does not divide a batch of 6 samples \(24 over 4 devices\).*1, 2, 3, 6'
  ):
    accumulation.check(4, 24, 4)
  with pytest.raises(InputError, match='1, 2, 4'):
    accumulation.check(0, 4, 1)
  batch = make_batch((4, 8, 8))
  with pytest.raises(InputError, match='3 does not divide a batch of 4'):
    stepped(Tiny(), losses.deep_supervised(losses.make_loss('ce')), fresh_state(Tiny(), batch), batch, micro_batches=3)
