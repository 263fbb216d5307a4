"""Checks of a JSON file with the scores of a case, before anything is computed from it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from afw_jax.errors import InputError, quoted
from afw_jax.metrics import SCORES, UNITS

FLAGS = ('missed', 'false_positive', 'absent')
VOLUMES = ('true_voxels', 'pred_voxels', 'true_ml', 'pred_ml')
CURE = 'Run --mode=evaluate again.'


def check(path: str, record: Mapping[str, Any]) -> None:
  """Checks that a record has what is read of it, of the right kind.

  Args:
    path: of the file, for the error.
    record: its content.

  Raises:
    InputError: a key is missing, or holds something else.
  """
  if lacking := [key for key in ('case', 'convention', 'scores') if key not in record]:
    raise InputError(path, f'lacks {", ".join(lacking)}', CURE)
  if record['convention'] not in list(UNITS):
    raise InputError(
      path,
      f'the metric convention {quoted(record["convention"])} is unknown',
      f'Evaluate again with --config.eval.convention, one of {", ".join(UNITS)}.',
    )
  for key, is_valid in _RULES.items():
    if key in record and not is_valid(record[key]):
      raise InputError(path, f'its {key} is {quoted(record[key])}', CURE)
  scores = record['scores']
  if set(record.get('organs', scores)) != set(scores):
    raise InputError(path, f'lists the organs {quoted(record["organs"])}, but scores {quoted(sorted(scores))}', CURE)
  for organ, values in scores.items():
    if not isinstance(values, dict) or not {*SCORES, *FLAGS} <= set(values):
      raise InputError(path, f'lacks scores of {organ}', CURE)
    if bad := [name for name in FLAGS if not isinstance(values[name], bool)]:
      raise InputError(path, f'{bad[0]} of {organ} is {quoted(values[bad[0]])}, not true or false', CURE)
    if bad := [name for name in (*SCORES, *VOLUMES) if not _is_score(values.get(name))]:
      raise InputError(path, f'{bad[0]} of {organ} is {quoted(values[bad[0]])}, not a number', CURE)
  regions, classes = record.get('regions'), record.get('classes', ())
  if regions is not None and not (
    len(regions) == len(scores) and all(0 < c <= len(classes) for region in regions for c in region)
  ):
    raise InputError(path, 'its regions are not unions of its classes', CURE)


def _is_text(value: Any) -> bool:
  return isinstance(value, str) and value != ''


def _is_text_or_nothing(value: Any) -> bool:
  return value is None or isinstance(value, str)


def _is_score(value: Any) -> bool:
  return value is None or _is_number(value)


def _is_number(value: Any) -> bool:
  return type(value) is float and math.isfinite(value) or type(value) is int and abs(value) < 1 << 63


def _lists(is_item: Callable[[Any], bool]) -> Callable[[Any], bool]:
  return lambda value: isinstance(value, list) and all(map(is_item, value))


def _names(value: Any) -> bool:
  return _lists(_is_text)(value) and 0 < len(set(value)) == len(value)


def _spacing(value: Any) -> bool:
  return value is None or (_lists(_is_number)(value) and 2 <= len(value) <= 3 and all(mm > 0 for mm in value))


_RULES: dict[str, Callable[[Any], bool]] = {
  'case': _is_text,
  'scores': lambda value: isinstance(value, dict) and bool(value),
  'organs': _names,
  'classes': _names,
  'regions': _lists(_lists(lambda value: type(value) is int)),
  'spacing_mm': _spacing,
  'notes': _lists(lambda value: isinstance(value, str)),
  'settings': lambda value: isinstance(value, dict),
  **dict.fromkeys(('split', 'training_split', 'fold', 'content_sha256', 'checkpoint_sha256'), _is_text_or_nothing),
}
