"""Finds the cases of TotalSegmentator (a folder for each case), AMOS and FLARE22."""

import csv
import pathlib
import re

from afw_jax.data.sets.case_files import CaseFiles, abbreviate, normal_name, pairs, stem, where_to_get
from afw_jax.data.sets.nifti_layouts import find_numbered
from afw_jax.data.sets.spec import PARTS, DatasetSpec
from afw_jax.errors import InputError, did_you_mean

Path = pathlib.Path
_ENDING = '.nii.gz'
_LAST_CT = 500  # number of the last CT of AMOS; those above are MR


def find_totalsegmentator(spec: DatasetSpec, root: Path, problems: list[InputError]) -> list[CaseFiles]:
  """CASE/ct.nii.gz with CASE/segmentations/ORGAN.nii.gz; the split is that of meta.csv, where it is there."""
  parts = _parts_of(root / 'meta.csv')
  cases, lacking = [], {organ: [] for organ in spec.organs}
  stems: set[str] = set()
  for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith('.')):
    scan, masks = folder / 'ct.nii.gz', folder / 'segmentations'
    there = scan.is_file(), masks.is_dir()
    if not any(there):
      continue
    if not all(there):
      missing, present = (masks, scan) if there[0] else (scan, masks)
      problems.append(InputError(missing, f'is missing, although {present.name} is there', 'Unpack the case again'))
      continue
    names = {path.name.removesuffix(_ENDING) for path in masks.iterdir() if path.name.endswith(_ENDING)}
    stems |= names
    for organ in spec.organs:
      if organ not in names:
        lacking[organ].append(folder.name)
    name = normal_name(folder.name)
    cases.append(CaseFiles(name, str(scan), str(masks), parts.get(name), name))
  if unknown := [organ for organ in spec.organs if cases and organ not in stems]:
    hint = did_you_mean(unknown[0], stems) or f'Masks are {abbreviate(sorted(stems))}. '
    what = f'no case has a mask of {abbreviate(unknown)} ({unknown[0]}{_ENDING})'
    problems.append(InputError('data.organs', what, f'{hint}Name the masks that there are in data.organs'))
  for organ, without in lacking.items():
    if without and organ in stems:
      what = f'has no {organ}{_ENDING} (and so {len(without)} of {len(cases)} cases: {abbreviate(without)})'
      cure = 'Unpack the cases again; for an organ that is not in the scan write an empty mask'
      problems.append(InputError(root / without[0] / 'segmentations', what, cure))
  return cases


def _parts_of(path: Path) -> dict[str, str]:
  """Case id -> part, by the columns image_id and split of meta.csv; {} where there is no such file."""
  if not path.is_file():
    return {}
  cure = 'Unpack it again, or remove it: the cases are then split by data.fractions'
  try:
    with open(path, encoding='utf-8-sig', newline='') as file:
      rows = list(csv.DictReader(file, delimiter=';'))
  except (UnicodeDecodeError, csv.Error) as error:
    raise InputError(path, f'is damaged ({error})', cure) from error
  if not rows or not {'image_id', 'split'} <= rows[0].keys():
    raise InputError(path, 'has no columns image_id and split (divided by semicolons)', cure)
  parts: dict[str, str] = {}
  for number, row in enumerate(rows, 2):
    case, part = row['image_id'], row['split']
    if not case or part not in PARTS:
      what = f'has the part {part!r} for the case {case!r} in line {number}; parts are {", ".join(PARTS)}'
      raise InputError(path, what, cure)
    if parts.setdefault(normal_name(case), part) != part:
      raise InputError(path, f'has the case {case} in two parts ({parts[normal_name(case)]} and {part})', cure)
  return parts


def find_amos(spec: DatasetSpec, root: Path, problems: list[InputError]) -> list[CaseFiles]:
  """Tr, Va and Ts of images and labels, by their names CT or MR; scans of Ts have no labels where there is no labelsTs.

  Raises:
    InputError: imagesTr or labelsTr is not there. What is wrong with single files is added to `problems`.
  """
  for folder in ('imagesTr', 'labelsTr'):
    if not (root / folder).is_dir():
      raise InputError(root / folder, 'no such folder', where_to_get(spec))
  cases = []
  for ending, part in (('Tr', 'train'), ('Va', 'val'), ('Ts', 'test')):
    scans, labels = (_of_amos(root / f'{kind}{ending}', spec, problems) for kind in ('images', 'labels'))
    if part == 'test' and not labels:
      cases += [CaseFiles(name, str(files[0]), None, subject=name) for name, files in scans.items()]
    else:
      found = pairs(scans, labels, problems)
      cases += [CaseFiles(case.id, case.image, case.label, part, case.subject) for case in found]
  return cases


def _of_amos(folder: Path, spec: DatasetSpec, problems: list[InputError]) -> dict[str, list[Path]]:
  files: dict[str, list[Path]] = {}
  for path in sorted(folder.iterdir()) if folder.is_dir() else ():
    match = re.fullmatch(r'(amos_(\d{4}))(_0000)?', stem(path) or '')
    if match and (int(match[2]) <= _LAST_CT) == (spec.modality == 'CT'):
      files.setdefault(match[1], []).append(path)
    elif not match and not path.name.startswith('.'):
      problems.append(InputError(path, 'is not named amos_NNNN.nii.gz', 'Rename it or move it away'))
  return files


def find_flare22(spec: DatasetSpec, root: Path, problems: list[InputError]) -> list[CaseFiles]:
  """FLARE22_Tr_0001_0000.nii.gz with FLARE22_Tr_0001.nii.gz, in any folders below the root."""
  return find_numbered(root, r'FLARE22_Tr_\d{4}', problems)
