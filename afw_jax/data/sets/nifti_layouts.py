"""Finds the cases of data sets stored as NIfTI files: plain folders, nnU-Net's, AbdomenCT-1K and BTCV."""

import dataclasses
import pathlib
import re
from collections.abc import Container, Iterator

from afw_jax.data.sets import channel_files
from afw_jax.data.sets.case_files import CaseFiles, normal_name, pairs, stem, where_to_get
from afw_jax.data.sets.spec import DatasetSpec
from afw_jax.errors import InputError

Path = pathlib.Path
_NOT_SCANS = ('.json', '.txt', '.csv', '.tsv', '.md', '.pdf', '.raw', '.zraw')  # .raw: the data of an .mhd


def find_folders(spec: DatasetSpec, root: Path, problems: list[InputError]) -> list[CaseFiles]:
  """images/ with labels/, or nnU-Net's imagesTr/ with labelsTr/, imagesTs/ and optionally labelsTs/.

  Raises:
    InputError: neither layout is there. What is wrong with single files is added to `problems`.
  """
  plain, nnunet = (root / 'images').is_dir(), (root / 'imagesTr').is_dir()
  if plain and nnunet:
    problems.append(InputError(root, 'has both images/ and imagesTr/', 'Keep the scans in one of them'))
  if not plain and not nnunet:
    raise InputError(root, 'has neither images/ nor imagesTr/', where_to_get(spec))
  names = ('images', 'labels') if plain else ('imagesTr', 'labelsTr')
  if not (root / names[1]).is_dir():
    raise InputError(root / names[1], 'no such folder', where_to_get(spec))
  labels = _scans(root / names[1], problems, labels=())
  cases = _paired(spec, root / names[0], labels, problems)
  if (root / 'imagesTs').is_dir():
    labels = _scans(root / 'labelsTs', problems, labels=()) if (root / 'labelsTs').is_dir() else {}
    if labels:
      cases += [dataclasses.replace(c, split='test') for c in _paired(spec, root / 'imagesTs', labels, problems)]
    else:
      scans, others = _images(spec, root / 'imagesTs', labels, problems)
      cases += [
        CaseFiles(name, str(files[0]), None, subject=name, others=others.get(name, ())) for name, files in scans.items()
      ]
  return cases


def _paired(spec: DatasetSpec, folder: Path, labels: dict[str, list[Path]], problems: list) -> list[CaseFiles]:
  """The cases of a folder of scans that have label maps."""
  scans, others = _images(spec, folder, labels, problems)
  return [dataclasses.replace(case, others=others.get(case.id, ())) for case in pairs(scans, labels, problems)]


def _images(
  spec: DatasetSpec, folder: Path, labels: Container[str], problems: list
) -> tuple[dict[str, list[Path]], dict[str, tuple[str, ...]]]:
  """(case name -> files of its first or only channel, case name -> paths of its other channels)."""
  if not spec.channels:
    return _scans(folder, problems, labels=labels), {}
  files = []
  for name, path in _named(folder, problems):
    if path.is_dir():
      problems.append(InputError(path, 'is a DICOM series of one of several channels', 'Convert each channel to NIfTI'))
    else:
      files.append((name, path))
  grouped = channel_files.group(files, [name for name, _ in spec.channels], problems)
  first = {name: files[:1] for name, files in grouped.items()}
  return first, {name: tuple(map(str, files[1:])) for name, files in grouped.items()}


def _named(folder: Path, problems: list) -> Iterator[tuple[str, Path]]:
  """(name without ending, path) of each scan or label map in a folder."""
  for path in sorted(folder.iterdir()):
    if path.name.startswith('.') or path.name.lower().endswith(_NOT_SCANS):
      continue
    name = path.name if path.is_dir() else stem(path)
    name = name and normal_name(name)
    if name is None:
      problems.append(
        InputError(path, 'is not a scan (.nii.gz, .nii, .nrrd, .mha or .mhd)', 'Convert it to NIfTI or move it away')
      )
      continue
    yield name, path


def _scans(folder: Path, problems: list, *, labels: Container[str]) -> dict[str, list[Path]]:
  """Case name -> files. NAME_0000 is nnU-Net's file name for the channel of case NAME, unless a label is NAME_0000."""
  found: dict[str, list[Path]] = {}
  for name, path in _named(folder, problems):
    channel = channel_files.split_name(name)
    if channel and name not in labels and folder.name.startswith('images'):
      case, number = channel
      if number and (case in labels or case in found):
        cure = 'Keep NAME_0000 alone, or name all channels in dataset.json, under "channel_names"'
        problems.append(InputError(path, f'is a second channel of case {case}', cure))
        continue
      name = case if not number else name
    found.setdefault(name, []).append(path)
  return found


def find_abdomenct1k(spec: DatasetSpec, root: Path, problems: list[InputError]) -> list[CaseFiles]:
  """Case_00001_0000.nii.gz with Case_00001.nii.gz, in any folders below the root."""
  return find_numbered(root, r'Case_\d{5}', problems)


def find_numbered(root: Path, case: str, problems: list[InputError]) -> list[CaseFiles]:
  """Scans CASE_0000 and label maps CASE, in any folders below the root.

  Args:
    root: of the data set.
    case: regular expression of the name of a case.
    problems: is given what is wrong with single files.
  """
  images: dict[str, list[Path]] = {}
  labels: dict[str, list[Path]] = {}
  for path in sorted(root.rglob('*')):
    match = re.fullmatch(rf'({case})(_0000)?', stem(path) or '')
    if match and path.is_file():
      (images if match[2] else labels).setdefault(match[1], []).append(path)
  return pairs(images, labels, problems)


def find_btcv(spec: DatasetSpec, root: Path, problems: list[InputError]) -> list[CaseFiles]:
  """Training/img/img0001.nii.gz with Training/label/label0001.nii.gz; case ids as in TransUNet's lists (case0001).

  Raises:
    InputError: these folders are not there. What is wrong with single files is added to `problems`.
  """
  base = next((b for b in (root / 'Training', root / 'RawData' / 'Training', root) if (b / 'img').is_dir()), None)
  if base is None or not (base / 'label').is_dir():
    raise InputError(root, 'has no Training/img and Training/label', where_to_get(spec))
  found = []
  for folder, prefix in (('img', 'img'), ('label', 'label')):
    files: dict[str, list[Path]] = {}
    for path in sorted((base / folder).iterdir()):
      match = re.fullmatch(prefix + r'(\d{4})', stem(path) or '')
      if match:
        files.setdefault(f'case{match[1]}', []).append(path)
      elif not path.name.startswith('.'):
        problems.append(InputError(path, f'is not named {prefix}NNNN.nii.gz', 'Rename it or move it away'))
    found.append(files)
  return pairs(*found, problems)
