"""Reads the label maps that the scores of a run were computed from, as classes on the grid of their scans."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from afw_jax.data import store
from afw_jax.data.formats import volumes
from afw_jax.data.formats.geometry import MAX_DISPLACEMENT, Geometry, displacement
from afw_jax.data.sets.spec import IGNORED
from afw_jax.errors import InputError
from afw_jax.report.runs import Run
from afw_jax.system.file_names import file_name

AGAIN = 'Evaluate the run again (--mode=evaluate).'


def path_of(workdir: str, case_id: str) -> str:
  """The label map of a case in the folder of a run."""
  return os.path.join(workdir, 'predictions', f'{file_name(case_id)}.nii.gz')


def read(run: Run, case: store.Case, ids: Mapping[str, int], *, cure: str = AGAIN) -> np.ndarray:
  """The label map of a case that was scored.

  Args:
    run: with its scores.
    case: as it is in the store.
    ids: organ -> its id in label maps.
    cure: of the errors.

  Returns:
    (D, H, W) uint8 classes on the grid of the scan.

  Raises:
    InputError: it is damaged or missing, not the one that was scored, or the scan or its truth has changed since.
  """
  place = run.cases.index(case.id)
  if run.contents[place] not in (None, store.content_digest(case.meta)):
    raise InputError(run.workdir, f'scored another scan or truth as {case.id} than its store holds now', cure)
  path = path_of(run.workdir, case.id)
  found = volumes.read_label(path)
  grid = Geometry.from_json(case.meta['geometry'])
  labels = as_classes(path, found.array, [ids[name] for name in run.classes], cure=cure)
  same_grid = labels.shape == grid.internal_shape and displacement(grid, found.geometry)[0] <= MAX_DISPLACEMENT
  if not same_grid or not _agree(labels, case, run, place):
    raise InputError(path, 'is not the label map that was scored', cure)
  return labels


def _agree(labels: np.ndarray, case: store.Case, run: Run, place: int) -> bool:
  """Whether the organs have the numbers of voxels that were scored, ignored ones left out; nan stands for any."""
  counts = np.bincount(labels[case.arrays['native_label'] != IGNORED], minlength=len(run.classes) + 1)
  counted = [counts[list(classes)].sum() for classes in run.regions]
  return all(n == wanted for n, wanted in zip(counted, run.volumes['pred_voxels'][place]) if not np.isnan(wanted))


def as_classes(path: str, labels: np.ndarray, ids: Sequence[int], *, cure: str = AGAIN) -> np.ndarray:
  """The ids of a file as classes 1, 2, ...

  Args:
    path: of the file, for the error.
    labels: integers.
    ids: of the classes 1, 2, ...
    cure: of the error.

  Returns:
    uint8 of the same shape.

  Raises:
    InputError: the file has another id.
  """
  classes = np.full(max(int(labels.max(initial=0)), *ids) + 1, 255, np.uint8)
  classes[[0, *ids]] = range(len(ids) + 1)
  found = classes[labels]
  if (found == 255).any():
    raise InputError(path, f'has the id {int(labels[found == 255][0])}, which is that of no organ', cure)
  return found
