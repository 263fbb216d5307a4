"""Evaluates a run: writes label map, scores and overlay of every case of a split, on the grid of its own scan."""

import importlib.util
import json
import logging
import math
import os
import shutil
from collections.abc import Iterable, Sequence

import ml_collections
import numpy as np

from afw_jax import metrics, predict, preprocess
from afw_jax.config import build
from afw_jax.data import resample, run_record, store, usual, working_grid
from afw_jax.data.formats import volumes
from afw_jax.data.formats.geometry import Geometry
from afw_jax.data.selection import Selection, scored_split
from afw_jax.data.sets import channels
from afw_jax.data.sets.spec import IGNORED
from afw_jax.distributed import runtime
from afw_jax.errors import InputError
from afw_jax.inference import segmentation
from afw_jax.report import overlays, runs, style
from afw_jax.system import atomic_files, terminal
from afw_jax.system.file_names import file_name
from afw_jax.training import checkpoint

_log = logging.getLogger('afw_jax')

RESULTS = ('cases', 'predictions', 'pictures')  # folders of an evaluation


def evaluate(config: ml_collections.ConfigDict, workdir: str, store_dir: str, output: str | None = None) -> None:
  """Scores the best (or last) checkpoint of a run on one split of its data.

  Writes OUTPUT/predictions/<case>.nii.gz on the scan's own grid, OUTPUT/cases/<case>.json with the scores, and
  OUTPUT/pictures/<case>.png for some cases from the worst to the best. Of several processes each scores a part. The
  caller keeps other runs out of the folder (`workdir.claimed`); until all cases are scored, the results of an earlier
  evaluation stay as they are.

  Args:
    config: `eval` says which split, checkpoint, convention and clean-up.
    workdir: of a trained run.
    store_dir: the prepared data.
    output: folder of the results; None: the workdir.

  Raises:
    InputError: there is no checkpoint, it was trained on other organs or data, or there is no case to score.
  """
  workdir, store_dir = os.path.expanduser(workdir), os.path.expanduser(store_dir)
  output = workdir if output is None else output
  options = config.eval
  trained = predict.load(
    workdir,
    which=options.checkpoint,
    mirror_axes=tuple(options.mirror_axes),
    matmul_precision=config.runtime.matmul_precision,
  )
  runtime.check_same('eval.checkpoint', trained.meta['step'])
  index = runtime.from_process_zero(lambda: store.read_index(store_dir))
  selection = _selection_of(config, workdir, store_dir, trained, index)
  split, case_ids = choose_split(index['name'], selection.splits, options.split)
  used = {case_id: run_record.trained_part(trained.meta['data'], index, case_id) for case_id in case_ids}
  runs.check_unseen(workdir, split, used)
  _log.info('evaluating %d cases of split %s with checkpoint step %d', len(case_ids), split, trained.meta['step'])
  staging = os.path.join(output, '.evaluating')
  folders = {name: os.path.join(staging, name) for name in RESULTS}
  runtime.on_process_zero(lambda: _make_anew(staging, folders.values()))
  runtime.check_shared(folders['pictures'])

  mean_dsc, unusual = {}, {}
  for case_id in terminal.progress_bar(
    runtime.local_items(case_ids),
    desc='evaluate',
    unit='case',
    disable=runtime.process_index() > 0,
    mininterval=0.1 if terminal.is_interactive() else 30,
  ):
    case = store.read_case(store_dir, case_id, verify=True, content=selection.contents[case_id])
    labels = label_case(trained, case, selection.windows[case_id], options)
    scored = score_case(trained, case, labels, options)
    geometry = Geometry.from_json(case.meta['geometry'])
    name = file_name(case_id)
    volumes.write_label(os.path.join(folders['predictions'], f'{name}.nii.gz'), trained.file_ids(labels), geometry)
    unusual[case_id] = usual.notes_on(case.meta['intensities'], selection.windows[case_id], trained.meta['data'])
    scored |= {'split': split, 'training_split': used[case_id], 'notes': unusual[case_id], 'fold': selection.fold}
    scored |= made_by(config, trained.meta, selection.contents[case_id])
    atomic_files.write_json(os.path.join(folders['cases'], f'{name}.json'), scored)
    counted = [s['dsc'] for s in scored['scores'].values() if not math.isnan(s['dsc'])]
    mean_dsc[case_id] = float(np.mean(counted)) if counted else math.nan

  for case_id, notes in (entry for part in runtime.gather(unusual) for entry in part.items()):
    for note in notes:
      _log.warning('%s: %s', case_id, note)
  if importlib.util.find_spec('matplotlib'):
    mean_dsc = {case_id: dsc for part in runtime.gather(mean_dsc) for case_id, dsc in part.items()}
    mean_dsc = {case_id: mean_dsc[case_id] for case_id in case_ids}
    _draw(trained, store_dir, selection, mean_dsc, folders['pictures'], options)
  else:
    _log.warning('no pictures: matplotlib is not installed (pip install ".[viz]")')
  runtime.barrier()
  runtime.on_process_zero(lambda: publish(output, staging))


def _selection_of(
  config: ml_collections.ConfigDict, workdir: str, store_dir: str, trained: predict.Trained, index: dict
) -> Selection:
  """The cases of a trained run in its store.

  Raises:
    InputError: the network was trained on other organs, or on data that was prepared with other options.
  """
  if trained.organs != tuple(index['organs']):
    raise InputError(
      workdir,
      f'its checkpoint was trained on the organs {trained.organs}, the data has {tuple(index["organs"])}',
      'Evaluate on the data set that it was trained for.',
    )
  selection = build.selection(config, index, trained.meta)
  if run_record.differences(trained.meta['data'], run_record.data_record(index, selection), ['options']):
    raise InputError(
      store_dir,
      'was prepared with other options than the data this network was trained on (grid, window or labels)',
      'Evaluate with the data options of its config.json.',
    )
  return selection


