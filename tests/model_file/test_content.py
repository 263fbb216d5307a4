"""What is handed over of a checkpoint, and entries of a meta.json that no export writes."""

import copy
import json

import pytest

from afw_jax import command_line
from afw_jax.config import default_config
from afw_jax.errors import InputError
from afw_jax.model_file import card, content

META = {
  'step': 7,
  'total_steps': 9,
  'best_dsc': 0.9,
  'source': '/home/me/weights.pth',
  'fingerprint': {'a': 1},
  'model': {'name': 'unet', 'num_classes': 3, 'options': {'size': 'testing'}, 'input_size': [32, 32]},
  'data': {
    'name': 'mine',
    'modality': 'CT',
    'organs': ['liver', 'spleen'],
    'output_ids': {'liver': 1, 'spleen': 7},
    'window': [-100, 200],
    'options': {'size': [32, 32], 'spacing_mm': [None, 1.0, 1.0], 'fit': 'resize', 'order': 3, 'modality': 'CT',
                'source': 'nifti'},
    'splits': {'train': ['Smith_John']},
    'scans': {'Smith_John': 'abc'},
    'contents': {'Smith_John': 'def'},
    'usual': {'intensities': None, 'position': [[[[0.0, 0.1]], 0.05]] * 3},
    'fold': '1/2',
    'seen_before': {'train': ['abc'], 'val': []},
  },
  'config': {
    'seed': 0,
    'data': {'root': '/home/me/data', 'store': '/home/me/store', 'dataset': 'folder'},
    'model': {'pretrained': '/home/me/r50.npz', 'init_from': '/home/me/runs/a'},
    'runtime': {'compilation_cache': '/home/me/cache'},
    'eval': {'batch_size': 8, 'overlap': 0.5},
  },
}  # fmt: skip
NETWORK = {'name': 'a', 'program': 'p', 'weights': 'w', 'meta': content.handed_over(META, 'best', 'd' * 64)}


def test_no_case_and_no_folder_is_handed_over():
  before = copy.deepcopy(META)
  kept = content.handed_over(META, 'best', 'd' * 64)
  text = json.dumps(kept)
  assert 'Smith' not in text and '/home' not in text and 'abc' not in text and 'fingerprint' not in kept
  assert kept['source'] == 'weights.pth' and kept['data']['splits'] is None and kept['data']['fold'] == '1/2'
  assert kept['step'] == 7 and kept['checkpoint'] == 'best' and kept['data']['usual'] == META['data']['usual']
  assert before == META


def test_every_path_of_a_config_is_left_out():
  config = default_config()
  for section, key in command_line.PATHS:
    config[section][key] = '/home/me'
  kept = content.handed_over({**META, 'config': json.loads(config.to_json_best_effort())}, 'best', 'd' * 64)
  assert '/home' not in json.dumps(kept)


def changed(key, value):
  meta = {'networks': [copy.deepcopy(NETWORK)], 'members': {'p': '', 'w': ''}}
  at = meta['networks'][0]
  *parts, last = key.split('.')
  for part in parts:
    at = at[part]
  at[last] = value
  return meta


def test_what_is_handed_over_is_valid():
  assert content.networks_of('m.zip', changed('name', 'b'))[0]['name'] == 'b'
  assert content.networks_of('m.zip', changed('meta.data.window', 'percentile'))
  assert content.networks_of('m.zip', changed('meta.data.usual', None))
  assert content.networks_of('m.zip', changed('meta.data.options.size', [None, 32, 32]))


@pytest.mark.parametrize('networks', [None, [], {}, [None], [[]], 'unet'])
def test_no_networks(networks):
  with pytest.raises(InputError, match='m.zip: networks'):
    content.networks_of('m.zip', {'networks': networks, 'members': {}})


