"""Raw scans -> store: checks every case, brings it to the working grid, and shows the store only when all are fine."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence

from afw_jax.data import crops, resample, store, working_grid
from afw_jax.data.preparation import dask_cluster, load_case, publish, selection, worker_pool
from afw_jax.data.sets import layouts, window
from afw_jax.data.sets.lookup import get_spec
from afw_jax.errors import InputError, InputErrors

_log = logging.getLogger('afw_jax')

ORDERS = {'linear': 1, 'cubic': 3, 1: 1, 3: 3}


def prepare(
  dataset: str,
  root: str | os.PathLike,
  store_dir: str | os.PathLike,
  *,
  size: Sequence[int] = (224, 224),
  spacing_mm: Sequence[float | None] = (None, 1.0, 1.0),
  fit: str = 'resize',
  order: str | int = 'cubic',
  window=None,
  fractions: Sequence[float] | None = None,
  seed: int = 0,
  cases: Sequence[str] | int | None = None,
  workers: int | None = None,
  keep_defective: bool = False,
  progress: bool = True,
  shard: tuple[int, int] | None = None,
  scheduler: str | None = None,
) -> dict | None:
  """Prepares a data set for training, or goes on where a killed run of the same call stopped.

  Every scan and label is decoded once, checked, resampled and kept in a staging folder inside the store; only when no
  case has a problem do the cases move to their places and is the index written. An older store at the same place stays
  as it is until then.

  Several hosts that share the disks of root and store may divide the work: as shards, each a call of its own, at any
  time and in any order, or as workers of a Dask cluster. The store is the same to the bit.

  Args:
    dataset: a name of `lookup.NAMES`.
    root: where the data set lies.
    store_dir: folder of the store; made if need be.
    size: working grid, (h, w) or (d, h, w) voxels; None keeps what the spacing gives.
    spacing_mm: target (z, y, x); None keeps the scan's.
    fit: from the target spacing to the size by 'resize' (interpolation) or 'crop_pad' (centred).
    order: 'cubic' or 'linear' interpolation of the image; labels are always nearest.
    window: None (the data set's own), 'paper', 'transunet', 'percentile' or (low, high); see `window.resolve_window`.
    fractions: shares of (train, val, test) for cases whose part is not published or given; None: the data set's own.
      Given for a set with a published train part and no val part, they also divide that part into train and val.
    seed: of the split, and of the choice where `cases` is a number.
    cases: ids to use, or how many to draw; None uses all.
    workers: processes; None as many as cores and memory allow, 0 works in this process.
    keep_defective: also use the cases that are known to be defective.
    progress: show a bar with the time left.
    shard: (i, n): do every n-th case from the i-th on. The shard that finds all cases ready publishes the store; one
      that died is given again, and does what is missing.
    scheduler: of a Dask cluster that does the work instead of processes here: its address or its scheduler file.

  Returns:
    The index of the store (STORE/dataset.json); None of a shard that leaves the end to others.

  Raises:
    InputError: one problem that stops everything, such as a missing path or a full disk.
    InputErrors: every problem found in the cases; nothing of the store is visible then.
  """
  request = make_request(
    dataset,
    size=size,
    spacing_mm=spacing_mm,
    fit=fit,
    order=order,
    window=window,
    fractions=fractions,
    seed=seed,
    cases=cases,
    keep_defective=keep_defective,
  )
  spec = get_spec(dataset, os.fspath(root))
  options = case_options(spec, request)
  options_hash = _digest(options)
  if scheduler:  # whose workers are in other folders
    root, store_dir = os.path.abspath(root), os.path.abspath(store_dir)
  files, excluded, notes = selection.choose(spec, layouts.find_cases(spec, root), request)
  splits, more = selection.split(spec, files, request)
  publish.check_folder(store_dir)
  jobs = [
    dict(id=case.id, case=case, spec=spec, options=options, options_hash=options_hash, store=os.fspath(store_dir))
    for case in (files[shard[0] :: shard[1]] if shard else files)
  ]
  with publish.lock(store_dir, shared=shard is not None):
    if not shard:
      store.remove_stale(store_dir)
    if scheduler:
      done = dask_cluster.run_jobs(prepare_case, jobs, scheduler=scheduler, progress=progress)
    else:
      done = worker_pool.run_jobs(prepare_case, jobs, workers=workers, progress=progress)
    results = {r['id']: r for r in done}
    ready = {i: (r['meta'], r['staged']) for i, r in results.items() if r.get('meta')}
    ready |= publish.of_others(store_dir, [case.id for case in files if case.id not in results], options_hash)
    metas = {i: ready[i][0] for i in sorted(ready)}
    problems = [p for i in sorted(results) for p in results[i]['problems']] + selection.leaks(metas, splits)
    if problems:
      raise InputErrors(problems) if len(problems) > 1 else problems[0]
    missing = [case.id for case in files if case.id not in ready]
    if missing:
      _log.info(
        'shard %d/%d is done; %d of %d cases are not ready yet (%s ...): the last shard publishes the store',
        *shard,
        len(missing),
        len(files),
        missing[0],
      )
      return None
    notes += more + selection.case_notes(spec, metas, splits)
    index = selection.index(spec, request, options, options_hash, splits, metas, excluded, notes)
    return publish.publish(
      store_dir, json.loads(json.dumps(index)), metas, [i for i in metas if ready[i][1]], alone=not shard
    )


def make_request(
  dataset: str,
  *,
  size=(224, 224),
  spacing_mm=(None, 1.0, 1.0),
  fit='resize',
  order='cubic',
  window=None,
  fractions=None,
  seed=0,
  cases=None,
  keep_defective=False,
) -> dict:
  """The choices of a `prepare` call as plain JSON, as the index keeps them under 'request'."""
  if order not in ORDERS:
    raise InputError(f'order {order!r}', 'unknown', "Use 'cubic' or 'linear'")
  resample.make_resampling((8, 8, 8), (1, 1, 1), size=size, spacing=spacing_mm, fit=fit)  # says what makes no sense
  if isinstance(cases, int) and cases < 1:
    raise InputError(f'cases {cases}', 'is not a number of cases', 'Give a positive number, a list of ids, or None')
  return json.loads(
    json.dumps(
      dict(
        dataset=dataset,
        size=[s if s is None else int(s) for s in size],
        spacing_mm=[s if s is None else float(s) for s in spacing_mm],
        fit=fit,
        order=ORDERS[order],
        window=window if window is None or isinstance(window, str) else [float(w) for w in window],
        fractions=None if fractions is None else [float(f) for f in fractions],
        seed=int(seed),
        cases=cases if cases is None or isinstance(cases, int) else sorted(cases),
        keep_defective=bool(keep_defective),
      )
    )
  )


def differences(store_dir: str | os.PathLike, dataset: str, root: str | os.PathLike | None = None, **choices) -> dict:
  """What in a store is not as a `prepare` call would make it.

  Args:
    store_dir: a finished store.
    dataset, root, choices: as for `prepare` (without workers and progress). Where the raw data are gone, or root is
      None, only the choices are compared.

  Returns:
    Name of the choice -> (as in the store, as wanted); empty if the store fits.
  """
  index, wanted = store.read_index(store_dir), make_request(dataset, **choices)
  found = {
    key: (index['request'].get(key), value) for key, value in wanted.items() if index['request'].get(key) != value
  }
  if not found and root is not None and os.path.isdir(root):
    options = json.loads(json.dumps(case_options(get_spec(dataset, os.fspath(root)), wanted)))
    found = {
      key: (index['options'].get(key), value) for key, value in options.items() if index['options'].get(key) != value
    }
  return found


def added(store_dir: str | os.PathLike, dataset: str, root: str | os.PathLike, **choices) -> list[str]:
  """Ids of the cases that a `prepare` call would use and the store does not hold; only lists files.

  Raises:
    InputError, InputErrors: what is wrong with the files at root.
  """
  spec, known = get_spec(dataset, os.fspath(root)), store.read_index(store_dir)['cases']
  files, _, _ = selection.choose(spec, layouts.find_cases(spec, root), make_request(dataset, **choices))
  return [case.id for case in files if case.id not in known]


def prepare_case(job: dict) -> dict:
  """One case from files to the staging folder; done again it finds its own result and does nothing.

  Returns:
    {'id', 'problems', 'meta' (None with problems), 'staged' (False if it already lies in its place)}
  """
  case, spec, options = job['case'], job['spec'], job['options']
  result = {'id': job['id'], 'problems': [], 'meta': None, 'staged': True}
  try:
    digests = load_case.source_digests(case)
  except InputError as e:
    return {**result, 'problems': [e]}
  for meta, staged in publish.prepared(job['store'], case.id, job['options_hash']):
    if meta['source_sha256'] == digests:
      return {**result, 'meta': meta, 'staged': staged}
  checked = load_case.load_and_validate(case, spec)
  if checked.problems:
    return {**result, 'problems': checked.problems}
  try:
    arrays, meta = _to_store(case.id, checked, spec, options)
  except InputError as e:
    return {**result, 'problems': [e]}
  meta.update(
    options_hash=job['options_hash'],
    source_sha256=digests,
    notes=checked.notes,
    source={'image': case.image, 'label': case.label},
  )
  return {**result, 'meta': store.write_case(os.path.join(job['store'], store.STAGING), case.id, arrays, meta)}


def case_options(spec, request) -> dict:
  """All that the arrays and meta of a case depend on, besides its files."""
  return dict(
    format=store.FORMAT,
    modality=spec.modality,
    organs=list(spec.organs),
    source=spec.source,
    raw_ids={organ: list(ids) for organ, ids in spec.raw_ids.items()},
    ignored_ids=spec.ignored_ids if spec.ignored_ids == 'all' else list(spec.ignored_ids),
    window=window.resolve_window(request['window'], spec.window_hu, in_hu=spec.in_hu, dataset=spec.name),
    **{key: request[key] for key in ('size', 'spacing_mm', 'fit', 'order')},
  )


def _to_store(case_id, checked, spec, options) -> tuple[dict, dict]:
  scan, geometry = checked.image, checked.image.geometry
  plan, image = working_grid.to_working_grid(scan, options)
  arrays = {'image': image, 'label': resample.to_working(checked.classes, plan, 0), 'native_label': checked.classes}
  arrays['foreground'] = crops.foreground_voxels(arrays['label'], case_id)
  meta = dict(
    shape=list(plan.working),
    spacing_mm=list(plan.spacing_mm),
    native_shape=list(plan.native),
    native_spacing_mm=list(plan.native_spacing_mm),
    geometry=geometry.to_json(),
    plan=plan.to_json(),
    order=options['order'],
    window=list(window.scan_window(scan.array, options['window'])),
    voxels=checked.voxels,
    working_voxels=load_case.count_organs(arrays['label'], spec.organs),
    intensity_range=[float(scan.array.min()), float(scan.array.max())],
    voxels_sha256=load_case.voxels_digest(scan.array),
  )
  return arrays, meta


def _digest(content: dict) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
