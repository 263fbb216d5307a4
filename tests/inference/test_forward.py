"""The forward pass of evaluation: probabilities of the main head, windowed by default."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afw_jax.inference import forward


@pytest.mark.parametrize('main', [0, -1])
def test_probabilities_of_the_main_head(main):
  class Heads(nn.Module):
    main_output: ClassVar[int] = main

    @nn.compact
    def __call__(self, x, train=False):
      heads = [nn.Conv(3, (1, 1))(x), nn.Conv(3, (1, 1))(x[:, ::2, ::2])]
      return heads if self.main_output == 0 else heads[::-1]

  model = Heads()
  x = jnp.ones((2, 8, 8, 1))
  predict = forward.make_predict_step(model, lambda image, window: image)
  p = predict(model.init(jax.random.key(0), x), x, jnp.zeros((2, 2)))
  assert p.shape == (2, 8, 8, 3) and p.dtype == jnp.float32
  np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-6)


def test_the_image_is_windowed():
  class Copy(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
      return jnp.concatenate([x, -x], -1)

  image = jnp.asarray([[-500, 0, 25, 100]], jnp.int16)[..., None]
  p = forward.make_predict_step(Copy())({}, image, jnp.asarray([[0, 50]]))
  np.testing.assert_allclose(p[0, :, 0], jax.nn.sigmoid(2 * jnp.asarray([0, 0, 0.5, 1])), rtol=1e-6)
