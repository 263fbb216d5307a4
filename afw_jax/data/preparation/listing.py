"""Listing of a data set: what is known about its scans before any of them is read."""

from collections.abc import Iterable

from afw_jax.data.sets.case_files import CaseFiles
from afw_jax.data.sets.spec import DatasetSpec


def make_listing(spec: DatasetSpec, files: Iterable[CaseFiles]) -> dict:
  """The listing that cases are selected from, as JSON; the index of a store keeps it.

  Args:
    spec: of the data set.
    files: its cases, from `layouts.find_cases`.

  Returns:
    'name', 'layout', 'in_hu', 'window' and 'fractions' (the defaults of the data set), 'channels' (where there are
    several), 'num_training', 'notes' (about its description), 'published' (ids of a published split), 'explicit_split'
    (whether dataset.json has a split), 'explicit_val' (whether that has a part val, be it empty), 'folds' (given ones:
    'train' and 'val' of each), and 'scans': case id -> 'subject', 'part', 'labelled', 'defect'.
  """
  several = {'channels': [list(channel) for channel in spec.channels]} if spec.channels else {}
  explicit = spec.source == 'nifti'  # dataset.json of the user's own folder
  return {
    'name': spec.name,
    'layout': spec.layout,
    'in_hu': spec.in_hu,
    'window': None if spec.window_hu is None else list(spec.window_hu),
    'fractions': list(spec.fractions),
    'num_training': spec.num_training,
    'notes': list(spec.notes),
    'published': [] if explicit else sorted(i for ids in spec.splits.values() for i in ids),
    'explicit_split': explicit and bool(spec.splits),
    'explicit_val': explicit and 'val' in spec.splits,
    **several,
    'folds': [{part: list(ids) for part, ids in fold.items()} for fold in spec.folds],
    'scans': {
      case.id: {
        'subject': case.subject,
        'part': case.split,
        'labelled': case.label is not None,
        'defect': spec.defects.get(case.id),
      }
      for case in files
    },
  }
