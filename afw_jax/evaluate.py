"""Evaluation: every case as a volume on its own grid -> label NIfTI, per-case scores, overlays."""

import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Iterable

import ml_collections
import numpy as np
import tqdm

from afw_jax import metrics, predict
from afw_jax.config import build
from afw_jax.data import resample, store
from afw_jax.data.formats import volumes
from afw_jax.data.formats.geometry import Geometry
from afw_jax.data.selection import Selection, data_record, record_differences
from afw_jax.distributed import runtime
from afw_jax.errors import InputError
from afw_jax.inference import segmentation
from afw_jax.report import overlays
from afw_jax.training import metric_writer

_log = logging.getLogger('afw_jax')


def evaluate(config: ml_collections.ConfigDict, workdir: str, store_dir: str) -> None:
  """Scores the best (or last) checkpoint of WORKDIR on one split of the store.

  Writes WORKDIR/predictions/<case>.nii.gz on the scan's own grid, WORKDIR/cases/<case>.json with the scores, and
  WORKDIR/pictures/<case>.png for the worst, the median and the best cases. Of several processes each scores a share.

  Args:
    config: `eval` says which split, checkpoint, convention and clean-up.
    workdir: of a trained run.
    store_dir: the prepared data.

  Raises:
    InputError: no checkpoint, or one trained on other organs; no case to score.
  """
  options = config.eval
  trained = predict.load(workdir, which=options.checkpoint, mirror_axes=tuple(options.mirror_axes))
  index = store.read_index(store_dir)
  if trained.organs != tuple(index['organs']):
    raise InputError(
      workdir,
      f'its checkpoint knows {trained.organs}, the data has {tuple(index["organs"])}',
      'Evaluate on the data set that it was trained for.',
    )
  selection = build.selection(config, index, trained.meta)
  if record_differences(trained.meta['data'], data_record(index, selection), ['options']):
    raise InputError(
      store_dir,
      'was prepared otherwise than the data this network was trained on (grid, window or labels)',
      'Evaluate with the data options of its config.json.',
    )
  split, case_ids = choose_split(index['name'], selection.splits, options.split)
  _log.info('evaluating %d cases of split %s with checkpoint step %d', len(case_ids), split, trained.meta['step'])
  # Until all is scored the results of an earlier evaluation stay as they are, and never mix with these.
  staging = os.path.join(workdir, '.evaluating')
  folders = {name: os.path.join(staging, name) for name in ('cases', 'predictions', 'pictures')}
  runtime.on_process_zero(lambda: _make_anew(staging, folders.values()))
  runtime.check_shared(folders['pictures'])

  mean_dsc = {}
  for case_id in tqdm.tqdm(
    runtime.local_items(case_ids),
    desc='evaluate',
    unit='case',
    disable=runtime.process_index() > 0,
    mininterval=0.1 if sys.stderr.isatty() else 30,
  ):
    case = store.read_case(store_dir, case_id, verify=True)
    labels = label_case(trained, case, selection.windows[case_id], options)
    geometry = Geometry.from_json(case.meta['geometry'])
    scores = metrics.score_case(
      labels,
      np.asarray(case.arrays['native_label']),
      spacing_mm=geometry.spacing_mm,
      labels=trained.labels,
      convention=options.convention,
      nsd_tolerance_mm=options.nsd_tolerance_mm,
    )
    volumes.write_label(os.path.join(folders['predictions'], f'{case_id}.nii.gz'), trained.on_file(labels), geometry)
    metric_writer.write_json(
      os.path.join(folders['cases'], f'{case_id}.json'),
      {
        'case': case_id,
        'split': split,
        'organs': list(trained.organs),
        'convention': options.convention,
        'spacing_mm': list(geometry.spacing_mm),
        'has_mm': geometry.has_mm,
        'nsd_tolerance_mm': options.nsd_tolerance_mm,
        'checkpoint_step': trained.meta['step'],
        'scores': scores,
      },
    )
    mean_dsc[case_id] = float(np.nanmean([s['dsc'] for s in scores.values()]))

  if importlib.util.find_spec('matplotlib'):
    mean_dsc = {case_id: dsc for part in runtime.gather(mean_dsc) for case_id, dsc in part.items()}
    mean_dsc = {case_id: mean_dsc[case_id] for case_id in case_ids}
    _draw(trained, store_dir, selection, mean_dsc, folders['pictures'], options)
  else:
    _log.warning('no pictures: matplotlib is not installed (pip install ".[viz]")')
  runtime.barrier()
  runtime.on_process_zero(lambda: _publish(workdir, staging, folders))


