"""Finds the scans below a path: NIfTI files and folders of DICOM series."""

import os

from afw_jax.errors import InputError


def find_scans(path: str) -> dict[str, str]:
  """Finds the scans at a path.

  Args:
    path: a NIfTI file, the folder of a DICOM series, or a folder that holds either.

  Returns:
    Name of each scan -> its file or folder, sorted by name.

  Raises:
    InputError: there is no such path, the folder is empty, or two scans have the same name.
  """
  if not os.path.exists(path):
    raise InputError(
      path, 'does not exist', 'Give a scan (.nii, .nii.gz), a DICOM series folder, or a folder of scans.'
    )
  if not os.path.isdir(path):
    return {_stem(path): path}
  entries = sorted(e for e in os.listdir(path) if not e.startswith('.'))
  files = [e for e in entries if e.endswith(('.nii', '.nii.gz'))]
  folders = [e for e in entries if os.path.isdir(os.path.join(path, e))]
  if files:  # beside them, folders of DICOM series; anything else in the folder is not a scan
    chosen = sorted(files + [e for e in folders if _holds_dicom(os.path.join(path, e))])
  else:
    chosen = folders if len(folders) == len(entries) else []
  if not entries:
    raise InputError(
      path, 'the folder is empty', 'Give a scan (.nii, .nii.gz), a DICOM series folder, or a folder of scans.'
    )
  if not chosen:  # files that are not NIfTI: a DICOM series, or volumes.read_image says what is wrong
    return {os.path.basename(os.path.abspath(path)): path}
  scans = {}
  for entry in chosen:
    if _stem(entry) in scans:
      raise InputError(
        os.path.join(path, entry), f'two scans are named {_stem(entry)}', 'Rename or remove one of them.'
      )
    scans[_stem(entry)] = os.path.join(path, entry)
  return scans


def _holds_dicom(folder: str) -> bool:
  """Whether a file in a folder has the DICOM prefix."""
  for entry in os.scandir(folder):
    if entry.is_file():
      with open(entry.path, 'rb') as f:
        if f.read(132)[128:] == b'DICM':
          return True
  return False


def _stem(path: str) -> str:
  return os.path.basename(os.path.abspath(path)).removesuffix('.gz').removesuffix('.nii')
