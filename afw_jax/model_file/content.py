"""What the meta.json of a model file says about its networks: what is handed over of a checkpoint, and its checks."""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from afw_jax.errors import InputError, quoted
from afw_jax.model_file import archive

AXES = 'arrays are [z, y, x], z towards superior, y towards posterior, x towards left'
_SIDE, _IDS = 4096, 65535
_ARGUMENTS = {'name', 'num_classes', 'constrain', 'attend'}  # of `models.build`, which are not options of a checkpoint
_SECTIONS = ('data', 'eval', 'loss', 'mesh', 'model', 'optimizer', 'runtime', 'train')  # of a config
_OF_CASES = ('splits', 'scans', 'contents', 'seen_before')  # of the data
_PRIVATE = (
  ('data', 'root'),
  ('data', 'store'),
  ('model', 'pretrained'),
  ('model', 'init_from'),
  ('runtime', 'compilation_cache'),
)


def handed_over(meta: Mapping, checkpoint: str, digest: str) -> dict:
  """What is handed over of the meta of a checkpoint: nothing that names a case or a folder of its maker.

  Args:
    meta: of the checkpoint.
    checkpoint: 'best' or 'last'.
    digest: of the checkpoint, which tells predictions by the run and by the model file from those of others.
  """
  config = {section: dict(part) if isinstance(part, Mapping) else part for section, part in meta['config'].items()}
  for section, key in _PRIVATE:
    if config.get(section, {}).get(key):
      config[section][key] = ''
  data = {key: value for key, value in meta['data'].items() if key not in _OF_CASES}
  kept = {key: meta[key] for key in ('step', 'total_steps', 'best_dsc') if key in meta}
  source = {'source': os.path.basename(meta['source'])} if 'source' in meta else {}
  return {
    **kept,
    **source,
    'checkpoint': checkpoint,
    'checkpoint_sha256': digest,
    'model': dict(meta['model']),
    'data': {**data, 'splits': None},
    'config': config,
  }


def networks_of(path: str, meta: Mapping) -> list[dict]:
  """The entries of the networks in a model file, {'name', 'program', 'weights', 'meta', ...}, checked.

  Args:
    path: of the model file.
    meta: its `archive.read_meta`.

  Raises:
    InputError: an entry that no export writes.
  """
  networks = meta.get('networks')
  if not isinstance(networks, list) or not networks:
    raise _refused(path, 'networks', networks)
  for i, network in enumerate(networks):
    for key, is_valid in _RULES.items():
      value: Any = network
      for part in key.split('.'):
        value = value.get(part) if isinstance(value, Mapping) else None
      if not is_valid(value):
        raise _refused(path, f'networks[{i}].{key}', value)
    for key in ('program', 'weights'):
      if network[key] not in meta['members']:
        raise InputError(path, f'{network[key]!r} is missing', 'Copy it again, or export the model again.')
    data = network['meta']['data']
    if network['meta']['model']['num_classes'] != len(data['organs']) + 1:
      raise _refused(path, f'networks[{i}].meta.model.num_classes', network['meta']['model']['num_classes'])
    if any(c > len(data['organs']) for _, classes in data['options'].get('regions') or () for c in classes):
      raise _refused(path, f'networks[{i}].meta.data.options.regions', data['options']['regions'])
    if set(data['output_ids']) != set(data['organs']):
      raise _refused(path, f'networks[{i}].meta.data.output_ids', data['output_ids'])
    _check_channels(path, i, data)
  return networks


def _check_channels(path: str, i: int, data: Mapping) -> None:
  """Raises InputError unless the window and the usual intensities are of as many channels as the options name."""
  channels, usual = data['options'].get('channels'), (data.get('usual') or {}).get('intensities')
  for key, value, is_one in (('window', data.get('window'), _window), ('usual.intensities', usual, _intensities)):
    valid = is_one(value) if channels is None else value is None or _sides(len(channels), len(channels), is_one)(value)
    if not valid or (value is None and key == 'window'):
      raise _refused(path, f'networks[{i}].meta.data.{key}', value)


def _refused(path: str, key: str, value: Any) -> InputError:
  return InputError(path, f'{key} in its {archive.META} is {quoted(value)}', 'Export the model again (--mode=export).')


