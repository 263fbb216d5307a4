"""Outside of the networks no product is rounded by an accelerator: augmentation, losses, optimizer, inference.

TPUs round the factors of a float32 product to bfloat16 and GPUs to TF32 unless it asks for more. In a network that is a
choice (`runtime.matmul_precision`); a coordinate would be off by a fifth of a pixel. The programs are traced only.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jaxpr_products import rounded_products
from marks import SLOW
from small_config import small

from afw_jax import losses, models, predict
from afw_jax.config.check import check_config
from afw_jax.config.program import make_program
from afw_jax.distributed import sharding
from afw_jax.errors import InputError
from afw_jax.inference import forward, restoration, sliding_window
from afw_jax.preprocess import make_preprocess
from afw_jax.training import optimizer, step
from afw_jax.training.augment import make_augment

KEY = jax.random.key(0)


class Pointwise(nn.Module):
  """Two logits for each pixel, without a product over channels."""

  @nn.compact
  def __call__(self, x, train=False):
    return x * self.param('weight', nn.initializers.ones, (2,))


def of(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def raw_batch(*sides):
  return {'image': of(4, *sides, 1, dtype=jnp.int16), 'label': of(4, *sides, dtype=jnp.uint8), 'window': of(4, 2)}


def test_what_the_check_finds():
  a, b = of(3, 3), of(3, 3)
  assert len(rounded_products(lambda a, b: a @ b, a, b)) == 1
  in_a_loop = jax.vmap(jax.jit(lambda a, b: lax.map(lambda row: row @ b, a)), (0, None))
  assert len(rounded_products(in_a_loop, of(2, 3, 3), b)) == 1
  assert len(rounded_products(jax.grad(lambda a, b: jnp.dot(a, b).sum()), a, b)) == 2
  assert len(rounded_products(lambda x, w: lax.conv(x, w, (1, 1), 'SAME'), of(1, 1, 8, 8), of(1, 1, 3, 3))) == 1
  assert not rounded_products(functools.partial(jnp.einsum, 'ij,jk', precision='highest'), a, b)
  assert not rounded_products(lambda a, b: (a[:, :, None] * b).sum(1), a, b)
  assert not rounded_products(lambda n: n @ n, of(3, 3, dtype=jnp.int32))


@pytest.mark.parametrize(
  'name, options, sides',
  [
    ('none', {}, (16, 16)),
    ('paper', {}, (16, 16)),
    ('paper', {}, (8, 16, 16)),
    ('released', {}, (16, 16)),
    ('extended', {'mirror_axes': (0, 1)}, (16, 12)),
    ('volume', {'voxel_aspect': (3.0, 1.0, 1.0), 'gamma': (0.8, 1.2)}, (8, 16, 16)),
  ],
)
def test_coordinates_and_intensities_of_the_augmentation(name, options, sides):
  assert not rounded_products(make_preprocess(make_augment(name, **options)), KEY, raw_batch(*sides))


@pytest.mark.parametrize('heads', [1, 2])
@pytest.mark.parametrize('name', losses.LOSSES)
def test_losses_and_their_gradients(name, heads):
  weights = (0.7, 0.3) if heads == 2 else None
  loss = losses.deep_supervised(losses.make_loss(name), weights)
  logits = of(2, 8, 8, 3) if heads == 1 else [of(2, 8, 8, 3), of(2, 4, 4, 3)]
  value_and_grad = jax.value_and_grad(loss, (0, 2), has_aux=True)
  assert not rounded_products(value_and_grad, logits, of(2, 8, 8, dtype=jnp.int32), of(3))


@pytest.mark.parametrize('micro_batches', [1, 2])
def test_everything_of_a_training_step_but_the_network(micro_batches):
  tx = optimizer.sgd(lambda count: 0.1, momentum=0.9, weight_decay=1e-4, clip_norm=1.0)
  prepare = make_preprocess(make_augment('paper'))
  train_step = step.make_train_step(Pointwise(), losses.make_loss('ce_afw'), tx, prepare, micro_batches=micro_batches)
  init = functools.partial(step.init_state, Pointwise(), tx, num_classes=2)
  state = jax.eval_shape(init, KEY, image=of(1, 16, 16, 1))
  assert not rounded_products(train_step, state, raw_batch(16, 16), KEY)


def test_everything_of_inference_but_the_network():
  variables = {'params': {'weight': of(2)}}
  predict_step = forward.mirror_averaged(forward.make_predict_step(Pointwise()), (0, 1))
  assert not rounded_products(predict_step, variables, of(2, 16, 16, 1, dtype=jnp.int16), of(2, 2))
  slices = tuple(of(16, 12, 3) for _ in range(4))
  along = lambda n, m: restoration.Interpolation(of(n, m), of(n, 2, dtype=jnp.int32), of(n, 2))
  slab = restoration.Slab(slices, of(8, 4), along(40, 16), along(30, 12))
  for keep in (True, False):
    assert not rounded_products(functools.partial(restoration.restore, keep_probabilities=keep), [slab])
  index = of(dtype=jnp.int32)
  windows = (of(8, 32, 32, 3), of(2, 8, 16, 16, 3), index, index, index, index, of(8), of(16), of(16))
  assert not rounded_products(sliding_window._add, *windows)
  assert not rounded_products(sliding_window._means, of(8, 32, 32, 3), index, of(4), of(32), of(32))


NETWORKS = [
  name if name in ('unet', 'unetr', 'vatransunet') else pytest.param(name, marks=SLOW) for name in models.MODELS
]


@pytest.mark.parametrize('name', NETWORKS)
def test_every_product_of_a_network_has_the_precision_that_was_asked_for(name):
  sides = (32, 32) if models.module_of(name).SPATIAL_DIMS == 2 else (32, 64, 64)
  changes = {'model.name': name, 'model.size': 'testing', 'data.size': sides, 'model.unet.features': ()}
  for precision in ('default', 'high') if name == 'unet' else ('high',):
    config = small(**changes, **{'augment.name': 'none', 'runtime.matmul_precision': precision})
    program = make_program(config, sharding.make_mesh(1, 1, jax.devices()[:1]), ('background', 'liver'), 1)
    products = rounded_products(program.train_step, program.abstract_state(), raw_batch(*sides), KEY)
    assert products and all(('Precision.HIGH' in text) == (precision == 'high') for text in products)


def test_a_run_predicts_with_its_own_precision_or_another(trained):
  window, image = of(1, 2), of(1, 32, 32, 1, dtype=jnp.int16)
  for precision, exact in ((None, False), ('default', False), ('highest', True)):
    network = predict.load(str(trained), matmul_precision=precision)
    assert (not rounded_products(network.predict_step, network.variables, image, window)) == exact


def test_an_unknown_precision_is_refused(trained):
  with pytest.raises(InputError, match="matmul_precision: 'hihgest' is unknown. Did you mean 'highest'.*default, high"):
    check_config(small(**{'runtime.matmul_precision': 'hihgest'}))
  with pytest.raises(InputError, match="matmul_precision: 'tf32' is unknown"):
    predict.load(str(trained), matmul_precision='tf32')
