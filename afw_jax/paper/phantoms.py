"""Synthetic scans in the place of the data sets of the paper, a small folder for each of them."""

import os
from collections.abc import Iterable

from afw_jax.data.phantom.make import write_phantoms
from afw_jax.system import locks

_CASES = dict(shape=(10, 40, 40), matrix_jitter=2, slice_mm=(20.0, 22.0), num_new=0)
_WITHOUT_TEST = ('chaos', 'chaos_mr')  # as the data sets that they stand for


def write(workdir: str, sections: Iterable[str]) -> None:
  """Writes the scans that are not there yet into WORKDIR/phantoms; other processes may do so at the same time.

  Args:
    workdir: the folder of all runs.
    sections: names of recipes.
  """
  folder = os.path.join(workdir, 'phantoms')
  for section in sections:
    description = os.path.join(folder, section, 'dataset.json')  # which is written last
    if os.path.exists(description):
      continue
    with locks.locked(os.path.join(folder, '.lock')):
      if not os.path.exists(description):
        counts = dict(num_val=2, num_test=0) if section in _WITHOUT_TEST else dict(num_val=1, num_test=3)
        write_phantoms(os.path.join(folder, section), num_cases=8, seed=_seed(section), **counts, **_CASES)


def _seed(section: str) -> int:
  """Each set has scans of its own, the same ones in every workdir."""
  return int.from_bytes(section.encode()) % 2**32
