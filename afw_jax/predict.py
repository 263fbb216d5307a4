"""Prediction: label maps of new scans (NIfTI files, DICOM series, or folders of them) by the network of a run."""

import csv
import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from afw_jax import atomic_files, models
from afw_jax.data import working_grid
from afw_jax.data.formats import scans as scan_files
from afw_jax.data.formats import volumes
from afw_jax.data.sets.window import scan_window
from afw_jax.distributed import runtime, sharding
from afw_jax.errors import InputError
from afw_jax.inference import forward, segmentation
from afw_jax.training import checkpoint


@dataclasses.dataclass(frozen=True)
class Trained:
  """The network of a trained run, with everything that is needed to segment a scan.

  Attributes:
    predict_step: jitted, (variables, raw image (B, *S, 1), window (B, 2)) -> probabilities (B, *S, C).
    variables: of the network.
    meta: of the checkpoint: config, model, data (organs, window, options of the working grid).
  """

  predict_step: forward.PredictStep
  variables: Any
  meta: dict

  @property
  def organs(self) -> tuple[str, ...]:
    """Names of classes 1..C-1."""
    return tuple(self.meta['data']['organs'])

  @property
  def labels(self) -> dict[str, int]:
    """Organ name -> class id."""
    return {organ: c for c, organ in enumerate(self.organs, 1)}

  @property
  def input_size(self) -> tuple[int, ...]:
    """Spatial shape the network was trained on: (h, w) of slices, (d, h, w) of volumes or crops."""
    return tuple(self.meta['model']['input_size'])

  def file_ids(self, labels: np.ndarray) -> np.ndarray:
    """Class ids -> the ids in the label files of the data set, uint8 of the same shape."""
    table = np.zeros(len(self.organs) + 1, np.uint8)
    for organ, c in self.labels.items():
      table[c] = self.meta['data']['output_ids'][organ]
    return table[labels]


def load(workdir: str, *, which: str = 'best', mirror_axes: Sequence[int] = ()) -> Trained:
  """Loads the network of a trained run onto all devices of this process.

  Args:
    workdir: of the run.
    which: 'best' (by validation DSC; the last one where nothing was validated) or 'last' checkpoint.
    mirror_axes: spatial axes to average predictions over; see `forward.mirror_averaged`.

  Raises:
    InputError: there is no checkpoint, it is torn or altered, or it is of another network.
  """
  if which not in ('best', 'last'):
    raise InputError('eval.checkpoint', f'{which!r} is not a valid checkpoint', "Use 'best' or 'last'.")
  workdir = os.path.expanduser(workdir)
  folder = os.path.join(workdir, 'checkpoints', which)
  if which == 'best' and not checkpoint.steps_in(folder):  # nothing was validated, or its first save is under way
    folder = os.path.join(workdir, 'checkpoints', 'last')
  meta = checkpoint.read_meta(folder)
  if meta is None:
    raise InputError(
      workdir, 'there is no checkpoint in it', 'Train first (--mode=train), or give the --workdir of a finished run.'
    )
  network = meta['model']
  # A volume that was divided over several devices in training may be too large for one.
  mesh = runtime.local_mesh(meta['config'].get('mesh', {}).get('spatial', 1))
  model = models.build(
    network['name'], num_classes=network['num_classes'], constrain=sharding.make_constrain(mesh), **network['options']
  )
  abstract = models.abstract_variables(model, (1, *network['input_size'], 1))
  everywhere = sharding.replicated(mesh)
  abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), abstract)
  variables, meta = checkpoint.restore_variables(folder, abstract)
  predict_step = forward.mirror_averaged(forward.make_predict_step(model), mirror_axes)
  return Trained(sharding.jit_over_mesh(mesh, predict_step), variables, meta)


