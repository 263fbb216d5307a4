"""A user's own data set, described by a dataset.json in the format of nnU-Net (v1 or v2)."""

import pathlib

from afw_jax.data.sets import given_folds
from afw_jax.data.sets.case_files import ENDINGS, normal_name
from afw_jax.data.sets.folder_channels import read_channels
from afw_jax.data.sets.folder_labels import read_labels
from afw_jax.data.sets.public import FOLDER_WHERE
from afw_jax.data.sets.spec import PARTS, DatasetSpec
from afw_jax.data.sets.window import NAMED_HU
from afw_jax.errors import InputError
from afw_jax.system.atomic_files import read_json


def read_folder_spec(root: str) -> DatasetSpec:
  """Reads ROOT/dataset.json, and nnU-Net's splits_final.json where it is there.

  Args:
    root: folder of the data set.

  Returns:
    A `DatasetSpec`. Classes follow the order of the label ids, which may have gaps.

  Raises:
    InputError: one of them is damaged, dataset.json is missing, damaged, or has unsupported content.
  """
  if not pathlib.Path(root).is_dir():
    raise InputError(root, 'no such folder', f'{FOLDER_WHERE["how_to_get"]}; expected layout: {FOLDER_WHERE["layout"]}')
  path = pathlib.Path(root) / 'dataset.json'
  description = read_json(
    path, missing='no such file', cure=f'Write valid JSON; expected layout: {FOLDER_WHERE["layout"]}'
  )
  labels = read_labels(path, description)
  ids = labels.ids
  channels = read_channels(path, description)
  ending = description.get('file_ending', '.nii.gz')
  if ending not in ENDINGS:
    raise InputError(path, f'"file_ending" is {ending!r}', f'Convert the scans to one of {", ".join(ENDINGS)}')
  if description.get('other_labels', 'error') not in ('background', 'error'):
    raise InputError(
      path,
      f'"other_labels" is {description["other_labels"]!r}',
      'Write "background" to treat ids that "labels" does not list as background, or leave the key out',
    )
  name, number = description.get('name'), description.get('numTraining')
  return DatasetSpec(
    name=name if isinstance(name, str) and name else 'my data',
    source='nifti',
    modality=channels.modality,
    channels=channels.several,
    organs=tuple(ids),
    raw_ids={organ: (i,) for organ, i in ids.items()},
    output_ids=ids,
    ignored_ids='all' if description.get('other_labels') == 'background' else (),
    unlabelled_id=labels.unlabelled,
    regions=labels.regions,
    # The paper's is narrow: made for the organs of its data.
    window_hu=NAMED_HU['transunet'] if channels.modality == 'CT' else None,
    fractions=(4.0, 1.0, 0.0),
    splits=_splits(path, description.get('split')),
    folds=given_folds.read_folds(root),
    num_training=number if isinstance(number, int) else None,
    notes=channels.notes,
    licence=_licence(description),
    **FOLDER_WHERE,
  )


def _licence(description: dict) -> str:
  """What it says about the licence of the data, in either spelling; '' where it says nothing."""
  found = description.get('licence') or description.get('license')
  return found.strip() if isinstance(found, str) else ''


def _splits(path, split) -> dict[str, tuple[str, ...]]:
  """Part -> case ids; each id is in one part only."""
  if split is None:
    return {}
  if (
    not isinstance(split, dict)
    or not split.get('train')
    or set(split) - set(PARTS)
    or not all(isinstance(ids, list) and all(isinstance(i, str) for i in ids) for ids in split.values())
  ):
    raise InputError(
      path,
      '"split" is not valid',
      'Write "split": {"train": ["case1", ...], "val": [...], "test": [...]} with at least one train case',
    )
  seen: dict[str, str] = {}
  split = {part: [normal_name(i) for i in ids] for part, ids in split.items()}
  for part, ids in split.items():
    for i in ids:
      if i in seen:
        raise InputError(path, f'"split" lists case {i} twice ({seen[i]} and {part})', 'Keep it in one part')
      seen[i] = part
  return {part: tuple(ids) for part, ids in split.items()}
