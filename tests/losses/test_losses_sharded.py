"""Eight devices give the loss and the gradient of one: jit with NamedSharding, shard_map and pmap with axis_name."""

import os
import subprocess
import sys

import jax
import numpy as np

import afw_jax
from afw_jax import losses

CODE = """
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from afw_jax import losses

assert jax.device_count() == 8
rng = np.random.default_rng(0)
x, y = (3 * rng.standard_normal((8, 4, 6, 5))).astype(np.float32), rng.integers(0, 5, (8, 4, 6))
y[:, :2], y[y == 3] = 0, 0                                  # shards that lack classes, one class absent from all
s, mask = rng.normal(0, 0.5, 5).astype(np.float32), rng.random((8, 4, 6)) < 0.7
mask[3] = False                                             # one shard has nothing

def total(x, y, s, mask, axis_name=None):                   # every loss, each with a weight of its own
  made = [losses.make_loss(n, axis_name=axis_name) for n in losses.LOSSES]
  made.append(losses.make_loss('afw', squared=True, axis_name=axis_name))
  for weights in ('equal', 'solved', 'entropic', 'entropic_present'):
    made.append(losses.make_loss('afw', weights=weights, axis_name=axis_name))
    made.append(losses.make_loss('afw', weights=weights, background='anchored', gamma=2.0, axis_name=axis_name))
  made.append(losses.make_loss('afw', weights='solved', correction='eq2', axis_name=axis_name))
  values = jax.numpy.stack([fn(x, y, s, mask=mask)[0] for fn in made])
  return (values * np.arange(1, 1 + len(made))).sum(), values

def step(axis_name=None):
  return jax.value_and_grad(lambda *a: total(*a, axis_name=axis_name), argnums=(0, 2), has_aux=True)

(_, values), (gx, gs) = jax.jit(step())(x, y, s, mask)

def same(how, got):
  (_, v), (hx, hs) = jax.device_get(got)
  np.testing.assert_allclose(v, values, rtol=2e-6, err_msg=how)
  np.testing.assert_allclose(hx, gx, rtol=1e-4, atol=1e-6 * abs(gx).max(), err_msg=how)
  np.testing.assert_allclose(hs, gs, rtol=2e-5, err_msg=how)
  print(how, 'same')

for axis_type in (AxisType.Auto, AxisType.Explicit):
  mesh = jax.make_mesh((4, 2), ('data', 'space'), axis_types=(axis_type,) * 2)
  put = lambda a: jax.device_put(a, NamedSharding(mesh, P('data', 'space')))
  got = jax.jit(step())(put(x), put(y), jax.device_put(s, NamedSharding(mesh, P())), put(mask))
  assert len(got[1][0].sharding.device_set) == 8
  same(str(axis_type), got)

mesh = jax.make_mesh((4, 2), ('data', 'space'), axis_types=(AxisType.Auto,) * 2)
both, cut = ('data', 'space'), P('data', 'space')
inside = jax.shard_map(step(both), mesh=mesh, in_specs=(cut, cut, P(), cut), out_specs=((P(), P()), (cut, P())))
same('shard_map', jax.jit(inside)(x, y, s, mask))

def averaged(x, y, s, mask):                                # each shard differentiates its own copy: average parameters
  out, (gx, gs) = step('batch')(x, y, s, mask)
  return out, (gx / 8, jax.lax.pmean(gs, 'batch'))
(_, v), (hx, hs) = jax.pmap(averaged, axis_name='batch', in_axes=(0, 0, None, 0))(x, y, s, mask)
same('pmap', ((None, v[0]), (hx, hs[0])))
"""


def test_eight_devices_equal_one():
  root = os.path.dirname(os.path.dirname(afw_jax.__file__))
  flags = {'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu'}
  env = {**os.environ, 'PYTHONPATH': root, **flags}
  done = subprocess.run([sys.executable, '-c', CODE], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.count('same') == 4


def test_axis_name_of_every_bare_function():
  """The shards of a vmapped axis, psum-ed, give the loss of the whole; without axis_name they do not."""
  rng = np.random.default_rng(1)
  x, y = rng.standard_normal((4, 2, 5, 3)).astype(np.float32), rng.integers(0, 3, (4, 2, 5))
  mask, s = rng.random((4, 2, 5)) < 0.7, np.zeros(3, np.float32)
  plain = [
    losses.cross_entropy,
    losses.focal_loss,
    losses.dice_loss,
    losses.generalised_dice_loss,
    losses.tversky_loss,
    losses.focal_tversky_loss,
    losses.unified_focal_loss,
    losses.dice_terms,
  ]
  weighted = [losses.afw_dice, losses.afw_loss, losses.afw_dice_terms]

  def every(x, y, mask, **options):
    return [f(x, y, mask=mask, **options) for f in plain] + [f(x, y, s, mask=mask, **options) for f in weighted]

  whole = jax.jit(every)(*(a.reshape(-1, *a.shape[2:]) for a in (x, y, mask)))
  shards = jax.jit(jax.vmap(lambda *a: every(*a, axis_name='shards'), axis_name='shards'))(x, y, mask)
  alone = jax.jit(jax.vmap(every))(x, y, mask)
  for got, local, expected in zip(shards, alone, whole, strict=True):
    for g, n, e in zip(*(jax.tree.leaves(t) for t in (got, local, expected)), strict=True):
      np.testing.assert_allclose(g, np.broadcast_to(e, g.shape), rtol=2e-6)
      assert not np.allclose(n, np.broadcast_to(e, n.shape), rtol=1e-3) or (np.asarray(e) == 1).all()
