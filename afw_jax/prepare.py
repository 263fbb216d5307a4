"""Prepares the data set of a config: where its store is missing, new scans have come, or it is asked for."""

import logging
import os

import ml_collections

from afw_jax import workdir as run_folder
from afw_jax.config import build
from afw_jax.data.preparation import prepare as preparation
from afw_jax.data.preparation.shard import parse_shard
from afw_jax.errors import InputError

_log = logging.getLogger('afw_jax')


def prepare(
  config: ml_collections.ConfigDict, workdir: str, store_dir: str, *, anew: bool, shard: str, scheduler: str | None
) -> None:
  """Prepares what the store of a config lacks.

  Args:
    config: `data` says which data set, and how it is resampled.
    workdir: of the run; one that has begun training keeps to the cases that it began with.
    store_dir: where the prepared scans go.
    anew: prepare again although the store is there.
    shard: 'i/n', the part of the cases that this process prepares; '' for the SLURM array task's, or all.
    scheduler: address or file of a Dask scheduler, or None.

  Raises:
    InputError, InputErrors: what is wrong with the data set, or a store that was prepared with other options.
  """
  data, choices = config.data, build.data_choices(config.data)
  if os.path.exists(os.path.join(store_dir, 'dataset.json')) and not anew:
    differing = preparation.differences(store_dir, data.dataset, data.root, **choices)
    if differing:
      raise InputError(
        store_dir,
        f'this store was prepared with other options: {differing} (in the store, wanted)',
        'Choose another data.store, or prepare it again with --mode=prepare.',
      )
    begun = run_folder.begun(workdir)
    new = (
      [] if begun or not os.path.isdir(data.root) else preparation.added(store_dir, data.dataset, data.root, **choices)
    )
    if not new:
      return
    _log.info('%d scans are new in %s (%s ...): preparing them', len(new), data.root, new[0])
  index = preparation.prepare(
    data.dataset,
    data.root,
    store_dir,
    workers=config.runtime.workers or None,
    scheduler=scheduler,
    shard=parse_shard(shard, os.environ) if anew else None,
    **choices,
  )
  if index is None:  # other shards are still at work
    return
  for case_id, reason in index['excluded'].items():
    _log.warning('left out: %s (%s)', case_id, reason)
  for note in index['notes']:
    _log.info('%s', note)
  _log.info('prepared %s into %s', ', '.join(f'{len(ids)} {part}' for part, ids in index['splits'].items()), store_dir)
