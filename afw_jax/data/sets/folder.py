"""A user's dataset.json (nnU-Net's v2 or v1 dialect) -> the fields of a data set's spec."""

import json
import pathlib

from afw_jax.data.sets.public import FOLDER_WHERE, PAPER_WINDOW
from afw_jax.errors import InputError

_EXAMPLE = '"labels": {"background": 0, "liver": 1, "spleen": 2}'
_PARTS = ('train', 'val', 'test')


def read_folder_spec(root: str) -> dict:
  """Reads ROOT/dataset.json.

  Args:
    root: folder of the data set.

  Returns:
    Keyword arguments of `datasets.DatasetSpec`. Classes follow the order of the label ids, which may have gaps.

  Raises:
    InputError: missing or unreadable dataset.json, or something in it that is not supported.
  """
  if not pathlib.Path(root).is_dir():
    raise InputError(root, 'no such folder', f'{FOLDER_WHERE["how_to_get"]}; expected layout: {FOLDER_WHERE["layout"]}')
  path = pathlib.Path(root) / 'dataset.json'
  if not path.is_file():
    raise InputError(path, 'no such file', f'Write one; expected layout: {FOLDER_WHERE["layout"]}')
  try:
    said = json.loads(path.read_text('utf-8'))
  except (UnicodeDecodeError, json.JSONDecodeError) as e:
    raise InputError(path, f'is not valid JSON ({e})', 'Correct it at that place') from e
  if not isinstance(said, dict):
    raise InputError(path, 'is not a JSON object', f'Write {{"channel_names": {{"0": "CT"}}, {_EXAMPLE}}}')
  ids = _label_ids(path, said.get('labels'))
  ct = _channel(path, said).upper() == 'CT'
  ending = said.get('file_ending', '.nii.gz')
  if ending not in ('.nii.gz', '.nii'):
    raise InputError(path, f'"file_ending" is {ending!r}', 'Convert the scans to NIfTI (.nii.gz or .nii)')
  if said.get('other_labels', 'error') not in ('background', 'error'):
    raise InputError(
      path,
      f'"other_labels" is {said["other_labels"]!r}',
      'Use "background" to let ids that "labels" does not list be background, or leave the key out',
    )
  name, number = said.get('name'), said.get('numTraining')
  return dict(
    name=name if isinstance(name, str) and name else 'my data',
    source='nifti',
    modality='CT' if ct else 'MR',
    organs=tuple(ids),
    raw_ids={organ: (i,) for organ, i in ids.items()},
    output_ids=ids,
    ignored_ids='all' if said.get('other_labels') == 'background' else (),
    window_hu=PAPER_WINDOW if ct else None,
    fractions=(4.0, 1.0, 0.0),
    splits=_splits(path, said.get('split')),
    num_training=number if isinstance(number, int) else None,
    **FOLDER_WHERE,
  )


def _channel(path, said: dict) -> str:
  channels = said.get('channel_names', said.get('modality'))
  if not isinstance(channels, dict) or not channels or not all(isinstance(c, str) for c in channels.values()):
    raise InputError(path, 'has no "channel_names"', 'Write "channel_names": {"0": "CT"}, or another name for MR')
  if len(channels) > 1:
    raise InputError(
      path,
      f'has {len(channels)} channels ({", ".join(channels.values())})',
      'Only one channel is supported: keep one and make a data set of it',
    )
  return next(iter(channels.values())).strip()


def _label_ids(path, labels) -> dict[str, int]:
  """Organ name -> id without the background, by ascending id, from v2's name -> id or v1's id -> name."""
  if not isinstance(labels, dict) or not labels:
    raise InputError(path, 'has no "labels"', f'Write {_EXAMPLE}')
  if all(key.isdigit() for key in labels) and all(isinstance(value, str) for value in labels.values()):  # v1
    if len(set(labels.values())) < len(labels):
      raise InputError(path, '"labels" names an organ twice', 'Give each name one id')
    labels = {name: int(key) for key, name in labels.items()}
  for name, value in labels.items():
    if isinstance(value, list):
      raise InputError(
        path, f'label "{name}" is a region (a list of ids)', 'Regions are not supported: give each name one id'
      )
    if name.lower() == 'ignore':
      raise InputError(path, 'has an "ignore" label', 'Ignore labels are not supported: relabel those voxels')
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 65535:
      raise InputError(path, f'label "{name}" has the id {value!r}', 'Use an integer from 0 to 65535')
    if not name.strip() or (name.lower() == 'background') != (value == 0):
      raise InputError(path, f'label "{name}" has the id {value}', 'Id 0, and only 0, is "background"')
  ids = {name: value for name, value in sorted(labels.items(), key=lambda item: item[1]) if value}
  if not ids:
    raise InputError(path, '"labels" names no organ', f'Write {_EXAMPLE}')
  if len(set(ids.values())) < len(ids):
    raise InputError(path, '"labels" gives two names the same id', 'Give each name its own id')
  if len(ids) > 254:
    raise InputError(path, f'"labels" names {len(ids)} organs', 'At most 254 are supported')
  return ids


def _splits(path, split) -> dict[str, tuple[str, ...]]:
  """Explicit parts -> case ids, each id in one part only."""
  if split is None:
    return {}
  if (
    not isinstance(split, dict)
    or not split.get('train')
    or set(split) - set(_PARTS)
    or not all(isinstance(ids, list) and all(isinstance(i, str) for i in ids) for ids in split.values())
  ):
    raise InputError(
      path,
      '"split" is not understood',
      'Write "split": {"train": ["case1", ...], "val": [...], "test": [...]} with a train case',
    )
  seen: dict[str, str] = {}
  for part, ids in split.items():
    for i in ids:
      if i in seen:
        raise InputError(path, f'"split" lists case {i} twice ({seen[i]} and {part})', 'Keep it in one part')
      seen[i] = part
  return {part: tuple(ids) for part, ids in split.items()}
