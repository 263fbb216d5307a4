"""Loads the scan and the label map of one case, and collects everything that is wrong with them."""

import dataclasses
import hashlib
import os

import numpy as np

from afw_jax.data.formats import channel_scans, organ_masks, volumes
from afw_jax.data.padding import without_padding_of
from afw_jax.data.sets import channels
from afw_jax.data.sets.case_files import CaseFiles, abbreviate
from afw_jax.data.sets.lookup import NAMES
from afw_jax.data.sets.spec import IGNORED, DatasetSpec, class_table
from afw_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class LoadedCase:
  """A case as loaded from its files.

  Attributes:
    image: the scan, without padding; None if it could not be read.
    classes: (D, H, W) uint8 classes on the grid of the scan, `IGNORED` included; None if there are problems.
    voxels: organ -> number of its voxels on the grid of the scan.
    problems: errors, with which the case cannot be used.
    notes: warnings, with which it can.
  """

  image: volumes.Volume | None
  classes: np.ndarray | None
  voxels: dict[str, int]
  problems: list[InputError]
  notes: list[str]


def load_and_validate(case: CaseFiles, spec: DatasetSpec, *, resample_dicom: bool = False) -> LoadedCase:
  """Decodes the files of a case completely and validates them.

  Args:
    case: files of the case, with a label map.
    spec: of the data set, with the meaning of the ids in the label map.
    resample_dicom: interpolate tilted or unevenly spaced DICOM slices to an even grid.

  Returns:
    A `LoadedCase`.
  """
  problems: list[InputError] = []
  read = lambda path: volumes.read_image(path, resample_dicom=resample_dicom)
  scans = [_read(read, path, problems) for path in (case.image, *case.others)]
  image = _joined(scans, problems) if all(scans) else None
  is_png = os.path.isdir(case.label) and not spec.overlapping
  if image is None and is_png:  # PNG masks cannot be read without their scan
    return LoadedCase(None, None, {}, problems, [])
  if image is not None:
    image = dataclasses.replace(image, array=without_padding_of(image.array, channels.of_spec(spec)))
  geometry = None if image is None else image.geometry
  remarks: list[str] = [image.resampled] if image is not None and image.resampled else []
  label = _read(lambda path: _read_label(path, spec, geometry, remarks), case.label, problems)
  if image is not None and label is not None:
    _collect(lambda: remarks.extend(volumes.check_pair(image, label)), problems)
  if label is None:
    return LoadedCase(image, None, {}, problems, [])
  classes, voxels, notes = _classes(label, spec, problems)
  notes = remarks + notes
  return LoadedCase(image, None if problems else classes, voxels, problems, notes)


def voxels_digest(array: np.ndarray) -> str:
  """SHA-256 of the voxels in the internal orientation, the same for every compression and orientation of a file."""
  sha = hashlib.sha256(f'{array.shape} {array.dtype}'.encode())
  for plane in array:
    sha.update(np.ascontiguousarray(plane))
  return sha.hexdigest()


def count_organs(classes: np.ndarray, organs: tuple[str, ...]) -> dict[str, int]:
  """Organ -> number of its voxels."""
  counts = _counts(classes)
  return {organ: int(counts[c + 1]) if c + 1 < len(counts) else 0 for c, organ in enumerate(organs)}


def _classes(label, spec, problems):
  ids = _counts(label.array)
  table = class_table(spec, len(ids))
  unknown = [i for i in np.flatnonzero(ids) if table[i] < 0]
  if unknown:
    problems.append(
      InputError(
        label.source,
        f'has label ids that are unknown to {spec.name}: ' + abbreviate(f'{i} ({ids[i]} voxels)' for i in unknown),
        f'Known are 0 background, {_known(spec)}. '
        + (
          'Check that it is a label file of this data set'
          if spec.name in NAMES
          else 'List the others under "labels" in dataset.json, or add "other_labels": "background" to it'
        ),
      )
    )
    return None, {}, []
  classes = table.astype(np.uint8)[label.array]
  voxels = count_organs(classes, spec.organs)
  notes = []
  if not any(voxels.values()) and spec.overlapping:  # such data sets have scans of other parts of the body
    notes.append('it has none of the organs: all of it is background')
  elif not any(voxels.values()):
    problems.append(
      InputError(label.source, f'is empty: no voxel of {", ".join(spec.organs)}', 'Label the scan or remove it')
    )
  if sum(_has_organ(plane) for plane in classes) == 1 and len(classes) > 1:
    notes.append('its label map has organs in one slice only')
  return classes, voxels, notes


def _has_organ(plane: np.ndarray) -> bool:
  return bool(((plane != 0) & (plane != IGNORED)).any())


def _read_label(path, spec, geometry, remarks):
  if not spec.overlapping:
    return volumes.read_label(path, geometry=geometry)
  array, grid, sha256, found = organ_masks.read_label(path, spec.organs, spec.overlapping)
  remarks.extend(found)
  return volumes.Volume(array, grid, path, sha256)


def _known(spec) -> str:
  text = lambda ids: str(ids[0]) if len(ids) == 1 else f'{ids[0]}-{ids[-1]}'
  known = dict(spec.raw_ids) | ({} if spec.unlabelled_id is None else {'ignore': (spec.unlabelled_id,)})
  return ', '.join(f'{text(ids)} {organ}' for organ, ids in known.items())


def _counts(array: np.ndarray) -> np.ndarray:
  """(largest id + 1,) voxels of each id; plane by plane, because bincount converts its input to int64."""
  size = int(array.max()) + 1
  return sum((np.bincount(plane.ravel(), minlength=size) for plane in array), np.zeros(size, np.int64))


def _joined(scans, problems):
  found = []
  _collect(lambda: found.append(channel_scans.joined(scans)), problems, scans[0].source)
  return found[0] if found else None


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
    problems.append(InputError(path, 'does not fit into memory', 'Prepare with fewer workers, or with more memory'))
