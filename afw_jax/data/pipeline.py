"""Training batches as a pure function of (seed, step): one global order of samples, divided among the processes."""

from collections.abc import Iterator, Mapping, Sequence

import grain
import numpy as np
from absl import flags

from afw_jax.data import store
from afw_jax.data.cases import Cases
from afw_jax.data.crops import CropSource
from afw_jax.errors import InputError

_ENDLESS = 2**60  # rows; Grain's infinite length overflows in batch(1)


class SliceSource:
  """The axial slices of cases.

  Args:
    store_dir: a prepared store.
    case_ids: ids of cases in the store.
    windows: case id -> (low, high) of its intensity window.

  Attributes:
    records: one (case id, slice number) for each slice; 'index' of a batch refers to this list.

  Raises:
    InputError: no case ids, or slices of different shapes, which cannot be batched.
  """

  def __init__(self, store_dir: str, case_ids: Sequence[str], windows: Mapping[str, Sequence[float]]):
    self.cases = Cases(store_dir, case_ids, windows)
    self.cases.check_equal(slice(1, 3), 'slices are', 'Prepare every case with the same options into a new store')
    self.records = [(case_id, z) for case_id, shape in self.cases.shapes.items() for z in range(shape[0])]

  def __len__(self) -> int:
    return len(self.records)

  def __repr__(self) -> str:
    return f'SliceSource({self.cases.store_dir!r}, {len(self.cases.ids)} cases, {len(self)} slices)'

  def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """A batch of the slices with these numbers."""
    return _read(self.cases, [self.records[int(i)] for i in indices], indices)


class VolumeSource:
  """Whole volumes of cases.

  Args:
    store_dir: a prepared store.
    case_ids: ids of cases in the store.
    windows: case id -> (low, high) of its intensity window.

  Attributes:
    records: one (case id,) for each volume.

  Raises:
    InputError: no case ids, or volumes of different shapes, which cannot be batched.
  """

  def __init__(self, store_dir: str, case_ids: Sequence[str], windows: Mapping[str, Sequence[float]]):
    self.cases = Cases(store_dir, case_ids, windows)
    self.cases.check_equal(
      slice(None),
      'volumes are',
      'Set train.patch_size (d, h, w) to train on crops of one size, or '
      'prepare all volumes with one data.size (d, h, w)',
    )
    self.records = [(case_id,) for case_id in self.cases.ids]

  def __len__(self) -> int:
    return len(self.records)

  def __repr__(self) -> str:
    return f'VolumeSource({self.cases.store_dir!r}, {len(self)} volumes)'

  def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """A batch of the volumes with these numbers."""
    return _read(self.cases, [(*self.records[int(i)], slice(None)) for i in indices], indices)


Source = SliceSource | VolumeSource | CropSource


