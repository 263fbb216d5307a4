"""Images and option values that a network cannot take are refused, with those that it can."""

import inspect

import pytest

from afw_jax import models
from afw_jax.errors import InputError
from afw_jax.models.layers import options as shared

# network, options, shape of the image, words of the message
IMAGES = [
  ('unet', {}, (1, 200, 224, 1), ['200 x 224', '192 x 224', '208 x 224']),
  ('unet', {}, (1, 8, 20, 1), ['16 x 16', '16 x 32']),
  ('unet', {}, (224, 224, 1), ['(B, H, W, channels)']),
  ('unet', {}, (1, 32, 32, 32, 1), ['(B, H, W, channels)']),
  ('unetpp', {'size': 'full'}, (1, 200, 224, 1), ['divisible by 16 x 16', '192 x 224', '208 x 224']),
  ('transunet', {}, (1, 200, 224, 1), ['200 x 224', '192 x 224', '208 x 224']),
  ('transunet', {}, (1, 8, 20, 1), ['16 x 16', '16 x 32']),
  ('transunet', {}, (1, 32, 32, 32, 1), ['(B, H, W, channels)']),
  ('vatransunet', {}, (1, 200, 224, 1), ['200 x 224', '192 x 224', '208 x 224']),
  ('vatransunet', {}, (224, 224, 1), ['(B, H, W, channels)']),
  ('unet3d', {'size': 'full'}, (1, 40, 32, 64, 1), ['40 x 32 x 64', '32 x 32 x 64', '64 x 32 x 64']),
  ('unet3d', {}, (1, 32, 32, 1), ['(B, D, H, W, channels)']),
  ('unetr', {}, (1, 96, 96, 90, 1), ['96 x 96 x 90', '96 x 96 x 80 or 96 x 96 x 96']),
  ('unetr', {}, (1, 8, 16, 16, 1), ['16 x 16 x 16']),
  ('unetr', {}, (1, 32, 32, 1), ['(B, D, H, W, channels)']),
  ('unetrpp', {'size': 'full'}, (1, 64, 100, 128, 1), ['64 x 96 x 128 or 64 x 128 x 128', 'divisible by 16 x 32 x 32']),
  ('unetrpp', {'size': 'full'}, (1, 8, 32, 32, 1), ['16 x 32 x 32']),
  ('unetrpp', {}, (1, 64, 64, 1), ['(B, D, H, W, channels)']),
]
OPTIONS = [
  ('unet', {'recipe': 'papr'}, "Did you mean 'paper'"),
  ('unet', {'head_kernel': 2}, '1, 3'),
  ('unet', {'features': (8,)}, '2 or more'),
  ('unet', {'features': (8, 0)}, '2 or more'),
  ('unet', {'features': 8}, '2 or more'),
  ('unet', {'dtype': 'float23'}, 'bfloat16'),
  ('unetpp', {'deep_supervision': 'False'}, 'True, False'),
  ('unetpp', {'repeat_to_rgb': 3}, 'True, False'),
  ('unetpp', {'features': (8,)}, '2 or more'),
  ('transunet', {'encoder': 'resnet'}, "'vit'"),
  ('transunet', {'reading': 'torch'}, "'google'"),
  ('transunet', {'n_skip': 4}, '0, 1, 2, 3'),
  ('transunet', {'encoder': 'vit', 'n_skip': 3}, 'no features for skips'),
  ('transunet', {'dropout_rate': 1}, 'below 1'),
  ('vatransunet', {'drop_path_rate': 1}, 'below 1'),
  ('vatransunet', {'drop_path_rate': '0.1'}, 'below 1'),
  ('unet3d', {'features': (8, 8)}, '3 or more'),
  ('unet3d', {'features': (8, 0, 8)}, '3 or more'),
  ('unet3d', {'deep_supervision': 2}, 'True, False'),
  ('unetr', {'patch_embedding': 'linear'}, "'perceptron', 'conv'"),
  ('unetr', {'feature_size': 0}, '16 or 32'),
  ('unetr', {'dropout_rate': 1.0}, 'below 1'),
  ('unetr', {'dropout_rate': True}, 'below 1'),
  ('unetr', {'position_grid': (6, 6)}, '(6, 6, 6)'),
  ('unetr', {'conv_block': 'no'}, 'True, False'),
  ('unetrpp', {'epa_layout': 'fix'}, "'released', 'fixed'"),
  ('unetrpp', {'stem': (2, 4)}, 'three positive'),
  ('unetrpp', {'stem': (2, 4, 0)}, 'three positive'),
  ('unetrpp', {'attention_dropout': 1.0}, 'below 1'),
  ('unetrpp', {'channel_dropout': -0.1}, 'from 0'),
  ('unetrpp', {'deep_supervision': 'yes'}, 'True, False'),
  *((name, {'size': 'huge'}, "'testing'") for name in models.MODELS),
  *((name, {'dtype': 'int8'}, 'bfloat16') for name in models.MODELS),
  *((name, {'remat': None}, 'True, False') for name in models.MODELS),
]


@pytest.mark.parametrize('name, options, shape, words', IMAGES)
def test_images_are_refused_with_the_nearest_sizes(name, options, shape, words):
  model = models.build(name, 3, **{'size': 'testing', **options})
  with pytest.raises(InputError) as caught:
    models.abstract_variables(model, shape)
  assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize('name, options, words', OPTIONS)
def test_option_values_are_refused_with_those_that_work(name, options, words):
  with pytest.raises(InputError) as caught:
    models.build(name, 3, **options)
  assert words in str(caught.value) and next(iter(options)) in str(caught.value), str(caught.value)


def test_every_network_is_tested():
  assert {name for name, *_ in IMAGES} == set(models.MODELS)
  for name in models.MODELS:
    tested = {option for network, options, _ in OPTIONS if network == name for option in options}
    taken = set(inspect.signature(models.module_of(name).make).parameters)
    assert {'size', 'dtype', 'remat'} <= tested <= taken


def test_unknown_names_and_options_are_refused_with_those_that_work():
  with pytest.raises(InputError, match="Did you mean 'unet'.*Choose one of: unet"):
    models.build('unett', num_classes=3)
  with pytest.raises(InputError, match="Did you mean 'head_kernel'.*recipe"):
    models.build('unet', num_classes=3, head_kernal=1)
  for classes in (1, 0, -3, 2.5, '9', True):
    with pytest.raises(InputError, match='num_classes'):
      models.build('unet', num_classes=classes)


def test_every_message_is_a_sentence_with_a_cure():
  """Place, problem, cure: the cure begins with a capital letter and ends with a full stop."""
  for name, options, _ in OPTIONS:
    with pytest.raises(InputError) as caught:
      models.build(name, 3, **options)
    assert caught.value.cure[0].isupper() and caught.value.cure.endswith('.'), str(caught.value)
  with pytest.raises(InputError) as caught:
    shared.check_choice('size', 'Full', ('full', 'testing'))
  assert "Did you mean 'full'?" in caught.value.cure
