"""VATransUNet's published encoder, VAN-B0: its keys and shapes, and a run that starts from it."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from marks import SLOW

from afw_jax import predict
from afw_jax.errors import InputError
from afw_jax.models import vatransunet
from afw_jax.weights import convert, pretrained

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


def test_full_size_van_keys_and_shapes_are_the_published_ones():
  facts = json.loads((GOLDEN / 'vatransunet.json').read_text(encoding='utf-8'))
  model = vatransunet.make(9)
  variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 1), jnp.float32))
  needed = pretrained.van_shapes(traverse_util.flatten_dict(variables), vatransunet.TORCH_NAMES)
  wanted = {
    key.removeprefix('van.'): tuple(shape) for key, shape in facts['state_dict'].items() if key.startswith('van.')
  }
  assert {key: shape for key, (_, shape) in needed.items()} == wanted
  assert sum(np.prod(s) for key, s in wanted.items() if 'running' not in key) == 3_848_800


@pytest.fixture(scope='module')
def van():
  """(fresh variables, other variables, these as PyTorch's state dict) of the testing size."""
  model = vatransunet.make(3, size='testing')
  shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32))
  rng = np.random.default_rng(0)
  fresh, other = (jax.tree.map(lambda leaf: rng.random(leaf.shape, dtype=np.float32), shapes) for _ in range(2))
  state = {}
  for path, leaf in traverse_util.flatten_dict(other).items():
    leaf = np.moveaxis(leaf, (-2, -1), (1, 0)) if path[-1] == 'kernel' else leaf
    state[convert.torch_key(path, vatransunet.TORCH_NAMES)] = leaf
  return fresh, other, state


def van_file(state):
  file = {key.removeprefix('van.'): value for key, value in state.items() if key.startswith('van.')}
  counters = {key.replace('running_mean', 'num_batches_tracked'): np.int64(7) for key in file if 'running_mean' in key}
  return {**file, **counters, 'head.weight': np.zeros((10, 8), np.float32), 'head.bias': np.zeros(10, np.float32)}


def test_the_first_convolution_is_repeated_for_two_channels(van, tmp_path):
  _, other, state = van
  np.savez(tmp_path / 'van.npz', **{k.removeprefix('van.'): v for k, v in state.items() if k.startswith('van.')})
  model = vatransunet.make(3, size='testing')
  shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 2), jnp.float32))
  fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
  found = pretrained.load('vatransunet', str(tmp_path / 'van.npz'), fresh, size='testing')
  kernel, rgb = (v['params']['van']['patch_embed1']['proj']['kernel'] for v in (found, other))
  np.testing.assert_allclose(kernel, rgb[:, :, :2] * 1.5, rtol=1e-6)


def test_van_weights_go_into_vatransunet(van, tmp_path):
  fresh, other, state = van
  np.savez(tmp_path / 'van_tiny_754.npz', **van_file(state))
  safetensors.numpy.save_file(
    {key: np.ascontiguousarray(value) for key, value in van_file(state).items()}, tmp_path / 'van_tiny_754.safetensors'
  )
  for ending in ('npz', 'safetensors'):
    found = pretrained.load('vatransunet', str(tmp_path / f'van_tiny_754.{ending}'), fresh, size='testing')
    for key, value in traverse_util.flatten_dict(found).items():
      source = other if key[1] == 'van' else fresh
      assert np.array_equal(value, traverse_util.flatten_dict(source)[key]), key
  # the converter of whole networks says the same
  whole = convert.from_torch('vatransunet', state, size='testing')
  for collection in ('params', 'batch_stats'):
    jax.tree.map(np.testing.assert_array_equal, found[collection]['van'], whole[collection]['van'])


def test_van_weights_that_do_not_fit_are_refused(van, tmp_path):
  fresh, _, state = van
  file = van_file(state)
  del file['norm4.bias']
  file['patch_embed1.proj.weight'] = file['patch_embed1.proj.weight'][:, :1]
  file['block9.0.layer_scale_1'] = np.zeros(8)
  path = str(tmp_path / 'van.npz')
  np.savez(path, **file)
  with pytest.raises(InputError) as caught:
    pretrained.load('vatransunet', path, fresh, size='testing')
  for words in (
    '1 missing: norm4.bias',
    '1 unknown: block9.0.layer_scale_1',
    'patch_embed1.proj.weight is (4, 1, 7, 7), not (4, 3, 7, 7)',
    'VAN-Tiny-original',
  ):
    assert words in str(caught.value), words


@SLOW
def test_a_run_starts_from_them(van, demo, run_main, tmp_path):
  np.savez(tmp_path / 'van_tiny_754.npz', **van_file(van[2]))
  run = (
    *demo,
    '--mode=train',
    '--config.model.name=vatransunet',
    '--config.model.size=testing',
    '--config.train.epochs=1',
    '--config.train.steps_per_epoch=1',
    '--config.optimizer.learning_rate=1e-12',
  )
  done = run_main(*run, f'--workdir={tmp_path}/run', f'--config.model.pretrained={tmp_path}/none.npz', check=2)
  assert 'none.npz' in done.stderr and 'VAN-Tiny-original' in done.stderr
  run_main(*run, '--mode=prepare', f'--workdir={tmp_path}/run')
  done = run_main(*run, f'--workdir={tmp_path}/run', f'--config.model.pretrained={tmp_path}/van_tiny_754.npz')
  needed = pretrained.van_shapes(traverse_util.flatten_dict(van[0]), vatransunet.TORCH_NAMES)
  notice = f'pretrained weights {tmp_path}/van_tiny_754.npz: {len(needed)} arrays with '
  assert notice in done.stderr and 'keys not used: head.bias, head.weight' in done.stderr  # on the terminal
  kernel = predict.load(str(tmp_path / 'run')).variables['params']['van']['patch_embed1']['proj']['kernel']
  np.testing.assert_allclose(kernel, van[1]['params']['van']['patch_embed1']['proj']['kernel'], atol=1e-9)
