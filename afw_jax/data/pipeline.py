"""Training batches as a pure function of (seed, step): one global order, cut by rows among the ranks (Grain)."""

import functools
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags

from afw_jax.data import store
from afw_jax.errors import InputError

_OPEN_CASES = 64  # cases kept memory-mapped at once by one process; each holds a few file descriptors
_ENDLESS = 2**60  # rows; grain's own endless length overflows in batch(1)


def records(store_dir: str, case_ids: Sequence[str]) -> list[tuple[str, int]]:
  """Every axial slice of the named cases, in order: what a batch's 'index' points into.

  Args:
    store_dir: a prepared store.
    case_ids: cases of that store.

  Returns:
    One (case id, slice number) for each slice.

  Raises:
    InputError: no case is named, or cases differ in slice shape and so cannot share a batch.
  """
  if not case_ids:
    raise InputError(store_dir, 'no case to train on', 'Name at least one case id in the training split')
  found, first, first_id = [], None, None
  for case_id in case_ids:
    image = store.read_case(store_dir, case_id).arrays['image']
    kind = image.shape[1:]
    if first is None:
      first, first_id = kind, case_id
    if kind != first:
      raise InputError(f'{store_dir} case {case_id}',
                       f'slices are {kind} but those of {first_id} are {first}',
                       'Prepare every case with the same options into a new store')
    found += [(case_id, z) for z in range(image.shape[0])]
  return found


class SliceSource:
  """Random access to single slices of a store for Grain; holds paths only when it travels to a worker process."""

  def __init__(self, store_dir: str, case_ids: Sequence[str]):
    self.store_dir, self.case_ids = str(store_dir), tuple(case_ids)
    self.records = records(self.store_dir, self.case_ids)
    dtypes = {store.read_case(self.store_dir, case_id).arrays['image'].dtype for case_id in self.case_ids}
    self.dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)  # some scans have fractions: all as float32
    self._case = functools.lru_cache(_OPEN_CASES)(functools.partial(store.read_case, self.store_dir))

  def __reduce__(self):
    return type(self), (self.store_dir, self.case_ids)

  def __len__(self) -> int:
    return len(self.records)

  def __repr__(self) -> str:
    return f'SliceSource({self.store_dir!r}, {len(self.case_ids)} cases, {len(self)} slices)'

  def __getitem__(self, index) -> dict[str, np.ndarray]:
    case_id, z = self.records[int(index)]
    case = self._case(case_id)
    return {'image': np.array(case.arrays['image'][z], self.dtype)[..., None],  # copies one slice out of the memory map
            'label': np.array(case.arrays['label'][z]),
            'window': np.asarray(case.meta['window'], np.float32),
            'index': np.int32(index)}


def steps_per_epoch(n_records: int, batch_size: int) -> int:
  """Steps until every record has been seen at least once: ceil(n_records / batch_size)."""
  return -(-n_records // batch_size)


def train_batches(store_dir: str, case_ids: Sequence[str], *, batch_size: int, seed: int, start_step: int = 0,
                  rank: int = 0, world: int = 1, num_workers: int = 0, prefetch: int = 2,
                  source=None) -> Iterator[dict[str, np.ndarray]]:
  """This rank's rows of global batches start_step, start_step + 1, ... without end.

  The order is one endless stream, reshuffled each time the records are used up (each epoch holds every record once;
  a batch may straddle two epochs). Batch k is rows [k B, (k + 1) B) of it and rank r holds the r-th of `world` equal
  parts, so neither the start, nor the number of workers, nor the number of ranks changes a global batch, and nothing
  but the step number needs to be saved to go on.

  Args:
    store_dir: a prepared store.
    case_ids: the training cases.
    batch_size: rows of the global batch B.
    seed: seed of the order.
    start_step: first global batch to yield.
    rank, world: which of how many data-parallel parts this process reads.
    num_workers: reading processes; 0 reads in threads of this process, which is enough unless reading is slow.
    prefetch: batches kept ready.
    source: anything with len() and [index] -> dict of arrays of equal shapes (a patch or volume source, say) to read
      instead of the slices of the store.

  Returns:
    An iterator over dicts: image (B / world, H, W, 1) int16 or float32 raw intensities, label (B / world, H, W) uint8,
    window (B / world, 2) float32 (low, high), index (B / world,) int32 into `records(store_dir, case_ids)`. Reading
    ahead has begun; its close() ends it.

  Raises:
    InputError: batch_size does not divide among the ranks, or a number is out of range.
  """
  if world < 1 or not 0 <= rank < world:
    raise InputError('rank', f'{rank} of {world} ranks', 'Use 0 <= rank < world')
  if batch_size < 1 or batch_size % world:
    raise InputError('batch_size', f'{batch_size} rows cannot be shared equally by {world} ranks',
                     f'Use a multiple of {world}')
  for name, value, least in (('start_step', start_step, 0), ('num_workers', num_workers, 0), ('prefetch', prefetch, 1)):
    if value < least:
      raise InputError(name, f'is {value}', f'Use {least} or more')
  source = SliceSource(store_dir, case_ids) if source is None else source
  rows = grain.MapDataset.source(source).seed(seed).shuffle().repeat()[:_ENDLESS]
  # Cut into parts of B / world before slicing: rank r's rows stay contiguous in the global batch, as device meshes want.
  parts = rows.batch(batch_size // world)[start_step * world + rank::world]
  ahead = grain.ReadOptions(num_threads=min(2, prefetch), prefetch_buffer_size=prefetch)
  batches = parts.to_iter_dataset(ahead)
  if num_workers:
    if not flags.FLAGS.is_parsed():  # grain's worker processes read absl flags, which only a main run by absl parses
      flags.FLAGS.mark_as_parsed()
    batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=prefetch))
  iterator = iter(batches)
  iterator.start_prefetch()
  return iterator