@pytest.mark.parametrize('key, value', [
  ('program', 'other'), ('weights', '../w'), ('program', ['p']), ('meta', None), ('meta.step', -1), ('meta.step', True),
  ('meta.checkpoint', 'worst'), ('meta.model', []), ('meta.model.num_classes', 4), ('meta.model.num_classes', 1e9),
  ('meta.model.options', None), ('meta.model.input_size', [32]), ('meta.model.input_size', [32, 0]),
  ('meta.model.input_size', [32, 10**9]), ('meta.data.organs', ['liver', 'liver']), ('meta.data.organs', 'liver'),
  ('meta.data.organs', []), ('meta.data.output_ids', {'liver': 1}), ('meta.data.output_ids', {'liver': 1, 'spleen': 1}),
  ('meta.data.output_ids', {'liver': 1, 'spleen': 0}), ('meta.data.output_ids', {'liver': 1, 'spleen': 65536}),
  ('meta.data.window', [200, -100]), ('meta.data.window', [0, float('nan')]), ('meta.data.window', 'paper'),
  ('meta.data.usual', []), ('meta.data.usual', {'position': [[]]}), ('meta.data.usual', {'intensities': {}}),
  ('meta.data.options.size', [32] * 4), ('meta.data.options.size', None), ('meta.data.options.spacing_mm', [0, 1, 1]),
  ('meta.data.options.regions', 'both'), ('meta.data.options.regions', []),
  ('meta.data.options.regions', [['both', [1, 3]]]),
  ('meta.data.options.regions', [['', [1]]]), ('meta.data.options.regions', [['both', ['liver']]]),
  ('meta.data.options.fit', 'stretch'), ('meta.data.options.order', 2), ('meta.data.options.modality', 'PET'),
  ('meta.data.splits', {'train': []}), ('meta.data.seen_before', {'train': 5}), ('meta.data.scans', 'x'),
  ('meta.model.options', {'constrain': 1}), ('meta.model.options', {'name': 'unet'}), ('meta.config.mesh', 'x'),
  ('meta.model.options', {'num_classes': 3}), ('meta.model.options', {'attend': 'x'}), ('meta.config.runtime', []),
  ('meta.config.optimizer', 'x'), ('meta.config.train', 1), ('meta.config.data', 'x'), ('meta.config.model', 'x'),
  ('meta.config.mesh', {'spatial': 'x'}), ('meta.config.mesh', {'spatial': 0}), ('meta.config.loss', 'x'),
  ('meta.config.eval.batch_size', 0), ('meta.config.eval.overlap', 1), ('meta.config', None),
])  # fmt: skip
def test_entries_that_no_export_writes(key, value):
  with pytest.raises(InputError, match='m.zip: '):
    content.networks_of('m.zip', changed(key, value))


CHANNELS = [['CT', 'CT'], ['PET', 'MR']]
WINDOWS = [[-125, 275], 'percentile']


def of_two_channels(channels=CHANNELS, window=WINDOWS, intensities=None):
  meta = changed('meta.data.window', window)
  data = meta['networks'][0]['meta']['data']
  data['options']['channels'], data['usual'] = channels, {**data['usual'], 'intensities': intensities}
  return meta


def test_windows_and_usual_intensities_of_several_channels():
  one = {'minimum': [0, 1], 'percentiles': [[0] * 4, [1] * 4]}
  for intensities in (None, [one, one], [one, None]):
    assert content.networks_of('m.zip', of_two_channels(intensities=intensities))


@pytest.mark.parametrize('changes', [
  {'channels': None}, {'channels': CHANNELS[:1]}, {'channels': []}, {'channels': 'CT'},
  {'channels': [['CT', 'PET']] * 2},
  {'channels': [['', 'CT']] * 2}, {'channels': CHANNELS * 2}, {'window': WINDOWS[:1]}, {'window': [-125, 275]},
  {'window': 'percentile'}, {'window': [[275, -125], 'percentile']}, {'window': None},
  {'intensities': {'minimum': [0, 1], 'percentiles': [[0] * 4, [1] * 4]}}, {'intensities': [{}, None]},
  {'intensities': [None]},
])  # fmt: skip
def test_channels_that_no_export_writes(changes):
  with pytest.raises(InputError, match='m.zip: '):
    content.networks_of('m.zip', of_two_channels(**changes))


def test_the_card_explains_regions():
  data = {**META['data'], 'options': {**META['data']['options'], 'regions': [['both | all', [1, 2]], ['spleen', [2]]]}}
  said = '\n'.join(card._regions(data))
  assert '| both \\| all | 1, 7 |' in said and '| spleen | 7 |' in said
  assert card._regions(META['data']) == []
