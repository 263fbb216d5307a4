"""The scans of an evaluated run, or of a folder of new label maps, as scenes for the viewer."""

import dataclasses
import glob
import os
from collections.abc import Callable, Mapping, Sequence

import ml_collections
import numpy as np

from afw_jax import workdir as run_folder
from afw_jax.config import build
from afw_jax.data import resample, store, working_grid
from afw_jax.data.formats import channel_scans, volumes
from afw_jax.data.formats import scans as scan_files
from afw_jax.data.formats.geometry import Geometry
from afw_jax.data.padding import without_padding_of
from afw_jax.data.preparation.load_case import voxels_digest
from afw_jax.data.selection import window_of, windows_of
from afw_jax.data.sets import channels
from afw_jax.data.sets.channels import Channel
from afw_jax.data.sets.spec import IGNORED, without_ignored
from afw_jax.data.sets.window import percentile_window
from afw_jax.errors import InputError
from afw_jax.inference import record
from afw_jax.report import label_maps
from afw_jax.report.choice import choose_scans
from afw_jax.report.page.scenes import Scene, working_affine
from afw_jax.report.runs import POOLED, Run
from afw_jax.report.tables import number
from afw_jax.system import atomic_files

_SOFT_TISSUE_HU = (-160.0, 240.0)
_SHOWN = 3  # new scans in a page
_AIR_HU = -500  # a scan with lower values is taken for CT where nothing says what it is


@dataclasses.dataclass(frozen=True)
class Source:
  """Scans with label maps.

  Attributes:
    organs: names of the classes 1, 2, ...
    names: of the scans, those to look at first in front.
    captions: what is said of each.
    load: (number of the scan, whether it is wanted on its own grid) -> `Scene`; InputError where it cannot be read.
    masks: names of the label maps that each scan has.
    chosen: number of a scan -> why it is among those that a page holds.
  """

  organs: tuple[str, ...]
  names: tuple[str, ...]
  captions: tuple[str, ...]
  load: Callable[[int, bool], Scene]
  masks: tuple[str, ...]
  chosen: Mapping[int, str]


def of_run(run: Run) -> Source:
  """The scored cases of a run, the one with the lowest mean DSC first.

  Raises:
    InputError: there is no store with the scans that were scored.
  """
  config = run_folder.recorded_config(run.workdir)
  if not isinstance(config.data, ml_collections.ConfigDict):
    raise InputError(run.workdir, 'its config.json says nothing of its data', 'Evaluate the run again.')
  store_dir, index = _store_of(run, config)
  window = window_of(index['listing'], build.selection_options(config.data).window)
  windows = windows_of(index, run.cases, window)
  order = ranked(run)
  dsc = 100 * run.mean_over_organs('dsc')
  standings = choose_scans(dict(zip(run.cases, dsc.tolist())))

  def load(place: int, whole: bool) -> Scene:
    case_id = run.cases[order[place]]
    case = store.read_case(store_dir, case_id, content=run.contents[order[place]])
    labels = label_maps.read(run, case, index['output_ids'])
    return _scene(case, labels, windows[case_id], channels.of(index['options']), whole=whole)

  return Source(
    run.classes,
    tuple(run.cases[i] for i in order),
    tuple(f'mean DSC {number(dsc[i])} %' for i in order),
    load,
    ('truth', 'prediction'),
    {order.index(run.cases.index(case)): standing for case, standing in standings.items()},
  )


def ranked(run: Run) -> list[int]:
  """Places of the cases of a run, from the lowest to the highest mean DSC; cases without one are the last."""
  return np.argsort(run.mean_over_organs('dsc'), kind='stable').tolist()


def _store_of(run: Run, config: ml_collections.ConfigDict) -> tuple[str, dict]:
  """The store that holds the cases as they were scored: that of the config, or another one beside the run."""
  workdir = run.workdir
  if os.path.lexists(path := os.path.join(workdir, POOLED)):
    workdir = atomic_files.read_json(path, cure='Pool the folds again.')['folds'][0]['workdir']
  wanted = run_folder.store_path(config, workdir)
  beside = glob.glob(os.path.join(glob.escape(os.path.dirname(os.path.abspath(workdir))), 'stores', '*'))
  problems, unlike = [], []
  for folder in dict.fromkeys([wanted, *sorted(beside)]):
    try:
      index = store.read_index(folder)
    except InputError as error:
      problems.append(error)
      continue
    cases = index['cases']
    if all(case in cases and digest in (None, cases[case]['content_sha256']) for case, digest in _scored(run)):
      return folder, index
    unlike.append(InputError(folder, 'does not hold the cases as they were scored', 'Run --mode=evaluate again.'))
  raise [*unlike, *problems][0]


