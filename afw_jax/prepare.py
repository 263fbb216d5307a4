"""Prepares the scans that a run needs and its store lacks."""

import dataclasses
import logging
import os
import time

import ml_collections

from afw_jax.config import build
from afw_jax.data import store
from afw_jax.data.preparation import prepare as preparation
from afw_jax.data.preparation import publish
from afw_jax.data.preparation.shard import parse_shard
from afw_jax.data.selection import SelectionOptions, select
from afw_jax.errors import InputError, InputErrors
from afw_jax.training import checkpoint

_log = logging.getLogger('afw_jax')

_SUCCESSION_S = 1  # for another process that waits, too, and goes on preparing where one was killed


def prepare(
  config: ml_collections.ConfigDict, workdir: str, store_dir: str, *, anew: bool, shard: str, scheduler: str | None
) -> None:
  """Prepares the cases that a run uses, unless its store has them.

  Runs with the same voxels share a store, which may hold more cases than a run uses.

  Args:
    config: `data` names the data set, and how it is resampled and split.
    workdir: of the run. A run that has begun training keeps its cases, even if the data set has grown.
    store_dir: folder of the store.
    anew: verify the prepared cases against their source files, and prepare those again that have changed.
    shard: 'i/n', the part of the cases that this process prepares; '': that of the SLURM array task, or all.
    scheduler: address or file of a Dask scheduler, or None.

  Raises:
    InputError, InputErrors: what is wrong with the data set, or a store that was prepared with other options.
  """
  data, options, selected = config.data, build.store_options(config.data), build.selection_options(config.data)
  meta = checkpoint.read_meta(os.path.join(workdir, 'checkpoints', 'last'))
  splits = meta and meta['data']['splits']
  if splits:
    selected = dataclasses.replace(selected, cases=[case_id for ids in splits.values() for case_id in ids])
  if os.path.exists(os.path.join(store_dir, 'dataset.json')) and not anew:
    differing = preparation.differences(store_dir, options, data.root)
    if differing:
      raise InputError(
        store_dir,
        f'this store was prepared with other options: {differing} (in the store, wanted)',
        'Choose another data.store, or prepare it again with --mode=prepare.',
      )
    index = store.read_index(store_dir)
    if splits and set(selected.cases) <= index['cases'].keys():
      return
    reason = preparation.outdated(store_dir, options, data.root, selected) if os.path.isdir(data.root) else ''
    if not reason:
      if not splits:
        _log_selection(index, selected, store_dir)
      return
    _log.info('%s: preparing', reason)
  index = preparation.prepare(
    options,
    data.root,
    store_dir,
    selected,
    verify=anew,
    workers=config.runtime.workers or None,
    scheduler=scheduler,
    shard=parse_shard(shard, os.environ) if anew else None,
  )
  if index is not None:  # else other shards are still at work
    _log_selection(index, selected, store_dir)


def wait_for_others(config: ml_collections.ConfigDict, workdir: str, store_dir: str) -> None:
  """Waits where the store lacks cases of a run and another process is preparing it; for modes that prepare nothing.

  Args:
    config: `data` names the cases.
    workdir: of the run.
    store_dir: folder of the store.
  """
  while True:
    try:
      recorded = checkpoint.read_meta(os.path.join(workdir, 'checkpoints', 'last'))
      build.selection(config, store.read_index(store_dir), recorded)
      return
    except (InputError, InputErrors):  # the mode itself reports what is still wrong when nobody prepares
      if not publish.wait_for_others(store_dir):
        return
    time.sleep(_SUCCESSION_S)


def _log_selection(index: dict, selected: SelectionOptions, store_dir: str) -> None:
  selection = select(index, selected)
  for case_id, reason in selection.excluded.items():
    _log.warning('left out: %s (%s)', case_id, reason)
  for note in selection.notes:
    _log.info('%s', note)
  counts = ', '.join(f'{len(ids)} {part}' for part, ids in selection.splits.items())
  _log.info('prepared cases: %s, in %s', counts, store_dir)
