"""Imported PyTorch weights: the run predicts as the network itself does, and training continues from it."""

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from marks import SLOW

from afw_jax import import_run, models, predict
from afw_jax.data.formats import volumes
from afw_jax.errors import InputError
from afw_jax.models import unet
from afw_jax.training import metric_writer
from afw_jax.weights import convert


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """(file of a small UNet's weights in PyTorch's layout, the network, the same weights as its variables)."""
  model = models.build('unet', num_classes=9, features=(4, 8, 8, 8, 8))
  shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 16, 16, 1), np.float32))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda a: np.abs(rng.normal(0.3, 0.2, a.shape)).astype(np.float32), shapes)
  state = {}
  for path, leaf in traverse_util.flatten_dict(variables).items():
    state[convert.torch_key(path, unet.TORCH_NAMES)] = np.ascontiguousarray(
      leaf.transpose(3, 2, 0, 1) if path[-1] == 'kernel' else leaf
    )
  state['conv0_0.bn1.num_batches_tracked'] = np.array(7)
  path = tmp_path_factory.mktemp('weights') / 'unet.safetensors'
  safetensors.numpy.save_file(state, path)
  return path, model, variables


@pytest.fixture(scope='module')
def imported(weights, demo, run_main, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('imported') / 'run'
  done = run_main('--mode=convert', *demo, f'--workdir={workdir}', f'--input={weights[0]}')
  assert str(workdir) in done.stdout
  return workdir


def test_a_converted_network_predicts_as_itself(imported, weights, phantoms):
  trained = predict.load(str(imported))
  scan = volumes.read_image(phantoms / 'imagesTs' / 'new_000.nii.gz')
  _, probabilities = predict.predict_volume(trained, scan, keep_probabilities=True)
  _, model, variables = weights
  jax.tree.map(np.testing.assert_array_equal, trained.variables, variables)
  image = np.random.default_rng(1).random((1, 32, 32, 1), dtype=np.float32)
  wanted = jax.nn.softmax(model.apply(variables, image))
  np.testing.assert_allclose(
    trained.predict_step(trained.variables, image, np.array([[0, 1]], np.float32)), wanted, atol=1e-6
  )
  assert probabilities.shape == (*scan.array.shape, 9) and trained.organs[0] == 'aorta'


def test_it_trains_on_from_there(imported, demo, run_main):
  run_main(*demo, f'--workdir={imported}', '--config.train.epochs=3')
  assert [r['step'] for r in metric_writer.read_metrics(str(imported)) if 'train/loss' in r][-1] == 24
  assert len(list((imported / 'cases').glob('*.json'))) == 2


def test_what_cannot_be_converted_is_refused(weights, demo, run_main, trained, tmp_path):
  for arguments, said in (
    ((f'--workdir={trained}', f'--input={weights[0]}'), 'already holds a trained run'),
    ((f'--workdir={tmp_path}/a',), '--input'),
    ((f'--workdir={tmp_path}/b', '--input=nowhere.pth'), 'nowhere.pth'),
    (
      (f'--workdir={tmp_path}/c', f'--input={weights[0]}', '--config.model.name=unetpp'),
      'unet.safetensors: PyTorch weights for unetpp',
    ),
  ):
    done = run_main('--mode=convert', *demo, *arguments, check=2)
    assert said in done.stderr and 'Traceback' not in done.stderr
  assert not (tmp_path / 'c').exists()


def state_dict(name, image_shape, **options):
  """PyTorch's keys and shapes of a small network made for images of this shape, with random values."""
  module = models.module_of(name)
  model = models.build(name, num_classes=9, size='testing', **options)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(image_shape, np.float32))
  rng, state = np.random.default_rng(0), {}
  for path, leaf in traverse_util.flatten_dict(shapes).items():
    value = rng.random(leaf.shape, dtype=np.float32)
    if path[-1] in convert.CHANNEL_AXES:
      value = np.moveaxis(value, (-2, -1), convert.CHANNEL_AXES[path[-1]])
    state[convert.torch_key(path, module.TORCH_NAMES)] = np.ascontiguousarray(value)
  return state


VOLUMES = (
  '--config.model.size=testing',
  '--config.data.size=(16, 32, 32)',
  '--config.data.spacing_mm=()',
  '--config.data.fit=resize',
)


@SLOW
def test_positions_are_resized_and_other_image_sizes_or_channels_refused(demo, run_main, tmp_path):
  demo = demo[:2]
  np.savez(tmp_path / 'unetr.npz', **state_dict('unetr', (1, 48, 48, 48, 1)))
  run_main(
    '--mode=convert',
    *demo,
    *VOLUMES,
    '--config.model.name=unetr',
    f'--workdir={tmp_path}/unetr',
    f'--input={tmp_path}/unetr.npz',
  )
  table = predict.load(str(tmp_path / 'unetr')).variables['params']['patch_embedding']['position_embeddings']
  assert table.shape == (1, 1 * 2 * 2, 24)

  np.savez(tmp_path / 'unetrpp.npz', **state_dict('unetrpp', (1, 16, 32, 64, 1)))
  np.savez(tmp_path / 'unet.npz', **state_dict('unet', (1, 16, 16, 3)))
  for name, more, said in (
    ('unetrpp', VOLUMES, 'not for one-channel images of 16 x 32 x 32'),
    ('unet', ('--config.model.size=testing', '--config.model.unet.features=()'), 'recipe=released'),
  ):
    done = run_main(
      '--mode=convert',
      *demo,
      *more,
      f'--config.model.name={name}',
      f'--workdir={tmp_path}/{name}',
      f'--input={tmp_path}/{name}.npz',
      check=2,
    )
    assert said in done.stderr and not (tmp_path / name).exists()


def test_weights_and_scans_of_two_channels():
  model, options = models.build('unet', 9, features=(2, 3)), {'features': (2, 3)}
  read = lambda channels: convert.from_torch('unet', state_dict('unet', (1, 8, 8, channels), **options), **options)
  fit = lambda channels, variables: import_run._fit('w.pth', 'unet', model, variables, (1, 8, 8, channels))
  two = read(2)
  jax.tree.map(np.testing.assert_array_equal, fit(2, two), two)
  with pytest.raises(InputError, match='not for two-channel images of 8 x 8: .*a data set with their channels'):
    fit(2, read(1))
  with pytest.raises(InputError, match='not for one-channel images'):
    fit(1, two)
