"""Every network has a known parameter count."""

import jax
import pytest
from network_checks import count

from afw_jax import models

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


@pytest.mark.parametrize('name', models.MODELS)
def test_parameter_count(name):
  options, shape, parameters = PARAMETERS[name]
  variables = models.abstract_variables(models.build(name, **options), shape)
  assert count(variables['params']) == parameters


def test_abstract_variables_are_those_of_init():
  model = models.build('unet', num_classes=3, features=(2, 3))
  made, shapes = models.init(model, jax.random.key(0), (1, 4, 4, 2)), models.abstract_variables(model, (1, 4, 4, 2))
  assert jax.tree.map(lambda a: (a.shape, a.dtype), made) == jax.tree.map(lambda a: (a.shape, a.dtype), shapes)
  assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
