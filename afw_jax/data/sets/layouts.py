"""Finds the scans of a data set and the label file of each, in the layouts the data sets are published in."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable

from afw_jax.data.sets.datasets import PARTS, DatasetSpec
from afw_jax.data.sets.public import TRANSUNET_TRAIN_SLICES
from afw_jax.errors import InputError, InputErrors

Path = pathlib.Path
_NIFTI = ('.nii.gz', '.nii')
_NOT_SCANS = ('.json', '.txt', '.csv', '.tsv', '.md', '.pdf')


@dataclasses.dataclass(frozen=True)
class CaseFiles:
  """One scan and its label.

  Attributes:
    id: unique in the data set; names the case in the store.
    image: path, as `volumes.read_image` takes it.
    label: path, as `volumes.read_label` takes it; None for a scan to predict.
    split: 'train', 'val' or 'test' where that is published or given, else None.
    subject: who it is of; scans of one subject stay in one part.
  """

  id: str
  image: str
  label: str | None
  split: str | None = None
  subject: str = ''


def find_cases(spec: DatasetSpec, root: str | os.PathLike) -> list[CaseFiles]:
  """Finds every case of a data set.

  Args:
    spec: the data set, from `datasets.spec(name, root)`.
    root: where it lies.

  Returns:
    The cases, sorted by id.

  Raises:
    InputError: nothing there (with how to get the data set and the layout expected).
    InputErrors: every scan without label, label without scan, id used twice, and split that does not match.
  """
  root = Path(root)
  finders = {
    'btcv': _btcv,
    'transunet': _transunet,
    'chaos_ct': _chaos_ct,
    'chaos_mr': _chaos_mr,
    'abdomenct1k': _abdomenct1k,
    'nifti': _nifti_folders,
  }
  if not root.is_dir():
    raise InputError(root, 'is not a folder' if root.exists() else 'no such folder', _how(spec))
  problems: list[InputError] = []
  try:
    cases = finders[spec.source](spec, root, problems)
  except OSError as e:
    raise InputError(e.filename or root, f'cannot be read ({e.strerror})', 'Check its permissions') from e
  if not cases and not problems:
    raise InputError(root, f'holds no case of {spec.name}', _how(spec))
  problems += _double_ids(cases)
  cases = _with_parts(spec, root, cases, problems)
  if problems:
    raise InputErrors(problems) if len(problems) > 1 else problems[0]
  return sorted(cases, key=lambda case: case.id)


def _how(spec):
  return f'{spec.how_to_get}. Expected layout: {spec.layout}'


def _stem(path: Path) -> str | None:
  """File name without .nii or .nii.gz; None for another kind of file."""
  return next((path.name[: -len(e)] for e in _NIFTI if path.name.lower().endswith(e) and len(path.name) > len(e)), None)


def _pairs(images: dict[str, list[Path]], labels: dict[str, list[Path]], problems: list) -> list[CaseFiles]:
  """One case per name that has exactly one scan and one label; everything else is a problem."""
  cases = []
  for name in sorted(images.keys() | labels.keys()):
    scan, label = images.get(name, []), labels.get(name, [])
    for files in (scan, label):
      if len(files) > 1:
        problems.append(InputError(files[1], f'case {name} is there twice, also as {files[0]}', 'Remove one of them'))
    if not label:
      problems.append(
        InputError(
          scan[0],
          f'has no label file of the name {name}',
          'Add the label, or move the scan out (imagesTs/ is for scans without labels)',
        )
      )
    elif not scan:
      problems.append(InputError(label[0], f'has no image file of the name {name}', 'Add the scan or remove the label'))
    else:
      cases.append(CaseFiles(name, str(scan[0]), str(label[0]), subject=name))
  return cases


def _double_ids(cases: Iterable[CaseFiles]) -> list[InputError]:
  seen, problems = {}, []
  for case in cases:
    other = seen.setdefault(case.id.casefold(), case)  # names that differ in case alone are one name on some disks
    if other is not case:
      problems.append(
        InputError(case.image, f'has the same case id as {other.image} ({case.id})', 'Rename one of them')
      )
  return problems


def _with_parts(spec, root, cases, problems) -> list[CaseFiles]:
  """Fills in the published or given split."""
  part_of = {i: part for part in PARTS for i in spec.splits.get(part, ())}
  if spec.source == 'nifti':  # given by the user, so every id must be there; a published set may be there in part
    missing = sorted(part_of.keys() - {case.id for case in cases if case.label})
    if missing:
      problems.append(
        InputError(
          root / 'dataset.json',
          f'"split" names cases without scan and label: {_few(missing)}',
          'Correct the ids or add the files',
        )
      )
  return [dataclasses.replace(case, split=part_of.get(case.id, case.split)) for case in cases]


def _few(names) -> str:
  names = list(names)
  return ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '')


# --- NIfTI folders ---------------------------------------------------------------------------------------------------


def _nifti_folders(spec, root, problems):
  """images/ + labels/, or nnU-Net's imagesTr/ + labelsTr/, imagesTs/ and perhaps labelsTs/."""
  plain, nnunet = (root / 'images').is_dir(), (root / 'imagesTr').is_dir()
  if plain and nnunet:
    problems.append(InputError(root, 'has both images/ and imagesTr/', 'Keep the scans in one of them'))
  if not plain and not nnunet:
    raise InputError(root, 'has neither images/ nor imagesTr/', _how(spec))
  names = ('images', 'labels') if plain else ('imagesTr', 'labelsTr')
  if not (root / names[1]).is_dir():
    raise InputError(root / names[1], 'no such folder', _how(spec))
  labels = _scans(root / names[1], problems, labels=())
  cases = _pairs(_scans(root / names[0], problems, labels=labels), labels, problems)
  if (root / 'imagesTs').is_dir():
    labels = _scans(root / 'labelsTs', problems, labels=()) if (root / 'labelsTs').is_dir() else {}
    scans = _scans(root / 'imagesTs', problems, labels=labels)
    if labels:
      cases += [dataclasses.replace(case, split='test') for case in _pairs(scans, labels, problems)]
    else:
      cases += [CaseFiles(name, str(files[0]), None, subject=name) for name, files in scans.items()]
  return cases


