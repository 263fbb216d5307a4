"""The key "labels" of a dataset.json: organs, regions of several ids, and the label "ignore"."""

import dataclasses
import pathlib
from collections.abc import Mapping

from afw_jax.data.sets.case_files import normal_name
from afw_jax.errors import InputError

_EXAMPLE = '"labels": {"background": 0, "liver": 1, "spleen": 2}'


@dataclasses.dataclass(frozen=True)
class Labels:
  """What the ids in label files stand for.

  Attributes:
    ids: organ -> id, by ascending id; each is a class of the network.
    unlabelled: id of voxels that count nowhere, if there is one.
    regions: name -> the organs that it is made of, of all names in their order, where one of them has several ids.
  """

  ids: Mapping[str, int]
  unlabelled: int | None
  regions: Mapping[str, tuple[str, ...]]


def read_labels(path: pathlib.Path, description: Mapping) -> Labels:
  """Reads "labels" of either version of nnU-Net: version 2 writes name -> id or list of ids, version 1 id -> name.

  An id that only regions of several ids have is a class too, named after the smallest of them: `kidney_and_mass_1`.

  Args:
    path: of the file, for errors.
    description: its content.

  Raises:
    InputError: there are no labels, or they contradict each other.
  """
  named = _named(path, description.get('labels'))
  unlabelled = [ids for name, ids in named.items() if name.lower() == 'ignore']
  if len(unlabelled) > 1:
    raise InputError(path, 'has two "ignore" labels', 'Give the voxels that count nowhere one id')
  if unlabelled and len(unlabelled[0]) > 1:
    raise InputError(path, 'has several ids for "ignore"', 'Give the voxels that count nowhere one id')
  organs = {name: ids for name, ids in named.items() if ids != (0,) and name.lower() != 'ignore'}
  if not organs:
    raise InputError(path, '"labels" names no organ', f'Write {_EXAMPLE}')
  if unlabelled and any(unlabelled[0][0] in ids for ids in organs.values()):
    raise InputError(path, f'"ignore" has the id {unlabelled[0][0]}, which another label has too', 'Give it its own id')
  classes = _classes(path, organs)
  if len(classes) > 254:
    raise InputError(path, f'"labels" names {len(classes)} organs', 'At most 254 are supported')
  _check_order(path, description.get('regions_class_order'), classes)
  name_of = {i: name for name, i in classes.items()}
  regions = {name: tuple(name_of[i] for i in ids) for name, ids in organs.items()}
  several = any(len(ids) > 1 for ids in organs.values())
  return Labels(classes, unlabelled[0][0] if unlabelled else None, regions if several else {})


def _named(path, labels) -> dict[str, tuple[int, ...]]:
  """Name -> its ids, the background included."""
  if not isinstance(labels, dict) or not labels:
    raise InputError(path, 'has no "labels"', f'Write {_EXAMPLE}')
  if all(key.isdigit() for key in labels) and all(isinstance(value, str) for value in labels.values()):  # version 1
    if len(set(labels.values())) < len(labels):
      raise InputError(path, '"labels" names an organ twice', 'Give each organ one id')
    labels = {name: int(key) for key, name in labels.items()}
  normal = {normal_name(name).strip(): value for name, value in labels.items()}
  if len(normal) < len(labels):
    raise InputError(path, '"labels" names an organ twice (in two Unicode forms)', 'Give each organ one id')
  return {name: _ids(path, name, value) for name, value in normal.items()}


def _ids(path, name: str, value) -> tuple[int, ...]:
  if name.lower() == 'mean':
    raise InputError(path, 'has a label "mean"', 'Give it another name: the tables have a row of this name')
  ids = value if isinstance(value, list) else [value]
  for i in ids:
    if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i <= 65535:
      raise InputError(path, f'label "{name}" has the id {i!r}', 'Use an integer from 0 to 65535')
  if not ids or len(set(ids)) < len(ids):
    raise InputError(path, f'label "{name}" has the ids {ids}', 'List every id of a region once')
  if not name or (name.lower() == 'background') != (ids == [0]) or (0 in ids and len(ids) > 1):
    raise InputError(path, f'label "{name}" has the id {value}', 'Id 0, and only 0, is "background"')
  return tuple(sorted(ids))


def _classes(path, organs: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
  """Name of a class -> its id."""
  if len(set(organs.values())) < len(organs):
    raise InputError(path, '"labels" gives two names the same id', 'Give each name its own id')
  single = {ids[0]: name for name, ids in organs.items() if len(ids) == 1}
  classes = {}
  for i in sorted({i for ids in organs.values() for i in ids}):
    smallest = min((name for name, ids in organs.items() if i in ids), key=lambda name: len(organs[name]))
    name = single.get(i, f'{smallest}_{i}')
    if name in classes or (name in organs and i not in single):
      raise InputError(path, f'"labels" has a name "{name}", which stands for the id {i} here', 'Give it another name')
    classes[name] = i
  return classes


def _check_order(path, order, classes: Mapping[str, int]) -> None:
  """Label maps are written with the ids of the classes, in any order: this only refuses what contradicts them."""
  if order is not None and (not isinstance(order, list) or not all(i in classes.values() for i in order)):
    raise InputError(
      path, f'"regions_class_order" is {order!r}', 'List ids that "labels" has, or leave the key out: it is not needed'
    )
