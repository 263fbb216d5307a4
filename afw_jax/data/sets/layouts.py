"""Finds the scans and label maps of a data set in the layout it is published in."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable

from afw_jax.data.sets import challenge_layouts, multi_organ_layouts, nifti_layouts
from afw_jax.data.sets.case_files import CaseFiles, abbreviate, where_to_get
from afw_jax.data.sets.spec import PARTS, DatasetSpec
from afw_jax.errors import InputError, InputErrors
from afw_jax.system.file_names import file_name, same_on_disk

_FINDERS = {
  'btcv': nifti_layouts.find_btcv,
  'transunet': challenge_layouts.find_transunet,
  'chaos_ct': challenge_layouts.find_chaos_ct,
  'chaos_mr': challenge_layouts.find_chaos_mr,
  'abdomenct1k': nifti_layouts.find_abdomenct1k,
  'totalsegmentator': multi_organ_layouts.find_totalsegmentator,
  'amos': multi_organ_layouts.find_amos,
  'flare22': multi_organ_layouts.find_flare22,
  'nifti': nifti_layouts.find_folders,
}


def find_cases(spec: DatasetSpec, root: str | os.PathLike) -> list[CaseFiles]:
  """Finds every case of a data set; reads no scan.

  Args:
    spec: the data set, from `lookup.get_spec(name, root)`.
    root: its folder.

  Returns:
    The cases, sorted by id.

  Raises:
    InputError: nothing found (says how to get the data set, and the expected layout).
    InputErrors: all scans without label, labels without scan, duplicate ids, and ids of the split that do not exist.
  """
  root = pathlib.Path(root)
  if not root.is_dir():
    raise InputError(root, 'is not a folder' if root.exists() else 'no such folder', where_to_get(spec))
  problems: list[InputError] = []
  try:
    cases = _FINDERS[spec.source](spec, root, problems)
  except OSError as e:
    raise InputError(e.filename or root, f'cannot be read ({e.strerror})', 'Check its permissions') from e
  if not cases and not problems:
    raise InputError(root, f'holds no case of {spec.name}', where_to_get(spec))
  problems += _duplicate_ids(cases)
  cases = _with_parts(spec, root, cases, problems)
  if problems:
    raise InputErrors(problems) if len(problems) > 1 else problems[0]
  return sorted(cases, key=lambda case: case.id)


def _duplicate_ids(cases: Iterable[CaseFiles]) -> list[InputError]:
  seen, problems = {}, []
  for case in cases:
    other = seen.setdefault(
      same_on_disk(file_name(case.id)), case
    )  # some file systems do not distinguish upper and lower case
    if other is not case:
      problems.append(
        InputError(case.image, f'has the same case id as {other.image} ({case.id})', 'Rename one of them')
      )
  return problems


def _with_parts(
  spec: DatasetSpec, root: pathlib.Path, cases: list[CaseFiles], problems: list[InputError]
) -> list[CaseFiles]:
  """The cases with their published or given part."""
  part_of = {i: part for part in PARTS for i in spec.splits.get(part, ())}
  if spec.source == 'nifti':  # the user's split must match the files; a published set may be incomplete
    missing = sorted(part_of.keys() - {case.id for case in cases if case.label})
    if missing:
      problems.append(
        InputError(
          root / 'dataset.json',
          f'"split" names cases without scan and label: {abbreviate(missing)}',
          'Correct the ids or add the files',
        )
      )
  return [dataclasses.replace(case, split=part_of.get(case.id, case.split)) for case in cases]
