"""A batch split over devices is still one batch: same logits, BatchNorm statistics and gradients, nothing gathered."""

import os
import subprocess
import sys
from pathlib import Path

RUN = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from afw_jax import models
model = models.build('unet', num_classes=3, features=(4, 6))
rng = np.random.default_rng(0)
image = rng.random((4, 16, 16, 1), dtype=np.float32) + np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)
truth = jax.nn.one_hot(rng.integers(0, 3, (4, 16, 16)), 3)
variables = models.init(model, jax.random.key(0), image.shape)

def step(variables, image, truth):
  def loss(params):
    logits, updates = model.apply({**variables, 'params': params}, image, train=True, mutable=['batch_stats'])
    return -(jax.nn.log_softmax(logits) * truth).mean(), updates
  return jax.value_and_grad(loss, has_aux=True)(variables['params'])

mesh = Mesh(np.array(jax.devices()), ('data',))
whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P('data'))
sharded = jax.jit(step, in_shardings=(whole, split, split), out_shardings=whole)
sharded = sharded.lower(variables, image, truth).compile()
assert mesh.size == 4 and 'all-reduce' in sharded.as_text() and 'all-gather' not in sharded.as_text()
placed = jax.device_put(variables, whole), jax.device_put(image, split), jax.device_put(truth, split)
one, many = jax.jit(step)(variables, image, truth), sharded(*placed)
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many)):
  assert np.allclose(a, b, rtol=1e-4, atol=1e-6), np.abs(a - b).max()
print('equal')
"""


def test_a_batch_over_four_devices_is_one_batch():
  run = subprocess.run(
    [sys.executable, '-c', RUN],
    capture_output=True,
    text=True,
    cwd=Path(__file__).parents[2],
    env=os.environ | {'JAX_NUM_CPU_DEVICES': '4', 'JAX_PLATFORMS': 'cpu'},
  )
  assert run.stdout.strip() == 'equal', run.stderr
