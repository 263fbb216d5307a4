"""Reads one case, scan and label, and says everything that is wrong with it."""

import dataclasses
import glob
import hashlib
import os

import numpy as np

from afw_jax.data.formats import volumes
from afw_jax.data.sets.case_files import CaseFiles
from afw_jax.data.sets.lookup import NAMES
from afw_jax.data.sets.spec import DatasetSpec, class_table
from afw_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class CheckedCase:
  """One case as read.

  Attributes:
    image: the scan; None if it could not be read.
    classes: (D, H, W) uint8 classes on the scan's grid; None if there are problems.
    voxels: organ -> voxels of it on the scan's grid.
    problems: why the case cannot be used.
    notes: what is odd, but can be used.
  """

  image: volumes.Volume | None
  classes: np.ndarray | None
  voxels: dict[str, int]
  problems: list[InputError]
  notes: list[str]


def read_checked(case: CaseFiles, spec: DatasetSpec) -> CheckedCase:
  """Decodes a case fully and checks it.

  Args:
    case: the files; both image and label.
    spec: what the ids in the label file mean.

  Returns:
    A `CheckedCase`; with problems there are no classes.
  """
  problems: list[InputError] = []
  image = _read(volumes.read_image, case.image, problems)
  if image is None and os.path.isdir(case.label):  # masks are placed by their scan: without it nothing can be said
    return CheckedCase(None, None, {}, problems, [])
  geometry = None if image is None else image.geometry
  label = _read(lambda path: volumes.read_label(path, geometry=geometry), case.label, problems)
  if image is not None and label is not None:
    _collect(lambda: volumes.check_pair(image, label), problems)
  if label is None:
    return CheckedCase(image, None, {}, problems, [])
  classes, voxels, notes = _classes(label, spec, problems)
  if image is not None and spec.in_hu and image.array.min() >= 0:
    notes.append('the scan has no value below 0: are its intensities HU?')
  return CheckedCase(image, None if problems else classes, voxels, problems, notes)


def source_digests(case: CaseFiles) -> dict[str, str]:
  """sha256 of the bytes of image and label; of several files: of their names and digests, by name.

  Raises:
    InputError: a file is not there or cannot be read.
  """
  return {key: _digest(path) for key, path in (('image', case.image), ('label', case.label))}


def voxels_digest(array: np.ndarray) -> str:
  """sha256 of the decoded voxels: the same scan has the same one however its file is compressed or oriented."""
  sha = hashlib.sha256(f'{array.shape} {array.dtype}'.encode())
  for plane in array:
    sha.update(np.ascontiguousarray(plane))
  return sha.hexdigest()


def count_organs(classes: np.ndarray, organs: tuple[str, ...]) -> dict[str, int]:
  """Organ -> voxels of it."""
  counts = _counts(classes)
  return {organ: int(counts[c + 1]) if c + 1 < len(counts) else 0 for c, organ in enumerate(organs)}


def _classes(label, spec, problems):
  ids = _counts(label.array)
  table = class_table(spec, len(ids))
  unknown = [i for i in np.flatnonzero(ids) if table[i] < 0]
  if unknown:
    many = f' and {len(unknown) - 8} more' if len(unknown) > 8 else ''
    problems.append(
      InputError(
        label.source,
        f'has label ids that {spec.name} does not know: '
        + ', '.join(f'{i} ({ids[i]} voxels)' for i in unknown[:8])
        + many,
        f'Known are 0 background, {_known(spec)}. '
        + (
          'Is it the label file of another data set?'
          if spec.name in NAMES
          else 'List the others under "labels" in dataset.json, or add "other_labels": "background" to it'
        ),
      )
    )
    return None, {}, []
  classes = table.astype(np.uint8)[label.array]
  voxels = count_organs(classes, spec.organs)
  if not any(voxels.values()):
    problems.append(
      InputError(label.source, f'is empty: no voxel of {", ".join(spec.organs)}', 'Label the scan or remove it')
    )
  notes = []
  if sum(classes[z].any() for z in range(len(classes))) == 1 and len(classes) > 1:
    notes.append('its label has organs in one slice only')
  return classes, voxels, notes


def _known(spec) -> str:
  text = lambda ids: str(ids[0]) if len(ids) == 1 else f'{ids[0]}-{ids[-1]}'
  return ', '.join(f'{text(ids)} {organ}' for organ, ids in spec.raw_ids.items())


def _counts(array: np.ndarray) -> np.ndarray:
  """Voxels of each id, 0..largest; plane by plane, for bincount makes int64 of what it counts."""
  size = int(array.max()) + 1
  return sum((np.bincount(plane.ravel(), minlength=size) for plane in array), np.zeros(size, np.int64))


def _read(read, path, problems):
  found = []
  _collect(lambda: found.append(read(path)), problems, path)
  return found[0] if found else None


def _collect(call, problems, path=None):
  try:
    call()
  except InputError as e:
    problems.append(e)
  except MemoryError:
    problems.append(InputError(path, 'does not fit into memory', 'Prepare with fewer workers or on a larger machine'))


def _digest(path: str) -> str:
  if os.path.isfile(path):
    return _file_digest(path)
  pattern = path if '*' in os.path.basename(path) else os.path.join(glob.escape(path), '*')
  names = sorted(glob.glob(pattern))
  sha = hashlib.sha256()
  for name in names:
    if os.path.isfile(name):
      sha.update(f'{os.path.basename(name)} {_file_digest(name)}\n'.encode())
  return sha.hexdigest()


def _file_digest(path: str) -> str:
  try:
    with open(path, 'rb') as f:
      return hashlib.file_digest(f, 'sha256').hexdigest()
  except OSError as e:
    raise InputError(path, f'cannot be read ({e.strerror})', 'Check the file and its permissions') from e