def _scored(run: Run) -> list[tuple[str, str | None]]:
  return list(zip(run.cases, run.contents))


def _scene(case: store.Case, labels: np.ndarray, windows: Sequence, of: Sequence[Channel], *, whole: bool) -> Scene:
  """The first channel of a case, with its label maps."""
  channel = of[0]
  geometry, truth = Geometry.from_json(case.meta['geometry']), without_ignored(case.arrays['native_label'])
  ignored = float(np.mean(np.asarray(case.arrays['native_label']) == IGNORED))
  unlabelled = f'{ignored:.0%} of the scan is not labelled: no score counts it, the truth shows it as background'
  notes = [unlabelled] if ignored else []
  about = {'has_mm': geometry.has_mm, 'window': channel.of(windows), 'in_hu': channel.in_hu}
  reason = 'the page holds the prepared scan'
  if whole:
    try:
      image = channel.voxels(_scan_of(case, of))
      return Scene(
        image, {'truth': truth, 'prediction': labels}, geometry.internal_affine, **about, note='. '.join(notes)
      )
    except InputError as error:
      reason = str(error)
  grid, image = working_grid.prepared_case(case)
  masks = {name: resample.to_working(one, grid, 0) for name, one in (('truth', truth), ('prediction', labels))}
  note = '. '.join([f'On the working grid, not that of the scan: {reason}', *notes])
  return Scene(np.asarray(channel.voxels(image)), masks, working_affine(geometry, grid), **about, note=note)


def _scan_of(case: store.Case, of: Sequence[Channel]) -> np.ndarray:
  """The scan of a case as its files have it; InputError where they are not there, or no longer those of the case."""
  path, others = case.meta['source']['image'], case.meta['source'].get('others', ())
  scan = without_padding_of(volumes.read_channels((path, *others), resample_dicom=True).array, of)
  if voxels_digest(scan) != case.meta['voxels_sha256']:
    raise InputError(path, 'has changed since it was prepared', 'Run --mode=prepare and evaluate again.')
  return scan


def of_predictions(folder: str) -> Source:
  """The label maps of new scans in a folder of --mode=predict, those with notes first.

  Raises:
    InputError: there is no record of such label maps, or it is damaged.
  """
  content = record.read(folder)
  rows = sorted(
    (row for row in content['scans'] if 'sha256' in row and row.get('format', 'nifti') == 'nifti'),
    key=lambda row: (not row.get('notes'), row['scan']),
  )
  if not rows:
    cure = 'Give the --output of --mode=predict, without --format=dicom_seg: a DICOM viewer shows segmentations.'
    raise InputError(os.path.join(folder, record.JSON), 'names no label map that a page can show', cure)
  organs = tuple(content['organs'])

  def load(place: int, whole: bool) -> Scene:  # there is one grid only
    row = rows[place]
    path, image = os.path.join(folder, row['output']), _predicted_scan(row)
    found = volumes.read_label(path)
    volumes.check_pair(image, found)
    labels = label_maps.as_classes(path, found.array, list(row['label_ids'].values()), cure='Predict it again.')
    numbers = [0, *(organs.index(organ) + 1 for organ in row['label_ids'])]
    classes = np.array(numbers, np.min_scalar_type(len(organs)))  # of several networks there may be more than 255
    in_hu = image.array.min() < _AIR_HU
    return Scene(
      image.array,
      {'prediction': classes[labels]},
      image.geometry.internal_affine,
      image.geometry.has_mm,
      _SOFT_TISSUE_HU if in_hu else percentile_window(image.array),
      bool(in_hu),
      window_name='soft tissue' if in_hu else 'percentiles of the scan',
    )

  return Source(
    organs,
    tuple(row['scan'] for row in rows),
    tuple('; '.join(row.get('notes', ())) for row in rows),
    load,
    ('prediction',),
    dict.fromkeys(range(min(_SHOWN, len(rows))), ''),
  )


def _predicted_scan(row: Mapping) -> volumes.Volume:
  """The scan of a label map, or its first channel; InputError where it is gone, or not the one that was segmented."""
  for scan in scan_files.find_scans(row['source']).scans if os.path.isdir(row['source']) else [None]:
    image = volumes.read_image(row['source'], scan.files if scan else (), resample_dicom=True)
    others = [volumes.read_image(path).sha256 for path in row.get('others', ())]
    if channel_scans.digest([image.sha256, *others]) == row['sha256']:
      return image
  raise InputError(row['source'], 'is no longer the scan that was segmented', 'Predict it again.')