def _read(cases: Cases, parts: Sequence[tuple], indices: Sequence[int]) -> dict[str, np.ndarray]:
  """Copies one part of a case, (case id, index of its arrays), to each row of a batch."""
  batch: dict[str, np.ndarray] = {
    'window': np.array([cases.windows[case_id] for case_id, _ in parts], np.float32),
    'index': np.asarray(indices, np.int32),
  }
  for row, (case_id, part) in enumerate(parts):
    arrays = cases.open(case_id).arrays
    image, label = arrays['image'][part], arrays['label'][part]
    if not row:
      batch['image'] = np.empty((len(parts), *label.shape, image.size // label.size), cases.dtype)
      batch['label'] = np.empty((len(parts), *label.shape), label.dtype)
    batch['image'][row], batch['label'][row] = image.reshape(*label.shape, -1), label
  return batch


def make_source(
  store_dir: str,
  case_ids: Sequence[str],
  windows: Mapping[str, Sequence[float]],
  patch_size: Sequence[int] | None = None,
  *,
  foreground: float = 1 / 3,
  crops_per_case: int = 1,
) -> Source:
  """The training samples of a store: slices if its working size is (h, w), volumes if it is (d, h, w), or crops.

  Args:
    store_dir: a prepared store.
    case_ids: ids of cases in the store.
    windows: case id -> (low, high) of its intensity window.
    patch_size: (d, h, w) of random crops, for any working size; None: whole slices or volumes.
    foreground: see `CropSource`.
    crops_per_case: see `CropSource`.

  Returns:
    A data source: len(), `read` or `draw`, and `records`, a list of tuples that start with the case id.

  Raises:
    InputError: no complete store, no case ids, or samples of different shapes, which cannot be batched.
  """
  if patch_size:
    return CropSource(store_dir, case_ids, windows, patch_size, foreground=foreground, crops_per_case=crops_per_case)
  size = store.read_index(store_dir)['options']['size']
  return (VolumeSource if len(size) == 3 else SliceSource)(store_dir, case_ids, windows)


def steps_per_epoch(n_records: int, batch_size: int) -> int:
  """Steps until every record has been used at least once: ceil(n_records / batch_size)."""
  return -(-n_records // batch_size)


def train_batches(
  source: Source,
  *,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  rank: int = 0,
  world: int = 1,
  num_workers: int = 0,
  prefetch: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
  """This rank's rows of the global batches start_step, start_step + 1, ... without end.

  The samples form one endless stream that is reshuffled every epoch: each epoch has every record once, and a batch may
  span two epochs. Batch k is rows [k B, (k + 1) B) of the stream, and rank r has the r-th of `world` equal parts. So a
  global batch depends neither on the start nor on the number of workers or ranks, and resuming needs only the step
  number. If the source has a method `draw` (crops), every row is drawn with its own generator, which is seeded by the
  seed and the position of the row in the stream.

  Args:
    source: from `make_source`; or anything with len(), and `read` (indices -> batch) or `draw`.
    batch_size: rows B of the global batch.
    seed: of the order.
    start_step: first global batch.
    rank: data-parallel rank of this process.
    world: number of ranks.
    num_workers: worker processes for reading; 0: threads of this process, which suffice unless reading is slow.
    prefetch: batches kept ready in memory (each worker process adds one).

  Returns:
    An iterator over dicts: image (B / world, *S, channels) int16 or float32 raw intensities; label (B / world, *S)
    uint8; window (B / world, 2) float32 (low, high), of several channels (B / world, channels, 2); index (B / world,)
    int32 into `source.records`. S is (H, W) or (D, H, W). It prefetches from the start; close() ends it.

  Raises:
    InputError: batch_size is not a multiple of `world`, or a number is out of range.
  """
  if world < 1 or not 0 <= rank < world:
    raise InputError('rank', f'is {rank} of {world} ranks', 'Use 0 <= rank < world')
  if batch_size < 1 or batch_size % world:
    raise InputError(
      'batch_size', f'{batch_size} rows cannot be divided equally among {world} ranks', f'Use a multiple of {world}'
    )
  for name, value, least in (('start_step', start_step, 0), ('num_workers', num_workers, 0), ('prefetch', prefetch, 1)):
    if value < least:
      raise InputError(name, f'is {value}', f'Use {least} or more')
  rows = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()[:_ENDLESS]
  draw = getattr(source, 'draw', None)
  # Batches of B / world before slicing keep the rows of a rank contiguous in the global batch, as device meshes need.
  parts = (rows.random_map(draw) if draw else rows).batch(batch_size // world)[start_step * world + rank :: world]
  if not draw:
    parts = parts.map(source.read)  # whole batches of numbers: a row in Python costs more than copying a slice
  options = grain.ReadOptions(num_threads=min(2, prefetch), prefetch_buffer_size=prefetch)
  batches = parts.to_iter_dataset(options)
  if num_workers:
    if not flags.FLAGS.is_parsed():  # Grain's worker processes read absl flags, which are parsed only by absl's app.run
      flags.FLAGS.mark_as_parsed()
    batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=1))
  iterator = iter(batches)
  iterator.start_prefetch()
  return iterator
