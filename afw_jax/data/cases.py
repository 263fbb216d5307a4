"""Random access to the cases of a store, a limited number of them memory-mapped at a time."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from afw_jax.data import store
from afw_jax.errors import InputError

OPEN = 64  # cases memory-mapped at once by one process; each holds a few file descriptors


class Cases:
  """Cases of a store by id; pickled as a path, without the arrays.

  Args:
    store_dir: a prepared store.
    case_ids: ids of cases in the store.
    windows: case id -> (low, high) of its intensity window.
    needs: names of the arrays that every case must have.
    contents: case id -> the `store.content_digest` that it must have; None: the one that it has now.

  Attributes:
    ids: the case ids.
    windows: case id -> (low, high).
    shapes: case id -> (D, H, W) of the working grid.
    dtype: common dtype of the images in a batch: int16, or float32 if any scan is float32.
    open: case id -> `store.Case`, cached.

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
    self.windows = {case_id: tuple(map(float, windows[case_id])) for case_id in self.ids}
    if not self.ids:
      raise InputError(store_dir, 'there is no case to train on', 'Put at least one case into the training split')
    self.shapes, self._contents, dtypes = {}, {}, set()
    for case_id in self.ids:
      case = store.read_case(self.store_dir, case_id, content=contents and contents[case_id])
      arrays, self._contents[case_id] = case.arrays, store.content_digest(case.meta)
      missing = sorted(set(self.needs) - set(arrays))
      if missing:
        raise InputError(
          f'{store_dir} case {case_id}',
          f'has no array {", ".join(missing)} (prepared by an older version?)',
          'Run --mode=prepare again',
        )
      self.shapes[case_id] = arrays['image'].shape
      dtypes.add(arrays['image'].dtype)
    self.dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    self.open = functools.lru_cache(OPEN)(self._read)

  def __reduce__(self):
    return type(self), (self.store_dir, self.ids, self.windows, self.needs, self._contents)

  def _read(self, case_id: str) -> store.Case:
    return store.read_case(self.store_dir, case_id, content=self._contents[case_id])

  def check_equal(self, axes: slice, what: str, cure: str) -> None:
    """Raises InputError for the first case whose shape along these axes differs from that of the others."""
    first, size = self.ids[0], self.shapes[self.ids[0]][axes]
    for case_id, shape in self.shapes.items():
      if shape[axes] != size:
        raise InputError(
          f'{self.store_dir} case {case_id}', f'{what} {shape[axes]} but those of {first} are {size}', cure
        )
