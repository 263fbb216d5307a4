"""Examination of one case: all that is found out about it before its image is resampled; nothing is written."""

import dataclasses

import numpy as np

from afw_jax.data import field_of_view, resample, working_grid
from afw_jax.data.formats.volume import Volume
from afw_jax.data.preparation import load_case
from afw_jax.data.sets import channels, intensities
from afw_jax.data.sets.case_files import CaseFiles
from afw_jax.data.sets.spec import DatasetSpec
from afw_jax.data.sets.window import percentile_window
from afw_jax.errors import InputError, InputErrors

_WORTH_MOVING = 0.005  # sum of the shares of organs


@dataclasses.dataclass(frozen=True)
class Examined:
  """A case without problems.

  Attributes:
    image: the scan, without padding.
    classes: (D, H, W) uint8 classes on the grid of the scan, `IGNORED` included.
    label: (d, h, w) uint8 classes on the working grid.
    resampling: from the scan to the working grid.
    whole: the same, extended to the body.
    widened: whether that is larger than the working grid.
    meta: what case.json has of the case, but for the digests and stamps of its files.
  """

  image: Volume
  classes: np.ndarray
  label: np.ndarray
  resampling: resample.Resampling
  whole: resample.Resampling
  widened: bool
  meta: dict


def examine(case: CaseFiles, spec: DatasetSpec, options: dict, *, resample_dicom: bool = False) -> Examined:
  """Reads and validates a case, and finds its place on the working grid.

  Args:
    case: files of the case, with a label map.
    spec: of the data set.
    options: of the store, from `StoreOptions.to_json`.
    resample_dicom: interpolate tilted or unevenly spaced DICOM slices to an even grid.

  Raises:
    InputErrors: every problem of the case.
  """
  loaded = load_case.load_and_validate(case, spec, resample_dicom=resample_dicom)
  if loaded.problems:
    raise InputErrors(loaded.problems)
  try:
    centre = working_grid.central_grid(loaded.image, options)
  except InputError as error:
    raise InputErrors([error]) from error
  scan = loaded.image.array
  body = working_grid.find_body(loaded.image, centre, options)
  complete, whole = field_of_view.complete(centre), field_of_view.covering(centre, body)
  whole_label = resample.to_working(loaded.classes, complete, 0)
  voxels = load_case.count_organs(whole_label, spec.organs)
  kept = lambda grid: load_case.count_organs(field_of_view.crop(whole_label, complete, grid), spec.organs)
  lost = lambda grid: sum(field_of_view.cut_off(voxels, kept(grid)).values())
  # The central one unless the body is clearly off it, and it loses more: data sets are centred by eye, bodies are found
  # by a rule.
  resampling, moved = centre, field_of_view.around_body(centre, body)
  off = max(off for *_, off in field_of_view.overhang(centre, body))
  if off > field_of_view.OFF and lost(centre) - lost(moved) > _WORTH_MOVING:
    resampling = moved
  label = np.ascontiguousarray(field_of_view.crop(whole_label, complete, resampling))
  working_voxels = load_case.count_organs(label, spec.organs)
  cut_off = field_of_view.cut_off(voxels, working_voxels)
  of = channels.of_spec(spec)
  described = intensities.describe_channels(scan, of)
  window = channels.joined([list(percentile_window(channel.voxels(scan))) for channel in of])
  meta = dict(
    source={'image': case.image, 'label': case.label, **({'others': list(case.others)} if case.others else {})},
    voxels_sha256=load_case.voxels_digest(scan),
    notes=loaded.notes + intensities.notes_on_channels(described, window, of) + _cut_off_note(cut_off),
    intensities=described,
    shape=list(resampling.working),
    spacing_mm=list(resampling.spacing_mm),
    native_shape=list(resampling.native),
    native_spacing_mm=list(resampling.native_spacing_mm),
    geometry=loaded.image.geometry.to_json(),
    resampling=resampling.to_json(),
    whole=whole.to_json(),
    body=body,
    overhang=field_of_view.overhang(resampling, body),
    cut_off=cut_off,
    percentile_window=window,
    voxels=loaded.voxels,
    working_voxels=working_voxels,
  )
  widened = whole.working != centre.working
  return Examined(loaded.image, loaded.classes, label, resampling, whole, widened, meta)


def _cut_off_note(cut_off: dict[str, float]) -> list[str]:
  if not cut_off:
    return []
  parts = ', '.join(f'{max(share, 0.001):.1%} of {organ}' for organ, share in cut_off.items())
  return [f'the working grid cuts off {parts}, which training does not see: enlarge data.size, or use data.fit=resize']
