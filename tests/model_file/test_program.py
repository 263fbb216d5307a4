"""Serialised networks: every network for every platform and any batch, with the probabilities of the network itself."""

import jax
import numpy as np
import pytest
from jax import export
from marks import SLOW
from network_checks import jit

from afw_jax import models
from afw_jax.inference import forward
from afw_jax.model_file import program

SIZES = {
  'unet': (32, 32),
  'unetpp': (32, 32),
  'transunet': (32, 32),
  'vatransunet': (32, 32),
  'unet3d': (8, 16, 16),
  'unetr': (16, 16, 16),
  'unetrpp': (16, 32, 32),
}


def meta_of(name, **options):
  model = {'name': name, 'num_classes': 3, 'options': {'size': 'testing', **options}, 'input_size': list(SIZES[name])}
  return {'model': model, 'config': {'runtime': {}}, 'data': {'options': {}}}


@SLOW  # two of them are exported, called and compared for every other test of model files
@pytest.mark.parametrize('name', models.MODELS)
def test_a_program_gives_the_probabilities_of_its_network(name):
  meta, size = meta_of(name), SIZES[name]
  exported = export.deserialize(bytearray(program.serialised(meta)))
  assert exported.platforms == program.PLATFORMS
  assert str(exported.out_avals[0].shape) == f'(batch, {", ".join(map(str, size))}, 3)'
  model = models.build(name, num_classes=3, size='testing')
  variables = models.init(model, jax.random.key(1), (1, *size, 1))
  live, rng = jit(forward.make_predict_step(model)), np.random.default_rng(0)
  window = np.array([[-100, 250]], np.float32)
  call = jit(exported.call)
  for count in (1, 3):  # 3D convolutions of one sample have another form in the network: other rounding
    image = rng.normal(80, 120, (count, *size, 1)).astype(np.float32)
    windows = np.repeat(window, count, 0)
    found = call(program.flat(variables), image, windows)
    np.testing.assert_allclose(found, live(variables, image, windows), atol=1e-5)


def test_a_program_does_not_depend_on_the_device_that_exported_it(monkeypatch):
  """A 16-bit transformer takes a fused kernel of NVIDIA's GPUs where there is one: no other device has it."""
  monkeypatch.setattr('afw_jax.models.layers.attention.kernel', lambda *_: 'cudnn')
  data = program.serialised(meta_of('unetr', dtype='bfloat16'))
  assert b'.py' not in data and jax.config.jax_traceback_in_locations_limit > 0  # nor on the folders of its sources
  assert export.deserialize(bytearray(data)).platforms == program.PLATFORMS


def test_names_of_weights_lead_back():
  tree = {'params': {'a': {'kernel': 1}, 'b': {'kernel': 2}}, 'batch_stats': {}}
  assert program.flat(tree) == {'params/a/kernel': 1, 'params/b/kernel': 2}
  assert program.nested(program.flat(tree), tree) == tree
