"""Raw scans -> store: checks every case, brings it to the working grid, and shows the store only when all are fine."""

import hashlib
import json
import os
import pathlib
import shutil
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from afw_jax.data import checks, crops, datasets, layouts, resample, store, volumes
from afw_jax.data.pool import run_jobs
from afw_jax.errors import InputError, InputErrors

ORDERS = {'linear': 1, 'cubic': 3, 1: 1, 3: 3}


def prepare(dataset: str, root: str | os.PathLike, store_dir: str | os.PathLike, *, size: Sequence[int] = (224, 224),
            spacing_mm: Sequence[float | None] = (None, 1.0, 1.0), fit: str = 'resize', order: str | int = 'cubic',
            window=None, fractions: Sequence[float] | None = None, seed: int = 0,
            cases: Sequence[str] | int | None = None, workers: int | None = None, keep_defective: bool = False,
            progress: bool = True) -> dict:
  """Prepares a data set for training, or goes on where a killed run of the same call stopped.

  Every scan and label is decoded once, checked, resampled and kept in a staging folder inside the store; only when no
  case has a problem do the cases move to their places and is the index written. An older store at the same place stays
  as it is until then.

  Args:
    dataset: a name of `datasets.NAMES`.
    root: where the data set lies.
    store_dir: folder of the store; made if need be.
    size: working grid, (h, w) or (d, h, w) voxels; None keeps what the spacing gives.
    spacing_mm: target (z, y, x); None keeps the scan's.
    fit: from the target spacing to the size by 'resize' (interpolation) or 'crop_pad' (centred).
    order: 'cubic' or 'linear' interpolation of the image; labels are always nearest.
    window: None (the data set's own), 'paper', 'transunet', 'percentile' or (low, high); see `datasets.resolve_window`.
    fractions: shares of (train, val, test) for cases whose part is not published or given; None: the data set's own.
      Given for a set with a published train part and no val part, they also divide that part into train and val.
    seed: of the split, and of the choice where `cases` is a number.
    cases: ids to use, or how many to draw; None uses all.
    workers: processes; None as many as cores and memory allow, 0 works in this process.
    keep_defective: also use the cases that are known to be defective.
    progress: show a bar with the time left.

  Returns:
    The index of the store (STORE/dataset.json).

  Raises:
    InputError: one problem that stops everything, such as a missing path or a full disk.
    InputErrors: every problem found in the cases; nothing of the store is visible then.
  """
  request = make_request(dataset, size=size, spacing_mm=spacing_mm, fit=fit, order=order, window=window,
                         fractions=fractions, seed=seed, cases=cases, keep_defective=keep_defective)
  spec = datasets.spec(dataset, os.fspath(root))
  options = case_options(spec, request)
  files, excluded, notes = _select(spec, layouts.find_cases(spec, root), request)
  splits = _split(spec, files, request, notes)
  _check_store(store_dir)
  with store.lock(store_dir):
    store.remove_stale(store_dir)
    jobs = [dict(id=case.id, case=case, spec=spec, options=options, options_hash=digest(options),
                 store=os.fspath(store_dir)) for case in files]
    results = {r['id']: r for r in run_jobs(prepare_case, jobs, workers=workers, progress=progress)}
    metas = {i: results[i]['meta'] for i in sorted(results) if results[i].get('meta')}
    problems = [p for i in sorted(results) for p in results[i]['problems']] + _leaks(metas, splits)
    if problems:
      raise InputErrors(problems) if len(problems) > 1 else problems[0]
    notes += _case_notes(spec, metas, splits)
    index = json.loads(json.dumps(_index(spec, request, options, splits, metas, excluded, notes)))
    _publish(store_dir, index, [i for i in metas if results[i]['staged']])
  return store.read_index(store_dir)


def make_request(dataset: str, *, size=(224, 224), spacing_mm=(None, 1.0, 1.0), fit='resize', order='cubic',
                 window=None, fractions=None, seed=0, cases=None, keep_defective=False) -> dict:
  """The choices of a `prepare` call as plain JSON, as the index keeps them under 'request'."""
  if order not in ORDERS:
    raise InputError(f'order {order!r}', 'unknown', "Use 'cubic' or 'linear'")
  resample.make_plan((8, 8, 8), (1, 1, 1), size=size, spacing=spacing_mm, fit=fit)  # says what makes no sense
  if isinstance(cases, int) and cases < 1:
    raise InputError(f'cases {cases}', 'is not a number of cases', 'Give a positive number, a list of ids, or None')
  return json.loads(json.dumps(dict(
    dataset=dataset, size=[s if s is None else int(s) for s in size],
    spacing_mm=[s if s is None else float(s) for s in spacing_mm], fit=fit, order=ORDERS[order],
    window=window if window is None or isinstance(window, str) else [float(w) for w in window],
    fractions=None if fractions is None else [float(f) for f in fractions], seed=int(seed),
    cases=cases if cases is None or isinstance(cases, int) else sorted(cases), keep_defective=bool(keep_defective))))


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
  found = {key: (index['request'].get(key), value) for key, value in wanted.items()
           if index['request'].get(key) != value}
  if not found and root is not None and os.path.isdir(root):
    options = json.loads(json.dumps(case_options(datasets.spec(dataset, os.fspath(root)), wanted)))
    found = {key: (index['options'].get(key), value) for key, value in options.items()
             if index['options'].get(key) != value}
  return found


