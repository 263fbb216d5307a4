"""Prepares the scans that a run needs, and that its store lacks or has from other files."""

import dataclasses
import logging
import os
import time
from collections.abc import Mapping, Sequence

import ml_collections

from afw_jax.config import build
from afw_jax.data import run_record, store, usual
from afw_jax.data.preparation import prepare as preparation
from afw_jax.data.preparation import publish
from afw_jax.data.preparation.shard import parse_shard
from afw_jax.data.selection import SelectionOptions, select
from afw_jax.data.sets.case_files import abbreviate
from afw_jax.data.sets.lookup import get_spec
from afw_jax.errors import InputError, InputErrors
from afw_jax.training import checkpoint

_log = logging.getLogger('afw_jax')

_SUCCESSION_S = 1  # for another process that waits, too, and goes on preparing where one was killed


def prepare(
  config: ml_collections.ConfigDict,
  workdir: str,
  store_dir: str,
  *,
  anew: bool,
  shard: str,
  scheduler: str | None,
  resample_dicom: bool = False,
) -> None:
  """Prepares the cases that a run uses, unless its store has them.

  Runs with the same voxels share a store, which may hold more cases than a run uses.

  Args:
    config: `data` names the data set, and how it is resampled and split.
    workdir: of the run. A run that has begun training keeps its cases, even if the data set has grown; it is refused
      if the files of its training or validation cases have changed (with `anew` they are prepared, and training is
      refused where their content has changed).
    store_dir: folder of the store.
    anew: verify the prepared cases against their source files, and prepare those again that have changed.
    shard: 'i/n', the part of the cases that this process prepares; '': that of the SLURM array task, or all.
    scheduler: address or file of a Dask scheduler, or None.
    resample_dicom: interpolate tilted or unevenly spaced DICOM slices, which are refused otherwise, to an even grid.

  Raises:
    InputError, InputErrors: what is wrong with the data set, or a store that was prepared with other options.
  """
  data, options, selected = config.data, build.store_options(config.data), build.selection_options(config.data)
  splits = _recorded_splits(config.data, workdir)
  if splits:
    selected = dataclasses.replace(selected, cases=_all_ids(splits), fold='')
  if os.path.exists(os.path.join(store_dir, 'dataset.json')) and not anew:
    _check_options(config, store_dir)
    index = store.read_index(store_dir)
    if splits and set(selected.cases) <= index['cases'].keys():
      changed = _changed_behind(config, workdir, store_dir, splits)
      if not changed:
        return
      selected, reason = dataclasses.replace(selected, cases=sorted(changed)), 'files have changed'
    else:
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
    resample_dicom=resample_dicom,
    shard=parse_shard(shard, os.environ) if anew else None,
  )
  if index is None:  # other shards are still at work
    return
  if splits:
    _warn_of_other_content(index, workdir)
  else:
    _log_selection(index, selected, store_dir)


def check_current(config: ml_collections.ConfigDict, workdir: str, store_dir: str) -> None:
  """Compares a store with the files that it was prepared from, for the modes that prepare nothing.

  Where it is not what a run needs and another process is preparing it, this waits for that process.

  Args:
    config: `data` names the data set; where its folder is not there, the store is enough.
    workdir: of the run. Of one that has begun training, only its own cases are compared.
    store_dir: folder of the store.

  Raises:
    InputError, InputErrors: there is no store, or it lacks cases or has other options than the config, a file has
      changed since it was prepared, or the data set has other cases or another split.
  """
  while True:
    before = publish.state(store_dir)
    try:
      return _check_current(config, workdir, store_dir)
    except (InputError, InputErrors) as error:  # perhaps another process is about to publish what is missing
      if publish.wait_for_others(store_dir, reason=str(error)):
        time.sleep(_SUCCESSION_S)
      elif publish.state(store_dir) == before:
        raise


def _check_current(config: ml_collections.ConfigDict, workdir: str, store_dir: str) -> None:
  data, index = config.data, store.read_index(store_dir)
  if os.path.isdir(data.root):
    _check_options(config, store_dir)
  build.selection(config, index, checkpoint.read_meta(os.path.join(workdir, 'checkpoints', 'last')))
  if not os.path.isdir(data.root):
    return
  splits = _recorded_splits(config.data, workdir)
  if splits:
    changed = _changed_behind(config, workdir, store_dir, splits)
    problem = ', '.join(f'{path} (case {case_id})' for case_id, path in sorted(changed.items())[:8])
    problem = problem and f'{problem} changed after it was prepared'
  else:
    problem = preparation.outdated(store_dir, build.store_options(data), data.root, build.selection_options(data))
  if problem:
    raise InputError(store_dir, f'is not up to date: {problem}', 'Run --mode=prepare first')


