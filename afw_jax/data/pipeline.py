"""Training batches as a pure function of (seed, step): one global order, cut by rows among the ranks (Grain)."""

from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags

from afw_jax.data import store
from afw_jax.data.cases import Cases
from afw_jax.data.crops import CropSource
from afw_jax.errors import InputError

_ENDLESS = 2**60  # rows; grain's own endless length overflows in batch(1)


class SliceSource:
  """Random access to the axial slices of cases, for Grain.

  Args:
    store_dir: a prepared store.
    case_ids: cases of that store.

  Attributes:
    records: one (case id, slice number) for each slice: what a batch's 'index' points into.

  Raises:
    InputError: no case is named, or cases differ in slice shape and so cannot share a batch.
  """

  def __init__(self, store_dir: str, case_ids: Sequence[str]):
    self.cases = Cases(store_dir, case_ids)
    self.cases.check_equal(slice(1, 3), 'slices are', 'Prepare every case with the same options into a new store')
    self.records = [(case_id, z) for case_id, shape in self.cases.shapes.items() for z in range(shape[0])]

  def __len__(self) -> int:
    return len(self.records)

  def __repr__(self) -> str:
    return f'SliceSource({self.cases.store_dir!r}, {len(self.cases.ids)} cases, {len(self)} slices)'

  def __getitem__(self, index) -> dict[str, np.ndarray]:
    case_id, z = self.records[int(index)]
    return _element(self.cases, case_id, z, index)


class VolumeSource:
  """Random access to whole volumes, for Grain; `records` has one (case id,) for each.

  Args:
    store_dir: a prepared store.
    case_ids: cases of that store.

  Raises:
    InputError: no case is named, or cases differ in shape and so cannot share a batch.
  """

  def __init__(self, store_dir: str, case_ids: Sequence[str]):
    self.cases = Cases(store_dir, case_ids)
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

  def __getitem__(self, index) -> dict[str, np.ndarray]:
    return _element(self.cases, self.records[int(index)][0], slice(None), index)


Source = SliceSource | VolumeSource | CropSource


def _element(cases: Cases, case_id: str, part, index) -> dict[str, np.ndarray]:
  case = cases.open(case_id)
  return {
    'image': np.array(case.arrays['image'][part], cases.dtype)[..., None],  # copies it out of the memory map
    'label': np.array(case.arrays['label'][part]),
    'window': np.asarray(case.meta['window'], np.float32),
    'index': np.int32(index),
  }


def make_source(
  store_dir: str,
  case_ids: Sequence[str],
  patch_size: Sequence[int] | None = None,
  *,
  foreground: float = 1 / 3,
  crops_per_case: int = 1,
) -> Source:
  """The training samples of a store: slices where its working size is (h, w), volumes where it is (d, h, w), or crops.

  Args:
    store_dir: a prepared store.
    case_ids: cases of that store.
    patch_size: (d, h, w) of random crops, whatever the working size; None: whole slices or volumes.
    foreground, crops_per_case: of crops, as in `CropSource`.

  Returns:
    Something with len(), [index] and `records`, a list of tuples that begin with the case id.

  Raises:
    InputError: no finished store, no case, or cases that cannot share a batch.
  """
  if patch_size:
    return CropSource(store_dir, case_ids, patch_size, foreground=foreground, crops_per_case=crops_per_case)
  size = store.read_index(store_dir)['options']['size']
  return (VolumeSource if len(size) == 3 else SliceSource)(store_dir, case_ids)


def steps_per_epoch(n_records: int, batch_size: int) -> int:
  """Steps until every record has been seen at least once: ceil(n_records / batch_size)."""
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
  """This rank's rows of global batches start_step, start_step + 1, ... without end.

  The order is one endless stream, reshuffled each time the records are used up (each epoch holds every record once;
  a batch may straddle two epochs). Batch k is rows [k B, (k + 1) B) of it and rank r holds the r-th of `world` equal
  parts, so neither the start, nor the number of workers, nor the number of ranks changes a global batch, and nothing
  but the step number needs to be saved to go on. Where the source has a `draw` (crops), each row is drawn with a
  generator of its own, seeded by the seed and the row's place in the stream.

  Args:
    source: from `make_source`; or anything with len() and [index] -> dict of arrays of equal shapes.
    batch_size: rows of the global batch B.
    seed: seed of the order.
    start_step: first global batch to yield.
    rank, world: which of how many data-parallel parts this process reads.
    num_workers: reading processes; 0 reads in threads of this process, which is enough unless reading is slow.
    prefetch: batches kept ready (each worker process: one more), and so in memory.

  Returns:
    An iterator over dicts: image (B / world, *S, 1) int16 or float32 raw intensities, label (B / world, *S) uint8, window
    (B / world, 2) float32 (low, high), index (B / world,) int32 into `source.records`; S is (H, W) or (D, H, W).
    Reading ahead has begun; its close() ends it.

  Raises:
    InputError: batch_size does not divide among the ranks, or a number is out of range.
  """
  if world < 1 or not 0 <= rank < world:
    raise InputError('rank', f'{rank} of {world} ranks', 'Use 0 <= rank < world')
  if batch_size < 1 or batch_size % world:
    raise InputError(
      'batch_size', f'{batch_size} rows cannot be shared equally by {world} ranks', f'Use a multiple of {world}'
    )
  for name, value, least in (('start_step', start_step, 0), ('num_workers', num_workers, 0), ('prefetch', prefetch, 1)):
    if value < least:
      raise InputError(name, f'is {value}', f'Use {least} or more')
  rows = grain.MapDataset.source(source).seed(seed).shuffle().repeat()[:_ENDLESS]
  if hasattr(source, 'draw'):
    rows = rows.random_map(source.draw)
  # Cut into parts of B / world before slicing: rank r's rows stay contiguous in the global batch, as device meshes want.
  parts = rows.batch(batch_size // world)[start_step * world + rank :: world]
  ahead = grain.ReadOptions(num_threads=min(2, prefetch), prefetch_buffer_size=prefetch)
  batches = parts.to_iter_dataset(ahead)
  if num_workers:
    if not flags.FLAGS.is_parsed():  # grain's worker processes read absl flags, which only a main run by absl parses
      flags.FLAGS.mark_as_parsed()
    batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=1))
  iterator = iter(batches)
  iterator.start_prefetch()
  return iterator
