"""Random access to the cases of a store, memory-mapped, all of them if the process may open so many files."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from afw_jax.data import resources, store
from afw_jax.data.sets.window import plain
from afw_jax.errors import InputError

_OTHER_FILES = 256  # that a process may need beside the arrays, each of which holds a file descriptor
_LEAST_OPEN = 64


class Cases:
  """Cases of a store by id; pickled as a path, without the arrays.

  Args:
    store_dir: a prepared store.
    case_ids: ids of cases in the store.
    windows: case id -> (low, high) of its intensity window, or one for each of several channels.
    needs: names of the arrays that every case must have.
    contents: case id -> the `store.content_digest` that it must have; None: the one that it has now.

  Attributes:
    ids: the case ids.
    windows: case id -> the same as tuples of floats.
    shapes: case id -> (D, H, W) of the working grid.
    dtype: common dtype of the images in a batch: int16, or float32 if any scan is float32.
    open: case id -> `store.Case` with the arrays `needs`, cached.

  Raises:
    InputError: no case ids, or a case that is missing, damaged or lacks an array.
  """

  def __init__(
    self,
    store_dir: str,
    case_ids: Sequence[str],
    windows: Mapping[str, Sequence[float]],
    needs: Sequence[str] = ('image', 'label'),
    contents: Mapping[str, str] | None = None,
  ):
    self.store_dir, self.ids, self.needs = str(store_dir), tuple(case_ids), tuple(needs)
    self.windows = {case_id: plain(windows[case_id]) for case_id in self.ids}
    if not self.ids:
      raise InputError(store_dir, 'there is no case to train on', 'Put at least one case into the training split')
    self.open = functools.lru_cache(_most_open(len(self.needs)))(self._read)
    self.shapes, self._contents, dtypes = {}, dict(contents or {}), set()
    for case_id in self.ids:
      case = self.open(case_id)
      self._contents[case_id] = store.content_digest(case.meta)
      self.shapes[case_id] = case.arrays['image'].shape[:3]
      dtypes.add(case.arrays['image'].dtype)
    self.dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)

  def __reduce__(self):
    return type(self), (self.store_dir, self.ids, self.windows, self.needs, self._contents)

  def _read(self, case_id: str) -> store.Case:
    case = store.read_case(self.store_dir, case_id, content=self._contents.get(case_id))
    missing = sorted(set(self.needs) - set(case.arrays))
    if missing:
      raise InputError(
        f'{self.store_dir} case {case_id}',
        f'has no array {", ".join(missing)} (prepared by an older version?)',
        'Run --mode=prepare again',
      )
    return dataclasses.replace(case, arrays={name: case.arrays[name] for name in self.needs})

  def check_equal(self, axes: slice, what: str, cure: str) -> None:
    """Raises InputError for the first case whose shape along these axes differs from that of the others."""
    first, size = self.ids[0], self.shapes[self.ids[0]][axes]
    for case_id, shape in self.shapes.items():
      if shape[axes] != size:
        raise InputError(
          f'{self.store_dir} case {case_id}', f'{what} {shape[axes]} but those of {first} are {size}', cure
        )


def _most_open(arrays: int) -> int:
  """How many cases of so many arrays this process may keep open."""
  return max(_LEAST_OPEN, (resources.open_files() - _OTHER_FILES) // arrays)
