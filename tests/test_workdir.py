"""A workdir belongs to one config, as far as the config trains anything."""

import json

import pytest

from afw_jax import workdir
from afw_jax.errors import InputError
from configs import demo


@pytest.fixture
def begun(tmp_path):
  """A workdir in which the demo's training has begun."""
  workdir.claim(str(tmp_path), demo.get_config())
  (tmp_path / 'checkpoints' / 'last' / '1').mkdir(parents=True)
  return tmp_path


def test_what_trains_nothing_may_change(begun):
  config = demo.get_config()
  config.eval.overlap, config.mesh.spatial, config.runtime.prefetch, config.data.root = 0.25, 2, 5, 'elsewhere'
  config.model.unetr.feature_size, config.loss.ce_dice.recipe, config.augment.volume.brightness = 32, 'released', 0.5
  workdir.claim(str(begun), config)
  older = json.loads((begun / 'config.json').read_text())
  del older['model']['unetr'], older['loss']['tversky']  # a version that did not know them
  (begun / 'config.json').write_text(json.dumps(older))
  workdir.claim(str(begun), config)


def test_one_run_trains_in_a_workdir(begun):
  with (
    workdir.hold(str(begun)),
    pytest.raises(InputError, match='another process is training'),
    workdir.hold(str(begun)),
  ):
    pass
  with workdir.hold(str(begun)):
    pass


def test_what_trains_may_not(begun):
  config = demo.get_config()
  config.model.unet.head_kernel, config.loss.name, config.train.epochs = 3, 'ce_dice', 7
  with pytest.raises(InputError, match='another --workdir') as error:
    workdir.claim(str(begun), config)
  for said in (
    'model.unet.head_kernel was 1, is 3',
    "loss.name was 'ce_afw', is 'ce_dice'",
    'train.epochs was',
    'loss.ce_dice.recipe was',
  ):
    assert said in str(error.value)
