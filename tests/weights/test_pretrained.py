"""TransUNet's published encoder: files with the same keys and shapes, made here, give the published network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax import traverse_util
from vit_files import FULL, TINY, classifier, draw, vit_file_shapes

from afw_jax import models
from afw_jax.errors import InputError
from afw_jax.models import transunet
from afw_jax.weights import pretrained


@pytest.fixture
def google_file(tmp_path):
  arrays = draw(vit_file_shapes(**TINY))
  path = str(tmp_path / 'R50+ViT-B_16.npz')
  np.savez(path, **arrays, **classifier(32))
  return arrays, path


@pytest.fixture(scope='module')
def fresh():
  return models.init(transunet.make(3, size='testing'), jax.random.key(0), (1, 32, 32, 1))


def google_encoder(file, image, groups=4, heads=4):
  """The network that the published weights were trained in, built from Flax's own layers.

  Returns:
    The last block's tokens, normalised, and the features of stride 4.
  """

  def conv(key, x, strides=1):
    kernel = file[f'{key}/kernel']
    kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-5)
    layer = nn.Conv(kernel.shape[-1], kernel.shape[:2], strides, use_bias=False)  # padding 'SAME'
    return layer.apply({'params': {'kernel': kernel}}, x)

  def under(key):
    return {
      'params': traverse_util.unflatten_dict(
        {tuple(k.removeprefix(f'{key}/').split('/')): v for k, v in file.items() if k.startswith(f'{key}/')}
      )
    }

  norm = lambda key, x: nn.GroupNorm(groups).apply(under(key), x)
  x = jnp.repeat(image, 3, -1)
  x = nn.max_pool(nn.relu(norm('gn_root', conv('conv_root', x, 2))), (3, 3), (2, 2), 'SAME')
  for block in (1, 2, 3):
    at, strides = f'block{block}/unit1', 1 if block == 1 else 2
    y = nn.relu(norm(f'{at}/gn1', conv(f'{at}/conv1', x)))
    y = nn.relu(norm(f'{at}/gn2', conv(f'{at}/conv2', y, strides)))
    y = norm(f'{at}/gn3', conv(f'{at}/conv3', y))
    x = nn.relu(y + norm(f'{at}/gn_proj', conv(f'{at}/conv_proj', x, strides)))
    if block == 1:
      quarter = x
  x = nn.Conv(32, (1, 1)).apply(under('embedding'), x).reshape(len(image), -1, 32)
  x = x + file['Transformer/posembed_input/pos_embedding'][:, 1:]
  for i in range(2):
    at = f'Transformer/encoderblock_{i}'
    y = nn.LayerNorm().apply(under(f'{at}/LayerNorm_0'), x)
    x = x + nn.MultiHeadDotProductAttention(heads).apply(under(f'{at}/MultiHeadDotProductAttention_1'), y)
    y = nn.LayerNorm().apply(under(f'{at}/LayerNorm_2'), x)
    y = nn.Dense(64).apply(under(f'{at}/MlpBlock_3/Dense_0'), y)
    x = x + nn.Dense(32).apply(under(f'{at}/MlpBlock_3/Dense_1'), nn.gelu(y))
  return nn.LayerNorm().apply(under('Transformer/encoder_norm'), x), quarter


def our_encoder(variables, image, reading):
  model = transunet.make(3, size='testing', reading=reading)
  only = lambda module, _: module.name in ('encoder_norm', 'resnet')
  _, state = model.apply(variables, image, capture_intermediates=only, mutable=['intermediates'])
  found = state['intermediates']
  return found['encoder_norm']['__call__'][0], found['resnet']['__call__'][0][1][1]


def test_the_google_reading_is_the_network_the_weights_were_trained_in_and_the_other_is_not(google_file, fresh):
  arrays, path = google_file
  image = np.random.default_rng(3).random((2, 32, 32, 1), dtype=np.float32)
  quick = lambda function: jax.jit(function, static_argnums=2, compiler_options={'xla_backend_optimization_level': 0})
  wanted = quick(google_encoder)(arrays, image, 4)
  for reading in ('google', 'transunet'):
    variables = pretrained.load('transunet', path, fresh, size='testing', reading=reading)
    found = quick(our_encoder)(variables, image, reading)
    errors = [np.abs(f - w).max() / np.std(w) for f, w in zip(found, wanted)]
    assert max(errors) < 1e-4 if reading == 'google' else min(errors) > 1e-2, (reading, errors)


def test_the_encoder_is_replaced_and_the_decoder_is_not(google_file, fresh, caplog):
  arrays, path = google_file
  with caplog.at_level('INFO'):
    variables = pretrained.load('transunet', path, fresh, size='testing', n_skip=3, num_classes=3)
  old, new = (traverse_util.flatten_dict(v, sep='/') for v in (fresh, variables))
  assert old.keys() == new.keys() and all(new[key].shape == old[key].shape for key in old)
  assert {leaf.dtype for leaf in new.values()} == {np.dtype('float32')}
  for key in old:
    decoder = key.startswith(('batch_stats', 'params/conv_more', 'params/decoder', 'params/head'))
    assert (new[key] is old[key]) == decoder, key
  at = 'Transformer/encoderblock_1/MultiHeadDotProductAttention_1'
  for ours, theirs in (
    ('query/kernel', 'query/kernel'),
    ('value/bias', 'value/bias'),
    ('out_proj/kernel', 'out/kernel'),
  ):
    assert (
      new[f'params/layer1/attn/{ours}'] == arrays[f'{at}/{theirs}'].reshape(new[f'params/layer1/attn/{ours}'].shape)
    ).all()
  assert f'{len(arrays)} arrays' in caplog.text
  assert 'not used: cls, head/bias, head/kernel, pre_logits/bias' in caplog.text


def test_full_size_keys_and_shapes_are_the_published_ones():
  shapes = vit_file_shapes(**FULL)
  assert sum(np.prod(shape) for shape in shapes.values()) == 11_894_848 + 787_200 + 197 * 768 + 85_056_000
  for reading in ('transunet', 'google'):
    model = transunet.make(9, reading=reading)
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 1), jnp.float32))
    needed = pretrained.vit_shapes(traverse_util.flatten_dict(variables), model.heads)
    table = 'Transformer/posembed_input/pos_embedding'
    assert {key: shape for key, (_, shape) in needed.items()} == {**shapes, table: (1, None, 768)}


@pytest.mark.parametrize(
  'image_shape, grid', [((48, 64), (3, 4)), ((64, 48), (4, 3)), ((64, 64), (4, 4)), ((16, 16), (1, 1))]
)
def test_the_table_of_positions_is_resized_to_any_grid(google_file, image_shape, grid):
  arrays, path = google_file
  model = transunet.make(3, size='testing')
  shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape, 1), jnp.float32))
  variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
  table = arrays['Transformer/posembed_input/pos_embedding'][0, 1:].reshape(2, 2, 32)
  wanted = scipy.ndimage.zoom(table, (grid[0] / 2, grid[1] / 2, 1), order=1).reshape(1, -1, 32)
  for options in (
    {'image_shape': image_shape},
    {'position_grid': grid},
    {'image_shape': (32, 32), 'position_grid': grid},
  ):
    found = pretrained.load('transunet', path, variables, size='testing', **options)['params']['position_embeddings']
    assert np.abs(found - wanted).max() < 1e-6
  if grid[0] != grid[1]:
    with pytest.raises(InputError, match='12 position embeddings.*image_shape'):
      pretrained.load('transunet', path, variables, size='testing')


def test_group_norms_may_be_stored_with_ones_in_front(google_file, fresh, tmp_path):
  arrays, path = google_file
  wrapped = {key: a[None, None, None] if '/gn' in key or key.startswith('gn') else a for key, a in arrays.items()}
  other = str(tmp_path / 'other.npz')
  np.savez(other, **wrapped)
  jax.tree.map(
    np.testing.assert_array_equal,
    pretrained.load('transunet', path, fresh, size='testing'),
    pretrained.load('transunet', other, fresh, size='testing'),
  )


def test_a_file_that_does_not_fit_is_refused_with_every_reason(google_file, fresh, tmp_path):
  arrays, path = google_file
  bad = dict(arrays)
  del bad['gn_root/bias'], bad['Transformer/encoder_norm/scale']
  bad['opt/step'] = np.zeros(3)
  bad['conv_root/kernel'] = np.zeros((7, 7, 1, 8))
  bad['embedding/bias'] = np.full(32, np.nan)
  bad['block1/unit1/gn1/bias'] = bad['block1/unit1/gn1/bias'][:, None]
  bad['Transformer/posembed_input/pos_embedding'] = np.zeros((1, 5, 33))
  other = str(tmp_path / 'bad.npz')
  np.savez(other, **bad)
  with pytest.raises(InputError) as caught:
    pretrained.load('transunet', other, fresh, size='testing')
  for words in (
    other,
    '2 missing: Transformer/encoder_norm/scale, gn_root/bias;',
    '1 unknown: opt/step;',
    '3 of another shape',
    'conv_root/kernel is (7, 7, 1, 8), not (7, 7, 3, 8)',
    'is (8, 1), not (8,)',
    'is (1, 5, 33), not (1, any, 32)',
    '1 not of finite numbers: embedding/bias',
    'R50%2BViT-B_16.npz',
  ):
    assert words in str(caught.value), words
  with pytest.raises(InputError, match=r'query/kernel is \(32, 4, 8\), not \(32, 12, 2\)'):
    pretrained.load('transunet', path, fresh)  # without saying size='testing'


def test_a_table_of_positions_that_is_not_a_square_is_refused(google_file, fresh, tmp_path):
  arrays, _ = google_file
  other = str(tmp_path / 'bad.npz')
  np.savez(other, **{**arrays, 'Transformer/posembed_input/pos_embedding': np.zeros((1, 7, 32))})
  with pytest.raises(InputError, match='6 tokens besides the class token, which is not a square'):
    pretrained.load('transunet', other, fresh, size='testing')


def test_the_encoder_without_a_resnet_has_a_file_too(tmp_path):
  shapes = {key: s for key, s in vit_file_shapes(**TINY).items() if key.startswith('Transformer')}
  arrays = draw({**shapes, 'embedding/kernel': (16, 16, 3, 32), 'embedding/bias': (32,)})
  path = str(tmp_path / 'ViT-B_16.npz')
  model = transunet.make(3, size='testing', encoder='vit')
  variables = models.init(model, jax.random.key(0), (1, 32, 32, 1))
  with pytest.raises(InputError, match='imagenet21k/ViT-B_16.npz'):
    pretrained.load('transunet', path, variables, size='testing', encoder='vit')
  np.savez(path, **arrays)
  found = pretrained.load('transunet', path, variables, size='testing', encoder='vit')
  assert (found['params']['patch_embeddings']['kernel'] == arrays['embedding/kernel']).all()


@pytest.mark.parametrize(
  'name, url',
  [
    ('transunet', 'https://storage.googleapis.com/vit_models/imagenet21k/R50%2BViT-B_16.npz'),
    ('vatransunet', 'https://huggingface.co/Visual-Attention-Network/VAN-Tiny-original'),
  ],
)
def test_the_error_for_a_missing_file_says_where_it_is_published(name, url, tmp_path):
  path = str(tmp_path / 'weights.npz')
  with pytest.raises(InputError) as caught:
    pretrained.load(name, path, {'params': {}})
  assert path in str(caught.value) and 'no such file' in str(caught.value) and f'{url} ' in str(caught.value)


def test_the_error_for_a_network_without_an_encoder_names_those_that_have_one(tmp_path):
  with pytest.raises(InputError, match='for unet.*transunet, vatransunet'):
    pretrained.load('unet', str(tmp_path / 'x.npz'), {'params': {}})
  with pytest.raises(InputError, match='no network has this name'):
    pretrained.load('resnet', str(tmp_path / 'x.npz'), {'params': {}})


@pytest.mark.parametrize('channels', [2, 3, 4])
def test_the_first_convolution_is_repeated_for_other_numbers_of_channels(google_file, channels, caplog):
  arrays, path = google_file
  fresh = models.init(transunet.make(3, size='testing'), jax.random.key(0), (1, 32, 32, channels))
  with caplog.at_level('INFO', logger='afw_jax'):
    variables = pretrained.load('transunet', path, fresh, size='testing')
  kernel, rgb = variables['params']['resnet']['root']['conv']['kernel'], arrays['conv_root/kernel']
  wanted = np.stack([rgb[:, :, c % 3] for c in range(channels)], 2) * (3 / channels)
  np.testing.assert_allclose(kernel, wanted, rtol=1e-6)
  assert ('repeated in turn for' in caplog.text) == (channels != 3)