def _whole(low: int, high: float = math.inf) -> Callable[[Any], bool]:
  return lambda value: type(value) is int and low <= value <= high


def _number(value: Any) -> bool:
  return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 1 << 63)


def _share(value: Any) -> bool:
  return value is None or (_number(value) and 0 <= value < 1)


def _text(value: Any) -> bool:
  return isinstance(value, str) and bool(value)


def _sides(least: int, most: int, is_side: Callable[[Any], bool]) -> Callable[[Any], bool]:
  return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(is_side, value))


def _organs(value: Any) -> bool:
  return isinstance(value, list) and 1 <= len(value) <= 254 and all(map(_text, value)) and len(set(value)) == len(value)


def _ids(value: Any) -> bool:
  return (
    isinstance(value, dict) and all(map(_whole(1, _IDS), value.values())) and len(set(value.values())) == len(value)
  )


def _window(value: Any) -> bool:
  return value == 'percentile' or (_sides(2, 2, _number)(value) and value[0] < value[1])


def _intensities(value: Any) -> bool:
  return value is None or (
    isinstance(value, dict)
    and _sides(2, 2, _number)(value.get('minimum'))
    and _sides(2, 2, _sides(4, 4, _number))(value.get('percentiles'))
  )


def _regions(value: Any) -> bool:
  """None, or [name, [classes]] of each region."""
  classes = _sides(1, 254, _whole(1, 254))
  is_region = lambda one: isinstance(one, list) and len(one) == 2 and _text(one[0]) and classes(one[1])
  return value is None or _sides(1, 1 << 16, is_region)(value)


def _channels(value: Any) -> bool:
  one = lambda c: isinstance(c, list) and len(c) == 2 and _text(c[0]) and c[1] in ('CT', 'MR')
  return value is None or _sides(2, 9999, one)(value)


def _usual(value: Any) -> bool:
  """How far bodies reach beyond the grid, see `data.field_of_view.Usual`; the intensities are checked by channel."""
  if value is None:
    return True
  if not isinstance(value, dict):
    return False
  position = value.get('position')
  axis = lambda a: (
    isinstance(a, list) and len(a) == 2 and _sides(1, 1 << 16, _sides(2, 2, _number))(a[0]) and _number(a[1])
  )
  return position is None or _sides(3, 3, axis)(position)


# Keys of an entry in `networks` that are used unasked, and what they may be.
_RULES: dict[str, Callable[[Any], bool]] = {
  'name': _text,
  'program': _text,
  'weights': _text,
  'meta.step': _whole(0),
  'meta.checkpoint': lambda value: value in ('best', 'last'),
  'meta.checkpoint_sha256': _text,
  'meta.model.name': _text,
  'meta.model.num_classes': _whole(2, 255),
  'meta.model.options': lambda value: isinstance(value, dict) and not _ARGUMENTS & value.keys(),
  'meta.model.input_size': _sides(2, 3, _whole(1, _SIDE)),
  'meta.data.name': lambda value: isinstance(value, str),
  'meta.data.modality': lambda value: value in ('CT', 'MR'),
  'meta.data.organs': _organs,
  'meta.data.output_ids': _ids,
  **dict.fromkeys((f'meta.data.{key}' for key in _OF_CASES), lambda value: value is None),
  'meta.data.usual': _usual,
  'meta.data.options.size': _sides(0, 3, lambda side: side is None or _whole(1, _SIDE)(side)),
  'meta.data.options.spacing_mm': _sides(3, 3, lambda mm: mm is None or (_number(mm) and 0 < mm < 1000)),
  'meta.data.options.fit': lambda value: value in ('resize', 'crop_pad'),
  'meta.data.options.order': lambda value: type(value) is int and value in (0, 1, 3),
  'meta.data.options.modality': lambda value: value in ('CT', 'MR'),
  'meta.data.options.source': _text,
  'meta.data.options.channels': _channels,
  'meta.data.options.regions': _regions,
  **dict.fromkeys((f'meta.config.{key}' for key in _SECTIONS), lambda value: isinstance(value, dict | None)),
  'meta.config.mesh.spatial': lambda value: value is None or _whole(1, 1 << 16)(value),
  'meta.config.eval.batch_size': _whole(1, 1 << 16),
  'meta.config.eval.overlap': _share,
}