def _scans(folder: Path, problems: list, *, labels) -> dict[str, list[Path]]:
  """Case name -> files of it. NAME_0000 is nnU-Net's name for the one channel of NAME, unless a label is NAME_0000."""
  found: dict[str, list[Path]] = {}
  for path in sorted(folder.iterdir()):
    if path.name.startswith('.') or path.name.lower().endswith(_NOT_SCANS):
      continue
    name = path.name if path.is_dir() else _stem(path)
    if name is None:
      problems.append(InputError(path, 'is not a NIfTI file (.nii.gz or .nii)', 'Convert it to NIfTI or move it away'))
      continue
    channel = re.fullmatch(r'(.+)_(\d{4})', name)
    if channel and name not in labels and folder.name.startswith('images'):
      if channel[2] != '0000' and (channel[1] in labels or channel[1] in found):
        problems.append(
          InputError(
            path, f'is a second channel of case {channel[1]}', 'Only one channel is supported: keep NAME_0000 alone'
          )
        )
        continue
      name = channel[1] if channel[2] == '0000' else name
    found.setdefault(name, []).append(path)
  return found


def _abdomenct1k(spec, root, problems):
  """Case_00001_0000.nii.gz and Case_00001.nii.gz, wherever they were unpacked."""
  images: dict[str, list[Path]] = {}
  labels: dict[str, list[Path]] = {}
  for path in sorted(root.rglob('Case_*')):
    match = re.fullmatch(r'(Case_\d{5})(_0000)?', _stem(path) or '')
    if match and path.is_file():
      (images if match[2] else labels).setdefault(match[1], []).append(path)
  return _pairs(images, labels, problems)


