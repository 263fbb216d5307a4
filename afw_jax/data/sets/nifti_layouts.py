"""Finds the cases of data sets stored as NIfTI files: plain folders, nnU-Net's, AbdomenCT-1K and BTCV."""

import dataclasses
import pathlib
import re

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
  cases = pairs(_scans(root / names[0], problems, labels=labels), labels, problems)
  if (root / 'imagesTs').is_dir():
    labels = _scans(root / 'labelsTs', problems, labels=()) if (root / 'labelsTs').is_dir() else {}
    scans = _scans(root / 'imagesTs', problems, labels=labels)
    if labels:
      cases += [dataclasses.replace(case, split='test') for case in pairs(scans, labels, problems)]
    else:
      cases += [CaseFiles(name, str(files[0]), None, subject=name) for name, files in scans.items()]
  return cases


def _scans(folder: Path, problems: list, *, labels) -> dict[str, list[Path]]:
  """Case name -> files. NAME_0000 is nnU-Net's file name for the channel of case NAME, unless a label is NAME_0000."""
  found: dict[str, list[Path]] = {}
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
    channel = re.fullmatch(r'(.+)_(\d{4})', name)
    if channel and name not in labels and folder.name.startswith('images'):
      if channel[2] != '0000' and (channel[1] in labels or channel[1] in found):
        problems.append(
          InputError(path, f'is a second channel of case {channel[1]}', 'Only one channel is supported: keep NAME_0000')
        )
        continue
      name = channel[1] if channel[2] == '0000' else name
    found.setdefault(name, []).append(path)
  return found


def find_abdomenct1k(spec: DatasetSpec, root: Path, problems: list[InputError]) -> list[CaseFiles]:
  """Case_00001_0000.nii.gz with Case_00001.nii.gz, in any folders below the root."""
  images: dict[str, list[Path]] = {}
  labels: dict[str, list[Path]] = {}
  for path in sorted(root.rglob('Case_*')):
    match = re.fullmatch(r'(Case_\d{5})(_0000)?', stem(path) or '')
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
