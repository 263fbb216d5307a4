"""PyTorch state dicts -> variables: layouts, and keys that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from afw_jax import models
from afw_jax.errors import InputError
from afw_jax.weights import convert

OPTIONS = {'features': (2, 3, 4)}


@pytest.fixture
def state():
  """A PyTorch state dict of a UNet with levels 2, 3, 4, two image channels and five classes; every number its own."""
  blocks = {'conv0_0': (2, 2), 'conv1_0': (2, 3), 'conv2_0': (3, 4), 'conv1_1': (7, 3), 'conv0_2': (5, 2)}
  shapes = {}
  for block, (inputs, width) in blocks.items():
    for i, cin in ((1, inputs), (2, width)):
      shapes |= {
        f'{block}.conv{i}.weight': (width, cin, 3, 3),
        f'{block}.conv{i}.bias': (width,),
        **{f'{block}.bn{i}.{leaf}': (width,) for leaf in ('weight', 'bias', 'running_mean', 'running_var')},
        f'{block}.bn{i}.num_batches_tracked': (),
      }
  shapes |= {'seg_head.0.weight': (5, 2, 1, 1), 'seg_head.0.bias': (5,)}
  rng = np.random.default_rng(0)
  return {key: rng.random(shape) for key, shape in shapes.items()}


def test_every_array_lands_in_its_place_and_layout(state):
  variables = convert.from_torch('unet', state, **OPTIONS)
  flat = traverse_util.flatten_dict(variables)
  assert len(flat) == len([key for key in state if 'num_batches' not in key])
  assert all(leaf.dtype == jnp.float32 for leaf in flat.values())
  want = np.float32(state['conv1_1.conv1.weight'])
  kernel = flat['params', 'conv1_1', 'conv1', 'kernel']
  assert kernel.shape == (3, 3, 7, 3) and all(
    kernel[i, j, k, l] == want[l, k, i, j] for i, j, k, l in np.ndindex(3, 3, 7, 3)
  )
  assert np.array_equal(flat['params', 'conv0_2', 'bn2', 'scale'], np.float32(state['conv0_2.bn2.weight']))
  assert np.array_equal(flat['params', 'conv0_2', 'conv2', 'bias'], np.float32(state['conv0_2.conv2.bias']))
  assert np.array_equal(flat['batch_stats', 'conv2_0', 'bn1', 'mean'], np.float32(state['conv2_0.bn1.running_mean']))
  assert np.array_equal(flat['batch_stats', 'conv2_0', 'bn1', 'var'], np.float32(state['conv2_0.bn1.running_var']))


def test_variables_fit_the_network_that_build_makes(state):
  variables = convert.from_torch('unet', state, num_classes=5, **OPTIONS)
  image = jnp.zeros((1, 8, 8, 2))
  model = models.build('unet', num_classes=5, **OPTIONS)
  fresh = jax.eval_shape(model.init, jax.random.key(0), image)
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, fresh)
  assert model.apply(variables, image).shape == (1, 8, 8, 5)


def test_all_keys_that_do_not_fit_are_listed_at_once(state):
  del state['conv1_0.conv2.bias'], state['seg_head.0.bias']
  state |= {'head.weight': np.zeros(3), 'extra': np.zeros(2), 'conv0_0.bn1.weight': np.zeros(7)}
  with pytest.raises(InputError) as caught:
    convert.from_torch('unet', state, **OPTIONS)
  text = str(caught.value)
  for part in (
    '2 missing: conv1_0.conv2.bias, seg_head.0.bias',
    '2 unknown: head.weight, extra',
    '1 of another shape: conv0_0.bn1.weight is (7,), not (2,)',
  ):
    assert part in text
  assert '\n' not in text


@pytest.mark.parametrize('lost', ['seg_head.0.weight', 'conv0_0.conv1.weight'])
def test_a_missing_key_that_says_the_sizes_is_listed_too(state, lost):
  del state[lost]
  with pytest.raises(InputError, match=f'1 missing: {lost}'):
    convert.from_torch('unet', state, **OPTIONS)


def test_weights_made_with_other_options_are_refused(state):
  for options in ({'features': (2, 3)}, {'num_classes': 4, **OPTIONS}, {'head_kernel': 3, **OPTIONS}):
    with pytest.raises(InputError, match='Give the network and the options'):
      convert.from_torch('unet', state, **options)
  with pytest.raises(InputError, match='no such option'):
    convert.from_torch('unet', state, feature=3)
  with pytest.raises(InputError, match='no network has this name'):
    convert.from_torch('resnet', state)


def test_an_empty_dictionary_lists_everything_as_missing():
  with pytest.raises(InputError, match='38 missing: '):
    convert.from_torch('unet', {}, features=(2, 3))
