"""Preparation of one case: from its files to the staging folder of a store."""

import os

import numpy as np

from afw_jax.data import crops, field_of_view, resample, store, working_grid
from afw_jax.data.preparation import load_case, publish, sources
from afw_jax.data.sets import channels, intensities
from afw_jax.data.sets.window import percentile_window
from afw_jax.errors import InputError

_WORTH_MOVING = 0.005  # sum of the shares of organs


def prepare_case(job: dict) -> dict:
  """Prepares a case, unless it has been prepared with the same options from the same files, and is whole.

  Args:
    job: 'id', 'case' (`CaseFiles`), 'stamps' (of its files), 'spec' (`DatasetSpec`), 'options', 'options_hash',
      'store' (folder) and, where it is wanted, 'resample_dicom' (True).

  Returns:
    {'id', 'problems' (list of InputError), 'meta' (case.json; None if there are problems), 'staged' (False if the case
    is already published)}.
  """
  case, spec = job['case'], job['spec']
  result = {'id': case.id, 'problems': [], 'meta': None, 'staged': True}
  try:
    digests = sources.digests(case)
    for meta, staged in publish.prepared(job['store'], case.id, job['options_hash'], verify=True):
      if meta['source_sha256'] == digests:
        return {**result, 'meta': meta, 'staged': staged}
    loaded = load_case.load_and_validate(case, spec, resample_dicom=job.get('resample_dicom', False))
    if loaded.problems:
      return {**result, 'problems': loaded.problems}
    centre = working_grid.central_grid(loaded.image, job['options'])
  except InputError as error:
    return {**result, 'problems': [error]}
  scan = loaded.image.array
  body = working_grid.find_body(loaded.image, centre, job['options'])
  complete, whole = field_of_view.complete(centre), field_of_view.covering(centre, body)
  whole_image = working_grid.resampled(scan, whole, job['options'])
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
  image, label = (
    np.ascontiguousarray(field_of_view.crop(array, grid, resampling))
    for array, grid in ((whole_image, whole), (whole_label, complete))
  )
  arrays = {
    'image': image,
    'label': label,
    'native_label': loaded.classes,
    'foreground': crops.foreground_voxels(label, case.id),
  }
  if whole.working != centre.working:
    arrays['whole'] = whole_image
  working_voxels = load_case.count_organs(label, spec.organs)
  cut_off = field_of_view.cut_off(voxels, working_voxels)
  of = channels.of_spec(spec)
  described = intensities.describe_channels(scan, of)
  window = channels.joined([list(percentile_window(channel.voxels(scan))) for channel in of])
  meta = dict(
    options_hash=job['options_hash'],
    source={'image': case.image, 'label': case.label, **({'others': list(case.others)} if case.others else {})},
    source_sha256=digests,
    source_stamps=job['stamps'],
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
  return {**result, 'meta': store.write_case(os.path.join(job['store'], store.STAGING), case.id, arrays, meta)}


def _cut_off_note(cut_off: dict[str, float]) -> list[str]:
  if not cut_off:
    return []
  parts = ', '.join(f'{max(share, 0.001):.1%} of {organ}' for organ, share in cut_off.items())
  return [f'the working grid cuts off {parts}, which training does not see: enlarge data.size, or use data.fit=resize']
