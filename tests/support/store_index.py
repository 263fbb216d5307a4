"""The listing of a data set and the index of its store, without any file."""

import dataclasses
import json

from afw_jax.data.preparation.listing import make_listing
from afw_jax.data.sets.case_files import CaseFiles
from afw_jax.data.sets.lookup import get_spec

CHAOS = [f'case_{n:02d}' for n in (1, 2, 5, 6, 8, 10, 14, 16, 18, 19, *range(21, 31))]


def listing(name, ids, **changes):
  """The listing of a data set with these case ids; through JSON, as in the index of a store."""
  spec = dataclasses.replace(get_spec(name), **changes)
  part_of = {i: part for part, ids in spec.splits.items() for i in ids}
  files = [CaseFiles(i, f'{i}.nii', f'{i}_label.nii', part_of.get(i), i) for i in ids]
  return json.loads(json.dumps(make_listing(spec, files)))


def case(number, **changes):
  return {
    'percentile_window': [float(number), 100.5 + number],
    'voxels': {'liver': 5},
    'working_voxels': {'liver': 3},
    'voxels_sha256': str(number),
    'content_sha256': f'content {number}',
    'source': {'image': f'scan{number}.nii'},
    'notes': [],
    **changes,
  }


def index(prepared=CHAOS, listed=CHAOS, **cases):
  return {
    'name': 'chaos_ct',
    'modality': 'CT',
    'organs': ['liver'],
    'output_ids': {'liver': 1},
    'options': {'size': [32, 32], 'order': 3},
    'listing': listing('chaos_ct', listed),
    'cases': {i: case(int(i[-2:]), **cases.get(i, {})) for i in prepared},
  }
