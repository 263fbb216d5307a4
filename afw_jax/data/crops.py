"""Random crops of volumes, a given fraction of them around organs; reads only the voxels of the crop."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from afw_jax.data.cases import Cases
from afw_jax.data.sets.spec import IGNORED
from afw_jax.data.sets.window import is_of_channels
from afw_jax.errors import InputError

VOXELS_PER_CLASS = 500  # stored per case: enough positions to crop around, in little space


def foreground_voxels(label: np.ndarray, case_id: str) -> np.ndarray:
  """Samples voxels of every organ, so that crops can be placed around organs without reading the label map.

  Args:
    label: (D, H, W) class ids, 0 is the background; ignored voxels are no organ.
    case_id: seed of the sample.

  Returns:
    (n, 4) int32 rows (class, z, y, x), sorted by class and position: up to 500 of each class.
  """
  rng = np.random.default_rng(
    int.from_bytes(hashlib.sha256(case_id.encode(errors='surrogateescape')).digest()[:8], 'big')
  )
  at = np.flatnonzero((label != 0) & (label != IGNORED))
  classes = label.ravel()[at]
  rows = [np.empty((0, 4), np.int32)]
  for c in np.unique(classes):
    voxels = at[classes == c]
    if len(voxels) > VOXELS_PER_CLASS:
      voxels = np.sort(rng.choice(voxels, VOXELS_PER_CLASS, replace=False, shuffle=False))
    rows.append(np.stack([np.full(len(voxels), c), *np.unravel_index(voxels, label.shape)], 1).astype(np.int32))
  return np.concatenate(rows)


def read_crop(array: np.ndarray, start: Sequence[int], size: Sequence[int], fill: float | np.ndarray) -> np.ndarray:
  """Copies array[start:start + size]; of a memory map, only these elements are read.

  Args:
    array: of any rank.
    start: first element along each of the first axes; may be negative.
    size: of the crop along these; other axes (the channels) are taken whole.
    fill: value of elements outside the array, or one for each channel.

  Returns:
    An array of shape `size`, and the other axes.
  """
  source = tuple(slice(max(s, 0), min(s + n, m)) for s, n, m in zip(start, size, array.shape))
  if all(part.stop - part.start == n for part, n in zip(source, size)):
    return np.array(array[source])
  out = np.full((*size, *array.shape[len(size) :]), fill, array.dtype)
  out[tuple(slice(part.start - s, part.stop - s) for part, s in zip(source, start))] = array[source]
  return out


def darkest(window: Sequence, dtype: np.dtype) -> float | np.ndarray:
  """The value of this dtype that fills the outside of a scan, or of each channel: the window maps it to 0."""
  if is_of_channels(window):
    return np.array([darkest(one, dtype) for one in window], dtype)
  if np.issubdtype(dtype, np.floating):
    return float(window[0])
  limits = np.iinfo(dtype)
  return int(np.clip(np.floor(window[0]), limits.min, limits.max))


class CropSource:
  """Random crops of one size from volumes of any size.

  A record only identifies its case; `draw` makes the crop, with the random generator of its position in the stream.
  A fraction of the crops contains an organ, as in nnU-Net (Isensee F. et al., Nature Methods 18:203-211, 2021, doi
  10.1038/s41592-020-01008-z), where it is a third of each batch.

  Args:
    store_dir: a prepared store.
    case_ids: ids of cases in the store.
    windows: case id -> (low, high) of its intensity window.
    patch_size: (d, h, w) voxels of a crop. Smaller volumes are padded evenly at both ends, the image with the low end
      of its intensity window, the label map with background.
    foreground: probability that a crop contains a random voxel of a random organ of the case, at a random position
      inside the crop; the other crops are uniformly distributed.
    crops_per_case: crops of each case in one epoch.

  Attributes:
    records: one (case id, number) for each crop of an epoch.

  Raises:
    InputError: an invalid size, probability or number, or a case without the arrays that crops need.
  """

  def __init__(
    self,
    store_dir: str,
    case_ids: Sequence[str],
    windows: Mapping[str, Sequence[float]],
    patch_size: Sequence[int],
    *,
    foreground: float = 1 / 3,
    crops_per_case: int = 1,
  ):
    if len(patch_size) != 3 or any(n != int(n) or n < 1 for n in patch_size):
      raise InputError(f'patch_size {tuple(patch_size)}', 'is not a valid size', 'Give whole numbers (d, h, w) above 0')
    if not 0 <= foreground <= 1:
      raise InputError(f'foreground {foreground}', 'is not a probability', 'Give a number from 0 to 1')
    if crops_per_case != int(crops_per_case) or crops_per_case < 1:
      raise InputError(f'crops_per_case {crops_per_case}', 'is not a valid number', 'Give a whole number, 1 or more')
    self.patch_size, self.foreground, self.crops_per_case = tuple(map(int, patch_size)), foreground, int(crops_per_case)
    self.cases = Cases(store_dir, case_ids, windows, ('image', 'label', 'foreground'))
    self.records = [(case_id, k) for case_id in self.cases.ids for k in range(self.crops_per_case)]

  def __len__(self) -> int:
    return len(self.records)

  def __repr__(self) -> str:
    return f'CropSource({self.cases.store_dir!r}, {len(self.cases.ids)} cases, {self.patch_size} crops)'

  def draw(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A crop of the case of a record; a pure function of its number and the state of the generator."""
    case = self.cases.open(self.records[int(index)][0])
    size = np.array(self.patch_size)
    spare = np.array(self.cases.shapes[case.id]) - size
    low, high = np.where(spare < 0, -(-spare // 2), 0), np.where(spare < 0, -(-spare // 2), spare)
    voxels = np.asarray(case.arrays['foreground'])
    if len(voxels) and rng.random() < self.foreground:
      voxels = voxels[voxels[:, 0] == rng.choice(np.unique(voxels[:, 0])), 1:]
      voxel = voxels[rng.integers(len(voxels))]
      low, high = np.maximum(low, voxel - size + 1), np.minimum(high, voxel)
    start = rng.integers(low, high + 1)
    fill = darkest(self.cases.windows[case.id], case.arrays['image'].dtype)
    image = read_crop(case.arrays['image'], start, self.patch_size, fill)
    return {
      'image': image.astype(self.cases.dtype, copy=False).reshape(*self.patch_size, -1),
      'label': read_crop(case.arrays['label'], start, self.patch_size, 0),
      'window': np.asarray(self.cases.windows[case.id], np.float32),
      'index': np.int32(index),
    }