# --- Synapse ---------------------------------------------------------------------------------------------------------


def _btcv(spec, root, problems):
  """Training/img/img0001.nii.gz with Training/label/label0001.nii.gz; ids as TransUNet's lists have them (case0001)."""
  base = next((b for b in (root / 'Training', root / 'RawData' / 'Training', root) if (b / 'img').is_dir()), None)
  if base is None or not (base / 'label').is_dir():
    raise InputError(root, 'has no Training/img and Training/label', _how(spec))
  found = []
  for folder, prefix in (('img', 'img'), ('label', 'label')):
    files: dict[str, list[Path]] = {}
    for path in sorted((base / folder).iterdir()):
      match = re.fullmatch(prefix + r'(\d{4})', _stem(path) or '')
      if match:
        files.setdefault(f'case{match[1]}', []).append(path)
      elif not path.name.startswith('.'):
        problems.append(InputError(path, f'is not named {prefix}NNNN.nii.gz', 'Rename it or move it away'))
    found.append(files)
  return _pairs(*found, problems)


def _transunet(spec, root, problems):
  """train_npz/case0005_slice000.npz (a case is all its slices) and test_vol_h5/case0001.npy.h5, already split."""
  slices: dict[str, set[int]] = {}
  for path in sorted((root / 'train_npz').glob('*.npz')):
    match = re.fullmatch(r'(case\d{4})_slice(\d{3})\.npz', path.name)
    if match:
      slices.setdefault(match[1], set()).add(int(match[2]))
    else:
      problems.append(InputError(path, 'is not named caseNNNN_sliceNNN.npz', 'Rename it or move it away'))
  cases = []
  for case, numbers in slices.items():
    pattern = str(root / 'train_npz' / f'{case}_slice*.npz')
    expected = max(TRANSUNET_TRAIN_SLICES.get(case, 0), max(numbers) + 1)
    missing = [f'{n:03d}' for n in range(expected) if n not in numbers]
    if missing:
      problems.append(
        InputError(pattern, f'lacks {len(missing)} of {expected} slices: {_few(missing)}', 'Download the folder again')
      )
    cases.append(CaseFiles(case, pattern, pattern, 'train', case))
  for path in sorted((root / 'test_vol_h5').glob('*.h5')):
    match = re.fullmatch(r'(case\d{4})\.npy\.h5', path.name)
    if match:
      cases.append(CaseFiles(match[1], str(path), str(path), 'test', match[1]))
    else:
      problems.append(InputError(path, 'is not named caseNNNN.npy.h5', 'Rename it or move it away'))
  return cases


# --- CHAOS -----------------------------------------------------------------------------------------------------------


def _patients(root: Path, kind: str) -> list[Path]:
  """Folders of the patients: below Train_Sets/CT, CT, or directly below the root."""
  base = next(
    (
      b
      for b in (root / 'Train_Sets' / kind, root / 'CHAOS_Train_Sets' / 'Train_Sets' / kind, root / kind)
      if b.is_dir()
    ),
    root,
  )
  return sorted(path for path in base.iterdir() if path.is_dir() and path.name.isdigit())


def _chaos(root, kind, series, masks, problems):
  cases = []
  for patient in _patients(root, kind):
    image, label = patient / series, patient / masks
    if not image.is_dir() and not label.is_dir():
      continue
    for there, missing in ((label, image), (image, label)):
      if not missing.is_dir():
        problems.append(
          InputError(
            missing, f'no such folder, but {there} is there', 'Unpack the training set again (test sets have no labels)'
          )
        )
    name = f'case_{int(patient.name):02d}'
    cases.append(CaseFiles(name, str(image), str(label), subject=name))
  return cases


def _chaos_ct(spec, root, problems):
  return _chaos(root, 'CT', 'DICOM_anon', 'Ground', problems)


def _chaos_mr(spec, root, problems):
  return _chaos(root, 'MR', *spec.series, problems)
