"""The folds of a cross-validation that a data set brings with it: nnU-Net's splits_final.json."""

import pathlib
from collections.abc import Mapping, Sequence

from afw_jax.data.sets.case_files import abbreviate, normal_name
from afw_jax.data.sets.split import Fold
from afw_jax.errors import InputError
from afw_jax.system.atomic_files import read_json

FILE = 'splits_final.json'
_EXAMPLE = '[{"train": ["case_1", "case_2"], "val": ["case_3"]}, ...]'
Folds = tuple[Mapping[str, tuple[str, ...]], ...]


def read_folds(root: str) -> Folds:
  """Reads ROOT/splits_final.json: 'train' and 'val' -> case ids, for each fold; () where there is no such file.

  Raises:
    InputError: the file is damaged or of another form, or a fold has a case twice.
  """
  path = pathlib.Path(root) / FILE
  if not path.exists():
    return ()
  content = read_json(path, cure=f'Write {_EXAMPLE}, or remove it: data.fold then deals the cases', kind=list)
  names = lambda ids: isinstance(ids, list) and bool(ids) and all(isinstance(i, str) for i in ids)
  good = lambda fold: isinstance(fold, dict) and set(fold) == {'train', 'val'} and all(map(names, fold.values()))
  if not content or not all(map(good, content)):
    raise InputError(path, 'is not a list of folds with cases to train on and to hold out', f'Write {_EXAMPLE}')
  folds = []
  for number, fold in enumerate(content, 1):
    fold = {part: tuple(map(normal_name, fold[part])) for part in ('train', 'val')}
    every = [*fold['train'], *fold['val']]
    if twice := sorted({case_id for case_id in every if every.count(case_id) > 1}):
      raise InputError(path, f'fold {number} lists {abbreviate(twice)} twice', 'Keep each case in one of its parts')
    folds.append(fold)
  return tuple(folds)


def split_given(
  cases: Sequence[tuple[str, str, str | None]], folds: Sequence[Mapping[str, Sequence[str]]], fold: Fold, *, drawn: bool
) -> dict[str, list[str]]:
  """The split of one of these folds.

  Args:
    cases: (case id, subject, part or None) of each that may be used.
    folds: from `read_folds`.
    fold: the one to hold out.
    drawn: `cases` are only a part of those that could be used, so that a fold may list others.

  Returns:
    {'train': [...], 'val': [...], 'test': [...]}, each sorted. Cases that the fold does not list are in none, but for
    those of a given test part.

  Raises:
    InputError: another number of folds, or a fold that lists unknown cases or cases of the test part.
  """
  if fold.count != len(folds):
    raise InputError(
      'data.fold',
      f'{fold.number}/{fold.count} is one of {fold.count} folds, but {FILE} has {len(folds)}',
      f'Give K/{len(folds)}, or remove {FILE}: the cases are then dealt',
    )
  chosen, known = folds[fold.number - 1], {case_id: part for case_id, _, part in cases}
  listed = [*chosen['train'], *chosen['val']]
  if (unknown := sorted(case_id for case_id in listed if case_id not in known)) and not drawn:
    what = f'fold {fold.number} lists {abbreviate(unknown)}: no usable case with scan and label'
    raise InputError(FILE, what, 'Add the files, or take these names out')
  if tests := sorted(case_id for case_id in listed if known.get(case_id) == 'test'):
    raise InputError(FILE, f'fold {fold.number} lists {abbreviate(tests)} of the test part', 'Take these names out')
  return {
    'train': sorted(case_id for case_id in chosen['train'] if case_id in known),
    'val': sorted(case_id for case_id in chosen['val'] if case_id in known),
    'test': sorted(case_id for case_id, part in known.items() if part == 'test'),
  }