def _changed_behind(
  config: ml_collections.ConfigDict, workdir: str, store_dir: str, splits: Mapping[str, Sequence[str]]
) -> dict[str, str]:
  """The cases of a run that has begun whose files have changed and are to be prepared again, and the file.

  Raises:
    InputError: a case that the run trains or validates on has changed since it began, or is no longer in the data set.
  """
  if not os.path.isdir(config.data.root):
    return {}
  found = preparation.changes(store_dir, build.store_options(config.data), config.data.root, _all_ids(splits))
  part_of = {case_id: part for part, ids in splits.items() for case_id in ids}
  # Another run has prepared other files since this run began: these may be the ones that it began with again.
  unlike = _of_other_content(store.read_index(store_dir), workdir)
  for case_id in sorted(found.changed | dict.fromkeys(found.gone)):
    path, part = found.changed.get(case_id), part_of[case_id]
    if part != 'test' and not (path and case_id in unlike):
      raise InputError(
        path or config.data.root,
        f'has changed since the run in {workdir} began: it is in the {part} part (case {case_id})'
        if path
        else f'has no labelled case {case_id} any more, which is in the {part} part of the run in {workdir}',
        'Choose another --workdir for the changed data, or restore the file. If it is only stored in another way, run '
        '--mode=prepare. --mode=predict still works in this workdir',
      )
    if not path:
      _log.warning('%s has no case %s any more; its prepared copy is used as a test case', config.data.root, case_id)
  return found.changed


def _of_other_content(index: Mapping, workdir: str) -> list[str]:
  """The training and validation cases of a run that the store has with other content than the run began with."""
  recorded = (checkpoint.read_meta(os.path.join(workdir, 'checkpoints', 'last')) or {}).get('data')
  selection = recorded and run_record.recorded_selection(index, recorded)
  if not selection:
    return []
  return run_record.changed_cases(recorded, run_record.data_record(index, selection), ('train', 'val'))


def _warn_of_other_content(index: Mapping, workdir: str) -> None:
  """Says which training and validation cases of a run are no longer what it began with."""
  changed = _of_other_content(index, workdir)
  if changed:
    _log.warning(
      'the run in %s cannot be trained further: it began with other content of %s. Choose another --workdir for the '
      'changed data; to go on with this run, restore the files and prepare again',
      workdir,
      abbreviate(changed),
    )


def _recorded_splits(data: ml_collections.ConfigDict, workdir: str) -> dict[str, list[str]] | None:
  """The splits that the checkpoints of a run record; None if it has not begun, or `data` is another data set."""
  meta = checkpoint.read_meta(os.path.join(workdir, 'checkpoints', 'last'))
  if not meta or (os.path.isdir(data.root) and get_spec(data.dataset, data.root).name != meta['data']['name']):
    return None
  return meta['data']['splits']


def _all_ids(splits: Mapping[str, Sequence[str]]) -> list[str]:
  return [case_id for ids in splits.values() for case_id in ids]


def _check_options(config: ml_collections.ConfigDict, store_dir: str) -> None:
  """Raises InputError if a store was prepared with other options than those of the config."""
  differing = preparation.differences(store_dir, build.store_options(config.data), config.data.root)
  if differing:
    raise InputError(
      store_dir,
      f'this store was prepared with other options: {differing} (in the store, wanted)',
      'Choose another data.store, or prepare it again with --mode=prepare.',
    )


def _log_selection(index: dict, selected: SelectionOptions, store_dir: str) -> None:
  selection = select(index, selected)
  for case_id, reason in selection.excluded.items():
    _log.warning('left out: %s (%s)', case_id, reason)
  for note in [*selection.notes, *usual.notes_on_training(index, selection)]:
    _log.info('%s', note)
  counts = ', '.join(f'{len(ids)} {part}' for part, ids in selection.splits.items())
  _log.info('prepared cases: %s, in %s', counts, store_dir)