def prepare_case(job: dict) -> dict:
  """One case from files to the staging folder; done again it finds its own result and does nothing.

  Returns:
    {'id', 'problems', 'meta' (None with problems), 'staged' (False if it already lies in its place)}
  """
  case, spec, options = job['case'], job['spec'], job['options']
  result = {'id': job['id'], 'problems': [], 'meta': None, 'staged': True}
  try:
    digests = checks.source_digests(case)
  except InputError as e:
    return {**result, 'problems': [e]}
  staging = os.path.join(job['store'], store.STAGING)
  for place, staged in ((staging, True), (job['store'], False)):
    if store.is_complete(place, case.id, job['options_hash']):
      meta = store.read_case(place, case.id).meta
      if meta['source_sha256'] == digests and 'foreground' in meta['arrays']:  # which older stores have not
        return {**result, 'meta': meta, 'staged': staged}
  checked = checks.read_checked(case, spec)
  if checked.problems:
    return {**result, 'problems': checked.problems}
  try:
    arrays, meta = _to_store(case.id, checked, spec, options)
  except InputError as e:
    return {**result, 'problems': [e]}
  meta.update(options_hash=job['options_hash'], source_sha256=digests, notes=checked.notes,
              source={'image': case.image, 'label': case.label})
  return {**result, 'meta': store.write_case(staging, case.id, arrays, meta)}


def digest(content: dict) -> str:
  """sha256 of a JSON-able dict, independent of key order."""
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def case_options(spec, request) -> dict:
  """All that the arrays and meta of a case depend on, besides its files."""
  return dict(
    format=store.FORMAT, modality=spec.modality, organs=list(spec.organs), source=spec.source,
    raw_ids={organ: list(ids) for organ, ids in spec.raw_ids.items()},
    ignored_ids=spec.ignored_ids if spec.ignored_ids == 'all' else list(spec.ignored_ids),
    window=datasets.resolve_window(request['window'], spec),
    **{key: request[key] for key in ('size', 'spacing_mm', 'fit', 'order')})


def to_working(scan: volumes.Volume, options: dict) -> tuple[resample.Plan, np.ndarray, tuple[float, float]]:
  """A scan as it enters a store or a trained network.

  Args:
    scan: as `volumes.read_image` gives it.
    options: of the store, INDEX['options'].

  Returns:
    (plan, (d, h, w) image on the working grid, (low, high) window).

  Raises:
    InputError: the scan carries no voxel size and the grid is cropped at a spacing.
  """
  spacing = options['spacing_mm']
  if not scan.geometry.has_mm:
    if options['fit'] == 'crop_pad':
      raise InputError(scan.source, 'carries no voxel size, so it cannot be cropped at a spacing', "Use fit='resize'")
    spacing = (None, None, None)
  image = np.ascontiguousarray(scan.array)
  plan = resample.make_plan(image.shape, scan.spacing_mm, size=options['size'], spacing=spacing, fit=options['fit'])
  return plan, resample.to_working(image, plan, options['order']), datasets.scan_window(image, options['window'])


def _to_store(case_id, checked, spec, options) -> tuple[dict, dict]:
  scan, geometry = checked.image, checked.image.geometry
  plan, image, window = to_working(scan, options)
  arrays = {'image': image, 'label': resample.to_working(checked.classes, plan, 0), 'native_label': checked.classes}
  arrays['foreground'] = crops.foreground_voxels(arrays['label'], case_id)
  meta = dict(
    shape=list(plan.working), spacing_mm=list(plan.spacing_mm), native_shape=list(plan.native),
    native_spacing_mm=list(plan.native_spacing_mm), geometry=geometry.to_json(), plan=plan.to_json(),
    order=options['order'], window=list(window), voxels=checked.voxels,
    working_voxels=checks.count_organs(arrays['label'], spec.organs),
    intensity_range=[float(scan.array.min()), float(scan.array.max())],
    voxels_sha256=checks.voxels_digest(scan.array))
  return arrays, meta