def _make_anew(staging: str, folders: Iterable[str]) -> None:
  shutil.rmtree(staging, ignore_errors=True)
  for folder in folders:
    os.makedirs(folder)


def made_by(config: ml_collections.ConfigDict, meta: dict, content: str) -> dict:
  """Entries of the scores of a case that say what they were made from and how.

  Args:
    config: of the evaluation.
    meta: of the checkpoint.
    content: `store.content_digest` of the case.
  """
  options = json.loads(config.eval.to_json_best_effort())
  return {
    'convention': options['convention'],
    'nsd_tolerance_mm': options['nsd_tolerance_mm'],
    'settings': {key: options[key] for key in runs.SETTINGS},
    'matmul_precision': config.runtime.matmul_precision,
    'checkpoint_step': meta['step'],
    'checkpoint_sha256': checkpoint.digest(meta),
    'content_sha256': content,
  }


def publish(output: str, staging: str) -> None:
  """Puts the folders `RESULTS` of `staging` into `output`, in place of those that are there."""
  for name in RESULTS:  # the scores are removed first: without them nothing is reported
    shutil.rmtree(os.path.join(output, name), ignore_errors=True)
  for name in reversed(RESULTS):  # and come back last
    os.replace(os.path.join(staging, name), os.path.join(output, name))
  os.rmdir(staging)


def choose_split(name: str, splits: dict[str, list[str]], wanted: str) -> tuple[str, list[str]]:
  """The split to score, and its cases.

  Args:
    name: of the data set.
    splits: 'train', 'val' and 'test' -> case ids.
    wanted: the split that was asked for; where a data set has no test cases, 'test' gives 'val', with a warning.

  Raises:
    InputError: there is no such split, or it has no case.
  """
  if wanted not in splits:
    raise InputError('eval.split', f'{wanted!r} is not a valid split', f'Use one of {sorted(splits)}.')
  split = scored_split(splits, wanted)
  if split is None:
    raise InputError(
      'eval.split',
      f'the split {wanted!r} of {name} has no case',
      'Choose another with --config.eval.split, or give it a share with data.fractions.',
    )
  if split != wanted:
    _log.warning('%s has no test split: the validation split is scored, which also chose the checkpoint', name)
  return split, splits[split]


def label_case(
  trained: predict.Trained, case: store.Case, window: Sequence[float], options: ml_collections.ConfigDict
) -> np.ndarray:
  """(D, H, W) uint8 class ids of a prepared case on the scan's own grid; `options` is `config.eval`."""
  grid, image = working_grid.prepared_case(case, usual.overhang_of(trained.meta['data']))
  return segmentation.segment_volume(
    trained.predict_step,
    trained.variables,
    image,
    window,
    grid,
    segmentation.Options(trained.input_size, options.batch_size, options.overlap, options.largest_component),
    name=case.id,
  )


def score_case(
  trained: predict.Trained, case: store.Case, labels: np.ndarray, options: ml_collections.ConfigDict
) -> dict:
  """The scores of a label map against the reference labels of its case, of regions where its data set has them."""
  geometry = Geometry.from_json(case.meta['geometry'])
  regions = dict(trained.meta['data']['options'].get('regions', ()))
  scores = metrics.score_case(
    labels,
    np.asarray(case.arrays['native_label']),
    spacing_mm=geometry.spacing_mm,
    labels=regions or trained.labels,
    convention=options.convention,
    nsd_tolerance_mm=options.nsd_tolerance_mm,
    ignored=IGNORED,
  )
  return {
    'case': case.id,
    'organs': list(regions or trained.organs),
    **({'classes': list(trained.organs), 'regions': list(regions.values())} if regions else {}),
    'spacing_mm': list(geometry.spacing_mm),
    'has_mm': geometry.has_mm,
    'scores': scores,
  }


def _draw(
  trained: predict.Trained,
  store_dir: str,
  selection: Selection,
  mean_dsc: dict[str, float],
  folder: str,
  options: ml_collections.ConfigDict,
) -> None:
  """Draws overlays of some cases, evenly from the worst to the best."""
  ranked = sorted(mean_dsc, key=lambda case_id: (math.isnan(mean_dsc[case_id]), mean_dsc[case_id]))
  chosen = {ranked[round(i)]: None for i in np.linspace(0, len(ranked) - 1, min(options.num_pictures, len(ranked)))}
  for case_id in runtime.local_items(list(chosen)):
    case = store.read_case(store_dir, case_id, content=selection.contents[case_id])
    window = selection.windows[case_id]
    labels = label_case(trained, case, window, options)
    draw_case(os.path.join(folder, f'{file_name(case_id)}.png'), trained, case, window, labels, mean_dsc[case_id])


def draw_case(
  path: str, trained: predict.Trained, case: store.Case, window: Sequence[float], labels: np.ndarray, dsc: float
) -> None:
  """Draws reference and prediction over the first channel on the working grid, and writes the PNG file `path`."""
  grid, image = working_grid.prepared_case(case, usual.overhang_of(trained.meta['data']))
  image, window = channels.shown(image, window)
  image = preprocess.apply_window(np.asarray(image)[None, ..., None], np.asarray([window]))
  overlays.case_sheet(
    path,
    np.asarray(image[0, ..., 0]),
    {
      'truth': resample.to_working(np.asarray(case.arrays['native_label']), grid, 0),
      'prediction': resample.to_working(labels, grid, 0),
    },
    trained.organs,
    title=f'{style.label(case.id)}   mean DSC {dsc:.3f}',
    spacing_mm=tuple(case.meta['spacing_mm']),
  )
