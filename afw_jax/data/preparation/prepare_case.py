"""Preparation of one case: from its files to the staging folder of a store."""

import os

from afw_jax.data import crops, resample, store, working_grid
from afw_jax.data.preparation import load_case, publish, sources
from afw_jax.data.sets.window import percentile_window
from afw_jax.errors import InputError


def prepare_case(job: dict) -> dict:
  """Prepares a case, unless it has been prepared with the same options from the same files.

  Args:
    job: 'id', 'case' (`CaseFiles`), 'stamps' (of its files), 'spec' (`DatasetSpec`), 'options', 'options_hash' and
      'store' (folder).

  Returns:
    {'id', 'problems' (list of InputError), 'meta' (case.json; None if there are problems), 'staged' (False if the case
    is already published)}.
  """
  case, spec = job['case'], job['spec']
  result = {'id': case.id, 'problems': [], 'meta': None, 'staged': True}
  try:
    digests = sources.digests(case)
    for meta, staged in publish.prepared(job['store'], case.id, job['options_hash']):
      if meta['source_sha256'] == digests:
        return {**result, 'meta': meta, 'staged': staged}
    loaded = load_case.load_and_validate(case, spec)
    if loaded.problems:
      return {**result, 'problems': loaded.problems}
    resampling, image = working_grid.to_working_grid(loaded.image, job['options'])
  except InputError as error:
    return {**result, 'problems': [error]}
  label = resample.to_working(loaded.classes, resampling, 0)
  arrays = {
    'image': image,
    'label': label,
    'native_label': loaded.classes,
    'foreground': crops.foreground_voxels(label, case.id),
  }
  scan = loaded.image.array
  meta = dict(
    options_hash=job['options_hash'],
    source={'image': case.image, 'label': case.label},
    source_sha256=digests,
    source_stamps=job['stamps'],
    voxels_sha256=load_case.voxels_digest(scan),
    notes=loaded.notes,
    shape=list(resampling.working),
    spacing_mm=list(resampling.spacing_mm),
    native_shape=list(resampling.native),
    native_spacing_mm=list(resampling.native_spacing_mm),
    geometry=loaded.image.geometry.to_json(),
    resampling=resampling.to_json(),
    percentile_window=list(percentile_window(scan)),
    voxels=loaded.voxels,
    working_voxels=load_case.count_organs(label, spec.organs),
  )
  return {**result, 'meta': store.write_case(os.path.join(job['store'], store.STAGING), case.id, arrays, meta)}
