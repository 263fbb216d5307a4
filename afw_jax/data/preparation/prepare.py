"""Prepares the cases of a data set into a store: each is read once, validated and resampled to the working grid."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping

from afw_jax.data import store
from afw_jax.data.preparation import dask_cluster, publish, sources, worker_pool
from afw_jax.data.preparation.listing import make_listing
from afw_jax.data.preparation.options import StoreOptions
from afw_jax.data.preparation.prepare_case import prepare_case
from afw_jax.data.selection import SelectionOptions, choose, find_leaks
from afw_jax.data.sets import layouts
from afw_jax.data.sets.case_files import CaseFiles, abbreviate
from afw_jax.data.sets.spec import DatasetSpec
from afw_jax.errors import InputError, InputErrors

_log = logging.getLogger('afw_jax')

# What the index has of each case: all that selecting cases needs.
_SUMMARY = (
  'shape',
  'spacing_mm',
  'native_shape',
  'native_spacing_mm',
  'percentile_window',
  'voxels',
  'working_voxels',
  'voxels_sha256',
  'source',
  'notes',
  'intensities',
  'overhang',
  'cut_off',
)


def prepare(
  options: StoreOptions,
  root: str | os.PathLike,
  store_dir: str | os.PathLike,
  selected: SelectionOptions | None = None,
  *,
  verify: bool = True,
  workers: int | None = None,
  progress: bool = True,
  shard: tuple[int, int] | None = None,
  scheduler: str | None = None,
  resample_dicom: bool = False,
) -> dict | None:
  """Prepares cases of a data set, or continues where an interrupted call stopped.

  The cases wait in a staging folder inside the store until all of them are prepared without a problem; then they are
  published together with a new index. Cases that are already in the store stay there. A store of other options in the
  same folder is replaced, and stays as it is until then.

  Several hosts that share a file system can divide the work: as shards, each a call of its own, at any time and in any
  order, or as workers of a Dask cluster. The store is bit-identical.

  Args:
    options: of the store.
    root: folder of the data set.
    store_dir: folder of the store; created if missing.
    selected: options of the run whose cases are prepared; None: all cases.
    verify: read the source files of all prepared cases, to find those that have changed. If False, only files whose
      size or time has changed are read. Changed cases are prepared again.
    workers: processes; None: as many as CPUs and memory allow; 0: work in this process.
    progress: show a progress bar.
    shard: (i, n): prepare every n-th case from the i-th on. The shard that finds all cases prepared publishes them; one
      that failed can be repeated.
    scheduler: of a Dask cluster that does the work: its address or its scheduler file.
    resample_dicom: interpolate tilted or unevenly spaced DICOM slices, which are problems otherwise, to an even grid.
      Voxels depend on the files alone, so that this is no option of the store.

  Returns:
    The index of the store (STORE/dataset.json); None for a shard after which other shards still have to finish.

  Raises:
    InputError: one problem that stops everything, such as a missing path or a full disk.
    InputErrors: every problem found in the cases; no case is published then.
  """
  if scheduler:  # whose workers have other working directories
    root, store_dir = os.path.abspath(root), os.path.abspath(store_dir)
  spec = options.spec(root)
  files = {case.id: case for case in layouts.find_cases(spec, root)}
  listing = make_listing(spec, files.values())
  choice = choose(listing, selected or SelectionOptions())
  content = options.to_json(spec)
  options_hash = _digest({'format': store.FORMAT, **content})
  publish.check_folder(store_dir)
  with publish.lock(store_dir, shared=shard is not None) as held:
    alone = held and not shard
    if alone:
      store.remove_stale(store_dir)
    own = choice.ids[shard[0] :: shard[1]] if shard else choice.ids
    stamps = {case_id: sources.stamps(files[case_id]) for case_id in own}  # before the files are read
    published = _published(store_dir, options_hash)
    ready = {} if verify else publish.find_prepared(store_dir, own, options_hash)
    known = {i: (meta if staged else published.get(i, meta))['source_stamps'] for i, (meta, staged) in ready.items()}
    ready = {case_id: found for case_id, found in ready.items() if known[case_id] == stamps[case_id]}
    job = dict(spec=spec, options=content, options_hash=options_hash, store=os.fspath(store_dir))
    job['resample_dicom'] = resample_dicom
    jobs = [{'id': i, 'case': files[i], 'stamps': stamps[i], **job} for i in own if i not in ready]
    if scheduler:
      results = dask_cluster.run_jobs(prepare_case, jobs, scheduler=scheduler, progress=progress)
    else:
      results = worker_pool.run_jobs(prepare_case, jobs, workers=workers, progress=progress)
    results = {result['id']: result for result in results}
    ready |= {case_id: (r['meta'], r['staged']) for case_id, r in results.items() if r.get('meta')}
    by_others = [case_id for case_id in choice.ids if case_id not in ready and case_id not in results]
    ready |= publish.find_prepared(store_dir, by_others, options_hash)
    metas = {case_id: ready[case_id][0] for case_id in sorted(ready)}
    problems = [problem for case_id in sorted(results) for problem in results[case_id]['problems']]
    problems += find_leaks(metas, choice.splits)
    if problems:
      raise InputErrors(problems) if len(problems) > 1 else problems[0]
    missing = [case_id for case_id in choice.ids if case_id not in ready]
    if missing:
      _log.info(
        'shard %d/%d is done; %d of %d cases are not prepared yet (%s): the last shard publishes the store',
        *shard,
        len(missing),
        len(choice.ids),
        abbreviate(missing),
      )
      return None
    index = _make_index(options, spec, options_hash, listing, metas, stamps)
    staged = [case_id for case_id in metas if ready[case_id][1]]
    if again := sorted(published.keys() & set(staged)):
      _log.info('prepared again, because their files have changed: %s', abbreviate(again))
    return publish.publish(store_dir, index, metas, staged, alone=alone)


def differences(store_dir: str | os.PathLike, options: StoreOptions, root: str | os.PathLike | None = None) -> dict:
  """The options in which a store differs from those wanted.

  Args:
    store_dir: a complete store.
    options: wanted.
    root: folder of the data set, whose labels are compared too; None, or a missing folder: only the options.

  Returns:
    Name of the option -> (in the store, wanted); empty if the store can be used.
  """
  index = store.read_index(store_dir)
  stored = {'dataset': index['dataset'], **index['options']}
  wanted = {'dataset': options.dataset, **options.grid()}
  if root is not None and os.path.isdir(root) and all(stored[key] == value for key, value in wanted.items()):
    wanted |= options.to_json(options.spec(root))
    wanted |= dict.fromkeys(stored.keys() - wanted.keys())  # channels, regions and the like, which are gone
  return {key: (stored.get(key), value) for key, value in wanted.items() if stored.get(key) != value}


def outdated(
  store_dir: str | os.PathLike, options: StoreOptions, root: str | os.PathLike, selected: SelectionOptions
) -> str:
  """Compares a store with the files of its data set; lists files and reads no scan.

  Args:
    store_dir: a complete store with these options.
    options: of the store.
    root: folder of the data set.
    selected: options of the run.

  Returns:
    Why `prepare` is needed before the run, in words; '' if it is not.

  Raises:
    InputError, InputErrors: what is wrong with the files or the options.
  """
  index, spec = store.read_index(store_dir), options.spec(root)
  files = {case.id: case for case in layouts.find_cases(spec, root)}
  choice = choose(make_listing(spec, files.values()), selected)
  missing = [i for i in choice.ids if i not in index['cases']]
  if missing:
    return f'{len(missing)} cases of {root} are not in the store yet ({abbreviate(missing)})'
  touched = [i for i in choice.ids if index['cases'][i]['source_stamps'] != sources.stamps(files[i])]
  if touched:
    return f'files of {root} have other sizes or times than when they were prepared (cases {abbreviate(touched)})'
  try:
    stored = choose(index['listing'], selected)
  except InputError:  # it does not know cases of this run
    stored = None
  same = stored and (stored.splits, stored.window) == (choice.splits, choice.window)
  return '' if same else f'the scans or the split of {root} have changed'


def changes(
  store_dir: str | os.PathLike, options: StoreOptions, root: str | os.PathLike, case_ids: Iterable[str]
) -> sources.Changes:
  """Compares prepared cases with the files of their data set, whatever else the data set holds.

  Args:
    store_dir: a complete store with these options and cases.
    options: of the store.
    root: folder of the data set.
    case_ids: the cases to compare.

  Raises:
    InputError: a file cannot be read.
  """
  index = store.read_index(store_dir)
  try:
    files = {case.id: case for case in layouts.find_cases(options.spec(root), root)}
  except (InputError, InputErrors) as error:  # of other cases, perhaps
    _log.warning('%s\nThe prepared cases are compared with the files that they were made from.', error)
    files = {i: CaseFiles(i, **index['cases'][i]['source']) for i in case_ids}
    files = {i: case for i, case in files.items() if sources.exist(case)}
  found = sources.compare(store_dir, index, files, case_ids)
  if found.touched:
    try:
      publish.note_stamps(store_dir, found.touched)
    except InputError as error:
      _log.info('files of unchanged content will be read again at the next start: %s', error)
  return found


def _published(store_dir: str | os.PathLike, options_hash: str) -> dict:
  """The cases of a store in its index, if they were prepared with these options."""
  index = publish.read_index(store_dir)
  return index['cases'] if index is not None and index['options_hash'] == options_hash else {}


def _make_index(
  options: StoreOptions,
  spec: DatasetSpec,
  options_hash: str,
  listing: dict,
  metas: Mapping[str, dict],
  stamps: Mapping[str, dict],
) -> dict:
  """The content of STORE/dataset.json for cases with these case.json; `stamps` are newer ones of their files."""
  summary = lambda case_id, meta: {
    **{key: meta[key] for key in _SUMMARY},
    'source_stamps': stamps.get(case_id, meta['source_stamps']),
    'content_sha256': store.content_digest(meta),
  }
  return dict(
    dataset=options.dataset,
    name=spec.name,
    modality=spec.modality,
    organs=spec.organs,
    labels=spec.labels,
    output_ids=dict(spec.output_ids),
    options=options.to_json(spec),
    options_hash=options_hash,
    listing=listing,
    cases={case_id: summary(case_id, meta) for case_id, meta in metas.items()},
  )


def _digest(content: dict) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
