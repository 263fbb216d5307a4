"""Which cases of a data set a store holds, in which part each is, and what the index says of them."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from afw_jax.data.sets.spec import DatasetSpec
from afw_jax.data.sets.split import split_cases
from afw_jax.errors import InputError


def choose(spec: DatasetSpec, files: Sequence, request: Mapping) -> tuple[list, dict[str, str], list[str]]:
  """The cases to use.

  Args:
    spec: the data set.
    files: its cases, from `layouts.find_cases`.
    request: from `prepare.make_request`.

  Returns:
    (cases, those left out: id -> reason, notes for the reader).

  Raises:
    InputError: none is left, or those asked for are not there.
  """
  excluded, notes = {}, []
  unlabelled = [case.id for case in files if case.label is None]
  if unlabelled:
    notes.append(f'{len(unlabelled)} scans without labels are not in the store; predict them with --mode=predict')
  files = [case for case in files if case.label is not None]
  if spec.num_training is not None and spec.num_training not in (
    len(files),
    sum(case.split != 'test' for case in files),
  ):
    notes.append(f'dataset.json says numTraining {spec.num_training}, but {len(files)} labelled cases are there')
  if spec.source == 'nifti' and spec.splits:
    excluded.update({case.id: 'not in the "split" of dataset.json' for case in files if case.split is None})
  for case in files:
    if case.id in spec.defects and not request['keep_defective']:
      excluded[case.id] = f'known defect: it {spec.defects[case.id]}'
    elif case.id in spec.defects:
      notes.append(f'{case.id} is used although it {spec.defects[case.id]}')
  files = [case for case in files if case.id not in excluded]
  chosen = request['cases']
  ids = [case.id for case in files]
  if isinstance(chosen, list):
    unknown = sorted(set(chosen) - set(ids))
    if unknown:
      raise InputError(
        f'cases {", ".join(unknown[:8])}',
        'not among the usable cases of the data set',
        f'Known are {", ".join(ids[:8])}' + (', ...' if len(ids) > 8 else ''),
      )
  elif chosen is not None:
    if chosen > len(ids):
      raise InputError(f'cases {chosen}', f'only {len(ids)} usable cases are there', 'Ask for fewer')
    chosen = sorted(ids, key=lambda i: hashlib.sha256(f'choose/{request["seed"]}/{i}'.encode()).hexdigest())[:chosen]
  files = [case for case in files if chosen is None or case.id in set(chosen)]
  if not files:
    raise InputError(f'data set {spec.name}', 'has no usable labelled case', f'Expected layout: {spec.layout}')
  published = {i for part in spec.splits.values() for i in part}
  if spec.source != 'nifti' and published - set(ids) and chosen is None:
    notes.append(f'{len(published - set(ids))} of the {len(published)} published cases are not there')
  return files, excluded, notes


def split(spec: DatasetSpec, files: Sequence, request: Mapping) -> tuple[dict[str, list[str]], list[str]]:
  """(part -> case ids, notes): the published or given parts, else as the shares asked for."""
  given = request['fractions']
  fractions = spec.fractions if given is None else given
  splits = split_cases(
    [(case.id, case.subject, case.split) for case in files], fractions, request['seed'], resplit_train=given is not None
  )
  missing = {
    'train': 'nothing to train on',
    'val': 'no best checkpoint can be chosen, the last one counts',
    'test': 'scores can only be given on the validation cases',
  }
  return splits, [f'no {part} part: {meaning}' for part, meaning in missing.items() if not splits[part]]


def leaks(metas: Mapping[str, dict], splits: Mapping[str, Sequence[str]]) -> list[InputError]:
  """The same scan under two ids, told by its decoded voxels."""
  part_of = {i: part for part, ids in splits.items() for i in ids}
  groups = defaultdict(list)
  for i, meta in metas.items():
    groups[meta['voxels_sha256']].append(i)
  return [
    InputError(
      metas[other]['source']['image'],
      f'is the same scan as {metas[first]["source"]["image"]} (cases {first} in {part_of[first]}, '
      f'{other} in {part_of[other]})',
      'Remove one of them',
    )
    for first, *others in groups.values()
    for other in others
  ]


def case_notes(spec: DatasetSpec, metas: Mapping[str, dict], splits: Mapping[str, Sequence[str]]) -> list[str]:
  """What is odd in the prepared cases."""
  notes = [f'{i}: {note}' for i, meta in metas.items() for note in meta['notes']]
  for i, meta in metas.items():
    lost = [organ for organ, n in meta['voxels'].items() if n and not meta['working_voxels'][organ]]
    if lost:
      notes.append(f'{i}: nothing of {", ".join(lost)} is left on the working grid')
  for organ in spec.organs:
    if splits['train'] and not any(metas[i]['voxels'][organ] for i in splits['train']):
      notes.append(f'{organ} is in no training case')
  return notes


def index(
  spec: DatasetSpec,
  request: Mapping,
  options: Mapping,
  options_hash: str,
  splits: Mapping,
  metas: Mapping[str, dict],
  excluded: Mapping[str, str],
  notes: Sequence[str],
) -> dict:
  """The content of STORE/dataset.json."""
  kept = ('shape', 'spacing_mm', 'native_shape', 'native_spacing_mm', 'window', 'voxels', 'voxels_sha256')
  return dict(
    name=spec.name,
    modality=spec.modality,
    organs=spec.organs,
    labels=spec.labels,
    raw_ids=options['raw_ids'],
    output_ids=dict(spec.output_ids),
    window=options['window'],
    request=request,
    options=options,
    options_hash=options_hash,
    splits=splits,
    cases={i: {key: meta[key] for key in kept} for i, meta in metas.items()},
    excluded=excluded,
    notes=notes,
  )
