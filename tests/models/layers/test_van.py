"""The VAN encoder: initialisation, dropped branches, rematerialisation."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from network_checks import jit

from afw_jax.models.layers import van


def draw(shape, seed=0, dtype=np.float32):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def test_initialisation_is_vans():
  stages = [stage._replace(depth=1) for stage in van.VAN_B0]
  params = jit(van.VAN(stages).init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))['params']
  wanted = {
    ('patch_embed1', 'proj'): 7 * 7 * 32,
    ('patch_embed4', 'proj'): 3 * 3 * 256,
    ('block3_0', 'mlp', 'fc1'): 640,
    ('block3_0', 'mlp', 'dwconv'): 3 * 3,
    ('block4_0', 'attn', 'spatial_gating_unit', 'conv_spatial'): 7 * 7,
  }
  for path, fan_out in wanted.items():
    leaf = params
    for name in path:
      leaf = leaf[name]
    assert np.isclose(leaf['kernel'].std(), np.sqrt(2 / fan_out), rtol=0.1), path
    assert not leaf['bias'].any()
  assert np.array_equal(params['block1_0']['layer_scale_2'], np.full(32, 1e-2, np.float32))


def test_recomputed_blocks_give_the_same_gradients():
  x = draw((3, 8, 8, 2))

  def gradients(remat):
    model = van.VAN((van.Stage(4, 2, 2),), drop_path_rate=0.5, remat=remat)

    def loss_of(params, rest):
      maps, _ = model.apply(
        {**rest, 'params': params}, x, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(1)}
      )
      return jnp.square(maps[0] - x[:, ::2, ::2, :1]).mean()

    variables = jax.tree.map(lambda a: draw(a.shape), jax.eval_shape(model.init, jax.random.key(0), x))
    return jit(jax.grad(loss_of))(variables.pop('params'), variables)

  plain, again = (flax.traverse_util.flatten_dict(gradients(remat)) for remat in (False, True))
  assert plain.keys() == again.keys()
  largest = max(np.abs(g).max() for g in plain.values())
  for path in plain:
    assert np.abs(plain[path] - again[path]).max() < 1e-5 * largest, path


def test_drop_path_drops_whole_samples_of_a_branch_and_keeps_the_mean():
  x = draw((64, 2, 2, 4))
  variables = jax.eval_shape(lambda key: van.Block(2, 0.0).init(key, x, False), jax.random.key(0))
  variables = jax.tree.map(lambda a: 0.1 * draw(a.shape), variables)

  def change(rate):
    block = van.Block(2, rate)
    return jit(lambda key: block.apply(variables, x, True, mutable=['batch_stats'], rngs={'dropout': key})[0] - x)(
      jax.random.key(1)
    )

  moved, kept = change(0.5), change(0.0)
  still = np.abs(moved).max((1, 2, 3)) == 0
  assert 5 <= still.sum() <= 28  # both branches dropped: a quarter of 64
  # both kept: twice the change, but for the second branch's norm seeing other samples changed by 1 %
  ratio = np.abs(moved).mean((1, 2, 3)) / np.abs(kept).mean((1, 2, 3))
  assert 5 <= (np.abs(ratio - 2) < 0.1).sum() <= 28


def test_drop_rates_grow_linearly_over_all_blocks():
  rates = []

  def record(next_fun, args, kwargs, context):
    if isinstance(context.module, van.Block) and context.method_name == '__call__':
      rates.append(context.module.drop_rate)
    return next_fun(*args, **kwargs)

  with van.nn.intercept_methods(record):
    jax.eval_shape(van.VAN().init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  assert np.allclose(rates, np.linspace(0, 0.1, 13))