def _make_anew(staging: str, folders: Iterable[str]) -> None:
  shutil.rmtree(staging, ignore_errors=True)
  for folder in folders:
    os.makedirs(folder)


def _publish(workdir: str, staging: str, folders: dict[str, str]) -> None:
  for name in folders:  # the scores first: without them nothing is reported
    shutil.rmtree(os.path.join(workdir, name), ignore_errors=True)
  for name in reversed(folders):  # and last
    os.replace(folders[name], os.path.join(workdir, name))
  os.rmdir(staging)


def _draw(
  trained: predict.Trained,
  store_dir: str,
  selection: Selection,
  mean_dsc: dict[str, float],
  folder: str,
  options: ml_collections.ConfigDict,
) -> None:
  """Overlays of cases from the worst to the best."""
  ranked = sorted(mean_dsc, key=mean_dsc.get)
  chosen = {ranked[round(i)]: None for i in np.linspace(0, len(ranked) - 1, min(options.num_pictures, len(ranked)))}
  for case_id in runtime.local_items(list(chosen)):
    case, window = store.read_case(store_dir, case_id), selection.windows[case_id]
    labels = label_case(trained, case, window, options)
    draw_case(os.path.join(folder, f'{case_id}.png'), trained, case, window, labels, mean_dsc[case_id])


def choose_split(name: str, splits: dict[str, list[str]], wanted: str) -> tuple[str, list[str]]:
  """The split to score; where a set publishes no test part, the validation part, saying so."""
  if wanted not in splits:
    raise InputError('eval.split', f'{wanted!r} is no split', f'Use one of {sorted(splits)}.')
  if wanted == 'test' and not splits['test'] and splits['val']:
    _log.warning('%s has no test split: the validation split is scored, which also chose the checkpoint', name)
    wanted = 'val'
  if not splits[wanted]:
    raise InputError(
      'eval.split',
      f'the split {wanted!r} of {name} has no case',
      'Choose another with --config.eval.split, or give it a share with data.fractions.',
    )
  return wanted, splits[wanted]


def label_case(
  trained: predict.Trained, case: store.Case, window: tuple[float, float], options: ml_collections.ConfigDict
) -> np.ndarray:
  """(D, H, W) class ids of a prepared case on its own grid."""
  labels, _ = segmentation.segment(
    trained.predict_step,
    trained.variables,
    case.arrays['image'],
    window,
    resample.restore_matrices(resample.Resampling.from_json(case.meta['resampling'])),
    window_size=trained.input_size,
    batch_size=options.batch_size,
    overlap=options.overlap,
  )
  return segmentation.largest_components(labels, len(trained.organs) + 1) if options.largest_component else labels


def draw_case(
  path: str,
  trained: predict.Trained,
  case: store.Case,
  window: tuple[float, float],
  labels: np.ndarray,
  dsc: float,
) -> None:
  """Truth and prediction over the working-grid image."""
  low, high = window
  image = np.clip((np.asarray(case.arrays['image'], np.float32) - low) / (high - low), 0, 1)
  overlays.case_sheet(
    path,
    image,
    {
      'truth': np.asarray(case.arrays['label']),
      'prediction': resample.to_working(labels, resample.Resampling.from_json(case.meta['resampling']), 0),
    },
    trained.organs,
    title=f'{case.id}   mean DSC {dsc:.3f}',
    spacing_mm=tuple(case.meta['spacing_mm']),
  )
