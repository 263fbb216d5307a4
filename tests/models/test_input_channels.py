"""Every network takes images of several channels, and treats them alike: only the first layer knows their order."""

import jax
import numpy as np
import pytest
from flax import traverse_util
from network_checks import jit

from afw_jax import models

LARGER = {'unetr': (1, 16, 16, 16)}  # than the smallest image, where that is one token


def shape_of(name, model, channels):
  _, *sides, last = models.module_of(name).smallest_image(model, channels)
  return 1, *LARGER.get(name, (1, *(2 * n for n in sides)))[1:], last


def exchanged(leaf, axis):
  """The parameters of two channels in the other order along an axis, where they may be interleaved with others."""
  leaf = np.moveaxis(np.asarray(leaf), axis, -1)
  pairs = leaf.reshape(*leaf.shape[:-1], -1, 2)[..., ::-1]
  return np.moveaxis(pairs.reshape(leaf.shape), -1, axis)


@pytest.mark.parametrize('name', models.MODELS)
def test_two_channels_in_any_order(name):
  model = models.build(name, 3, size='testing')
  shape = shape_of(name, model, 2)
  variables = models.init(model, jax.random.key(0), shape)
  flat = traverse_util.flatten_dict(variables)
  wider = traverse_util.flatten_dict(models.abstract_variables(model, shape_of(name, model, 6)))
  axes = {
    path: [i for i, (n, m) in enumerate(zip(leaf.shape, wider[path].shape)) if n != m] for path, leaf in flat.items()
  }
  first = {path: axis for path, (axis, *_) in ((path, axes) for path, axes in axes.items() if axes)}
  assert first and all(3 * flat[path].shape[axis] == wider[path].shape[axis] for path, axis in first.items())
  other = traverse_util.unflatten_dict(
    {path: exchanged(leaf, first[path]) if path in first else leaf for path, leaf in flat.items()}
  )
  image = np.random.default_rng(0).random(shape, np.float32)
  apply = jit(model.apply)
  main = lambda logits: logits[model.main_output] if isinstance(logits, list | tuple) else logits
  logits = np.asarray(main(apply(variables, image)))
  assert logits.shape == (*shape[:-1], 3) and np.isfinite(logits).all()
  np.testing.assert_allclose(main(apply(other, image[..., ::-1])), logits, atol=2e-5 * logits.std() + 1e-6)
  assert np.abs(main(apply(variables, image[..., ::-1])) - logits).max() > 1e-4 * logits.std()  # the order does matter
