"""Finds the cases of TransUNet's preprocessed Synapse files and of the CHAOS challenge (DICOM with PNG masks)."""

import pathlib
import re

from afw_jax.data.sets.case_files import CaseFiles, abbreviate
from afw_jax.data.sets.public import TRANSUNET_TRAIN_SLICES
from afw_jax.data.sets.spec import DatasetSpec
from afw_jax.errors import InputError

Path = pathlib.Path


def find_transunet(spec: DatasetSpec, root: Path, problems: list[InputError]) -> list[CaseFiles]:
  """train_npz/case0005_slice000.npz (all slices of a case) and test_vol_h5/case0001.npy.h5, which give the split."""
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
      lacking = f'lacks {len(missing)} of {expected} slices: {abbreviate(missing)}'
      problems.append(InputError(pattern, lacking, 'Download the folder again'))
    cases.append(CaseFiles(case, pattern, pattern, 'train', case))
  for path in sorted((root / 'test_vol_h5').glob('*.h5')):
    match = re.fullmatch(r'(case\d{4})\.npy\.h5', path.name)
    if match:
      cases.append(CaseFiles(match[1], str(path), str(path), 'test', match[1]))
    else:
      problems.append(InputError(path, 'is not named caseNNNN.npy.h5', 'Rename it or move it away'))
  return cases


def find_chaos_ct(spec: DatasetSpec, root: Path, problems: list[InputError]) -> list[CaseFiles]:
  """PATIENT/DICOM_anon with PATIENT/Ground."""
  return _chaos(root, 'CT', 'DICOM_anon', 'Ground', problems)


def find_chaos_mr(spec: DatasetSpec, root: Path, problems: list[InputError]) -> list[CaseFiles]:
  """The images and masks of one MR sequence in each patient's folder."""
  return _chaos(root, 'MR', *spec.series, problems)


def _chaos(root, kind, series, masks, problems):
  cases = []
  for patient in _patients(root, kind):
    image, label = patient / series, patient / masks
    if not image.is_dir() and not label.is_dir():
      continue
    for present, missing in ((label, image), (image, label)):
      if not missing.is_dir():
        problems.append(
          InputError(
            missing, f'no such folder, although {present} exists', 'Unpack the training set (test sets have no labels)'
          )
        )
    name = f'case_{int(patient.name):02d}'
    cases.append(CaseFiles(name, str(image), str(label), subject=name))
  return cases


def _patients(root: Path, kind: str) -> list[Path]:
  """The patients' folders: in Train_Sets/CT, in CT, or directly in the root."""
  bases = (root / 'Train_Sets' / kind, root / 'CHAOS_Train_Sets' / 'Train_Sets' / kind, root / kind)
  base = next((b for b in bases if b.is_dir()), root)
  return sorted(path for path in base.iterdir() if path.is_dir() and path.name.isdigit())