def predict_volume(
  trained: Trained,
  scan: volumes.Volume,
  *,
  batch_size: int | None = None,
  overlap: float | None = None,
  largest_component: bool = False,
  keep_probabilities: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
  """Segments a scan that was read with `volumes.read_image`.

  Args:
    trained: from `load`.
    scan: in the internal orientation.
    batch_size: slices or sliding windows per call of the network; None: eval.batch_size of the run.
    overlap: of neighbouring sliding windows, as a share of their side; None: eval.overlap of the run.
    largest_component: keep only the largest connected component of each organ.
    keep_probabilities: also return the probabilities.

  Returns:
    (labels (D, H, W) uint8 class ids on the scan's own grid, probabilities (D, H, W, C) float16 or None).

  Raises:
    InputError: the scan carries no voxel size and the working grid needs one.
  """
  config = trained.meta['config']['eval']
  data = trained.meta['data']
  resampling, image = working_grid.to_working_grid(scan, data['options'])
  options = segmentation.Options(
    trained.input_size,
    batch_size=batch_size or config['batch_size'],
    overlap=config.get('overlap', 0.5) if overlap is None else overlap,
    largest_component=largest_component,
  )
  return segmentation.segment_volume(
    trained.predict_step,
    trained.variables,
    image,
    scan_window(scan.array, data['window']),
    resampling,
    options,
    keep_probabilities=keep_probabilities,
  )


def predict(
  workdir: str,
  input_path: str,
  output: str,
  *,
  which: str = 'best',
  mirror_axes: Sequence[int] = (),
  largest_component: bool = False,
  save_probabilities: bool = False,
  batch_size: int | None = None,
  overlap: float | None = None,
) -> list[dict]:
  """Segments one scan or a folder of scans; of several processes each takes a part of them.

  Args:
    workdir: of the trained run; window, grid and organ names come from its checkpoint.
    input_path: .nii or .nii.gz file, folder of a DICOM series, or a folder of either.
    output: a folder, or a .nii.gz file where the input is one scan.
    which, mirror_axes, largest_component, batch_size, overlap: as in `load` and `predict_volume`.
    save_probabilities: also write <scan>_probability_<organ>.nii.gz.

  Returns:
    One {'scan':, 'output':, 'volume_ml': {organ: mL}} per scan; the same table is written as volumes.csv and
    volumes.json. Every process returns all of them.

  Raises:
    InputError: no scan was found, or one cannot be read; the predictions made before it are kept.
  """
  workdir, input_path, output = (os.path.expanduser(path) for path in (workdir, input_path, output))
  scans = scan_files.find_scans(input_path)
  to_file = output.endswith(('.nii', '.nii.gz'))
  if to_file and len(scans) > 1:
    raise InputError(output, f'{len(scans)} scans cannot go into one file', 'Give a folder as --output.')
  trained = load(workdir, which=which, mirror_axes=mirror_axes)
  folder = os.path.dirname(os.path.abspath(output)) if to_file else output
  with atomic_files.write_errors(folder):
    os.makedirs(folder, exist_ok=True)
  if runtime.process_count() > 1:
    runtime.on_process_zero(lambda: _write_volumes(folder, [], trained.organs))
    runtime.check_same('--output', os.path.abspath(folder))
    runtime.check_shared(os.path.join(folder, 'volumes.json'))
  rows = []
  for name, path in tqdm.tqdm(
    runtime.local_items(list(scans.items())),
    desc='predict',
    unit='scan',
    disable=runtime.process_index() > 0 or (len(scans) == 1 and not sys.stderr.isatty()),
  ):
    target = output if to_file else os.path.join(folder, f'{name}.nii.gz')
    volume_ml = _predict_file(
      trained,
      path,
      target,
      save_probabilities=save_probabilities,
      batch_size=batch_size,
      overlap=overlap,
      largest_component=largest_component,
    )
    rows.append({'scan': name, 'output': target, 'volume_ml': volume_ml})
    if runtime.process_index() == 0:
      _write_volumes(folder, rows, trained.organs)  # after every scan: an error in the next one loses nothing
  by_name = {row['scan']: row for part in runtime.gather(rows) for row in part}
  rows = [by_name[name] for name in scans]
  if runtime.process_count() > 1:
    runtime.on_process_zero(lambda: _write_volumes(folder, rows, trained.organs))
  return rows


def _predict_file(trained: Trained, path: str, target: str, *, save_probabilities: bool, **options) -> dict[str, float]:
  """Segments the scan at `path`, writes its label map to `target`, and returns the volume of each organ in mL."""
  if os.path.exists(target) and os.path.exists(path) and os.path.samefile(target, path):
    raise InputError(target, 'the output would overwrite the scan', 'Choose another --output.')
  scan = volumes.read_image(path)
  labels, probabilities = predict_volume(trained, scan, keep_probabilities=save_probabilities, **options)
  volumes.write_label(target, trained.file_ids(labels), scan.geometry)
  if probabilities is not None:
    stem = target.removesuffix('.gz').removesuffix('.nii')
    for organ, c in trained.labels.items():
      name = f'{stem}_probability_{organ}.nii.gz'
      volumes.write_image(name, probabilities[..., c].astype(np.float32), scan.geometry)
  voxel_ml = float(np.prod(scan.spacing_mm)) / 1000
  counts = np.bincount(labels.ravel(), minlength=len(trained.organs) + 1)
  return {organ: round(float(counts[c]) * voxel_ml, 3) for organ, c in trained.labels.items()}


def _write_volumes(folder: str, rows: list[dict], organs: Sequence[str]) -> None:
  atomic_files.write_json(os.path.join(folder, 'volumes.json'), {'unit': 'mL', 'scans': rows})
  with atomic_files.replace_atomically(os.path.join(folder, 'volumes.csv'), newline='') as file:
    table = csv.writer(file)
    table.writerow(['scan', *(f'{organ}_ml' for organ in organs)])
    table.writerows([row['scan'], *row['volume_ml'].values()] for row in rows)