def _select(spec, files, request):
  """The cases to use, those left out (id -> reason), and notes for the reader."""
  excluded, notes = {}, []
  unlabelled = [case.id for case in files if case.label is None]
  if unlabelled:
    notes.append(f'{len(unlabelled)} scans without labels are not in the store; predict them with --mode=predict')
  files = [case for case in files if case.label is not None]
  if spec.num_training is not None and spec.num_training not in (len(files), sum(case.split != 'test' for case in files)):
    notes.append(f'dataset.json says numTraining {spec.num_training}, but {len(files)} labelled cases are there')
  if spec.source == 'nifti' and spec.splits:
    excluded.update({case.id: 'not in the "split" of dataset.json' for case in files if case.split is None})
  for case in files:
    if case.id in spec.defects and not request['keep_defective']:
      excluded[case.id] = f'known defect: it {spec.defects[case.id]}'
    elif case.id in spec.defects:
      notes.append(f'{case.id} is used although it {spec.defects[case.id]}')
  files = [case for case in files if case.id not in excluded]
  chosen = request['cases']
  ids = [case.id for case in files]
  if isinstance(chosen, list):
    unknown = sorted(set(chosen) - set(ids))
    if unknown:
      raise InputError(f'cases {", ".join(unknown[:8])}', 'not among the usable cases of the data set',
                       f'Known are {", ".join(ids[:8])}' + (', ...' if len(ids) > 8 else ''))
  elif chosen is not None:
    if chosen > len(ids):
      raise InputError(f'cases {chosen}', f'only {len(ids)} usable cases are there', 'Ask for fewer')
    chosen = sorted(ids, key=lambda i: hashlib.sha256(f'choose/{request["seed"]}/{i}'.encode()).hexdigest())[:chosen]
  files = [case for case in files if chosen is None or case.id in set(chosen)]
  if not files:
    raise InputError(f'data set {spec.name}', 'has no usable labelled case', f'Expected layout: {spec.layout}')
  published = {i for part in spec.splits.values() for i in part}
  if spec.source != 'nifti' and published - set(ids) and chosen is None:
    notes.append(f'{len(published - set(ids))} of the {len(published)} published cases are not there')
  return files, excluded, notes


def _split(spec, files, request, notes) -> dict[str, list[str]]:
  given = request['fractions']
  fractions = spec.fractions if given is None else given
  splits = datasets.split_cases([(case.id, case.subject, case.split) for case in files], fractions, request['seed'],
                                resplit_train=given is not None)
  missing = {'train': 'nothing to train on', 'val': 'no best checkpoint can be chosen, the last one counts',
             'test': 'scores can only be given on the validation cases'}
  notes += [f'no {part} part: {meaning}' for part, meaning in missing.items() if not splits[part]]
  return splits


def _check_store(store_dir):
  """Refuses a folder that holds something other than a store, before anything is written into it."""
  path = pathlib.Path(store_dir)
  if (path / 'dataset.json').exists():
    store.read_index(path)
  elif path.is_dir() and any(p.name not in ('cases', store.STAGING, '.lock') and not p.name.startswith('.tmp-')
                             for p in path.iterdir()):
    raise InputError(path, 'is not a store: it holds other files', 'Choose a new or empty folder for the store')


def _leaks(metas, splits) -> list[InputError]:
  """The same scan under two ids, told by its decoded voxels."""
  part_of = {i: part for part, ids in splits.items() for i in ids}
  groups = defaultdict(list)
  for i, meta in metas.items():
    groups[meta['voxels_sha256']].append(i)
  return [InputError(metas[other]['source']['image'],
                     f'is the same scan as {metas[first]["source"]["image"]} (cases {first} in {part_of[first]}, '
                     f'{other} in {part_of[other]})', 'Remove one of them')
          for first, *others in groups.values() for other in others]


def _case_notes(spec, metas, splits) -> list[str]:
  notes = [f'{i}: {note}' for i, meta in metas.items() for note in meta['notes']]
  for i, meta in metas.items():
    lost = [organ for organ, n in meta['voxels'].items() if n and not meta['working_voxels'][organ]]
    if lost:
      notes.append(f'{i}: nothing of {", ".join(lost)} is left on the working grid')
  for organ in spec.organs:
    if splits['train'] and not any(metas[i]['voxels'][organ] for i in splits['train']):
      notes.append(f'{organ} is in no training case')
  return notes


def _index(spec, request, options, splits, metas, excluded, notes) -> dict:
  kept = ('shape', 'spacing_mm', 'native_shape', 'native_spacing_mm', 'window', 'voxels', 'voxels_sha256')
  return dict(
    name=spec.name, modality=spec.modality, organs=spec.organs, labels=spec.labels, raw_ids=options['raw_ids'],
    output_ids=dict(spec.output_ids), window=options['window'], request=request, options=options,
    options_hash=digest(options), splits=splits,
    cases={i: {key: meta[key] for key in kept} for i, meta in metas.items()}, excluded=excluded, notes=notes)


def _publish(store_dir, index, staged):
  """Moves staged cases to their places and writes the index, last."""
  path = pathlib.Path(store_dir)
  written = path / 'dataset.json'
  old = {k: v for k, v in store.read_index(path).items() if k not in ('format', 'kind')} if written.exists() else None
  if old != index or staged:
    with store.writing(path):
      written.unlink(missing_ok=True)
    for case_id in staged:
      store.move_case(path / store.STAGING, path, case_id)
    store.write_index(path, index)
  shutil.rmtree(path / store.STAGING, ignore_errors=True)
