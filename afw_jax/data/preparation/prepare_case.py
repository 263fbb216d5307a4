"""Preparation of one case: from its files to the staging folder of a store."""

import os

import numpy as np

from afw_jax.data import crops, field_of_view, store, working_grid
from afw_jax.data.preparation import publish, sources
from afw_jax.data.preparation.examine_case import examine
from afw_jax.errors import InputError, InputErrors


def prepare_case(job: dict) -> dict:
  """Prepares a case, unless it has been prepared with the same options from the same files, and is whole.

  Args:
    job: 'id', 'case' (`CaseFiles`), 'stamps' (of its files), 'spec' (`DatasetSpec`), 'options', 'options_hash',
      'store' (folder) and, where it is wanted, 'resample_dicom' (True).

  Returns:
    {'id', 'problems' (list of InputError), 'meta' (case.json; None if there are problems), 'staged' (False if the case
    is already published)}.
  """
  case = job['case']
  result = {'id': case.id, 'problems': [], 'meta': None, 'staged': True}
  try:
    digests = sources.digests(case)
    for meta, staged in publish.prepared(job['store'], case.id, job['options_hash'], verify=True):
      if meta['source_sha256'] == digests:
        return {**result, 'meta': meta, 'staged': staged}
    found = examine(case, job['spec'], job['options'], resample_dicom=job.get('resample_dicom', False))
  except InputError as error:
    return {**result, 'problems': [error]}
  except InputErrors as errors:
    return {**result, 'problems': errors.errors}
  whole_image = working_grid.resampled(found.image.array, found.whole, job['options'])
  arrays = {
    'image': np.ascontiguousarray(field_of_view.crop(whole_image, found.whole, found.resampling)),
    'label': found.label,
    'native_label': found.classes,
    'foreground': crops.foreground_voxels(found.label, case.id),
  }
  if found.widened:
    arrays['whole'] = whole_image
  meta = dict(options_hash=job['options_hash'], source_sha256=digests, source_stamps=job['stamps'], **found.meta)
  return {**result, 'meta': store.write_case(os.path.join(job['store'], store.STAGING), case.id, arrays, meta)}
