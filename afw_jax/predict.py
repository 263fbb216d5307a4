"""Prediction: a scan (NIfTI file, DICOM folder, or a folder of scans) in, its label NIfTI on its own grid out."""

import csv
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from afw_jax import models, preprocess
from afw_jax.data import resample, working_grid
from afw_jax.data.formats import volumes
from afw_jax.data.sets.window import scan_window
from afw_jax.distributed import runtime, sharding
from afw_jax.errors import InputError
from afw_jax.inference import segmentation
from afw_jax.training import checkpoint, metric_writer, step


class Trained(NamedTuple):
  """A network with all that a scan needs of it: nothing of this comes from the person who predicts.

  Attributes:
    predict_step: jitted, (variables, raw image, window) -> probabilities.
    variables: of the network.
    meta: the checkpoint's meta: config, model, data (organs, window, options of the working grid).
  """

  predict_step: Any
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
    """Spatial shape the network was trained on: (h, w) slices or (d, h, w) windows."""
    return tuple(self.meta['model']['input_size'])

  def on_file(self, labels: np.ndarray) -> np.ndarray:
    """Class ids -> the ids that the data set's label files use."""
    table = np.zeros(len(self.organs) + 1, np.uint8)
    for organ, c in self.labels.items():
      table[c] = self.meta['data']['output_ids'][organ]
    return table[labels]


def load(workdir: str, *, which: str = 'best', mirror_axes: Sequence[int] = ()) -> Trained:
  """The trained network of a run, on all devices of this process.

  Args:
    workdir: of the run.
    which: 'best' (by validation DSC; where nothing was validated, the last) or 'last'.
    mirror_axes: spatial axes to average over.

  Raises:
    InputError: no checkpoint, a torn one, or one of another network.
  """
  if which not in ('best', 'last'):
    raise InputError('eval.checkpoint', f'{which!r} is no kind of checkpoint', "Use 'best' or 'last'.")
  folder = os.path.join(workdir, 'checkpoints', which)
  if which == 'best' and not (os.path.isdir(folder) and os.listdir(folder)):
    folder = os.path.join(workdir, 'checkpoints', 'last')
  meta = checkpoint.read_meta(folder)
  if meta is None:
    raise InputError(
      workdir, 'there is no checkpoint in it', 'Train first (--mode=train), or give the --workdir of a finished run.'
    )
  network = meta['model']
  own = runtime.local_mesh(
    meta['config'].get('mesh', {}).get('spatial', 1)
  )  # what was trained divided may fit no other way
  model = models.build(
    network['name'], num_classes=network['num_classes'], constrain=sharding.make_constrain(own), **network['options']
  )
  image = jax.ShapeDtypeStruct((1, *network['input_size'], 1), jnp.float32)
  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
  abstract = {
    'net': shapes['params'],
    'batch_stats': shapes.get('batch_stats', {}),
    'log_sigma_sq': jax.ShapeDtypeStruct((network['num_classes'],), jnp.float32),
  }
  everywhere = sharding.replicated(own)
  abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), abstract)
  variables, meta = checkpoint.restore_variables(folder, abstract)
  forward = segmentation.mirror_averaged(step.make_predict_step(model, preprocess.apply_window), mirror_axes)
  return Trained(sharding.jit_over_mesh(own, forward), variables, meta)


def predict_volume(
  trained: Trained,
  scan: volumes.Volume,
  *,
  batch_size: int | None = None,
  overlap: float | None = None,
  largest_component: bool = False,
  keep_probabilities: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
  """The label map of a scan that was read with `volumes.read_image`.

  Args:
    trained: from `load`.
    scan: in the internal orientation.
    batch_size: slices or windows per call of the network; None: eval.batch_size of its training.
    overlap: share of a window's side that its neighbour covers again (slices have no windows); None: eval.overlap of its training.
    largest_component: keep the largest connected part of each organ only.
    keep_probabilities: also return them.

  Returns:
    (labels (D, H, W) uint8 class ids on the scan's own grid, probabilities (D, H, W, C) float16 or None).
  """
  options = trained.meta['config']['eval']
  data = trained.meta['data']
  resampling, image = working_grid.to_working_grid(scan, data['options'])
  labels, probabilities = segmentation.segment(
    trained.predict_step,
    trained.variables,
    image,
    scan_window(scan.array, data['window']),
    resample.restore_matrices(resampling),
    window_size=trained.input_size,
    batch_size=batch_size or options['batch_size'],
    overlap=options.get('overlap', 0.5) if overlap is None else overlap,
    keep_probabilities=keep_probabilities,
  )
  if largest_component:
    labels = segmentation.largest_components(labels, len(trained.organs) + 1)
  return labels, probabilities


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
  """Predicts one scan or a folder of scans; of several processes each takes a share.

  Args:
    workdir: of the trained run; window, grid and organ names come from its checkpoint.
    input_path: .nii/.nii.gz file, DICOM series folder, or a folder of either.
    output: a folder, or a .nii.gz file where the input is one scan.
    which, mirror_axes, largest_component, batch_size, overlap: as in `load` and `predict_volume`.
    save_probabilities: also write <scan>_probability_<organ>.nii.gz.

  Returns:
    One {'scan':, 'output':, 'volume_ml': {organ: mL}} per scan; the same table is written as volumes.csv and .json.
    Of several processes each returns all.

  Raises:
    InputError: nothing to predict, or a scan that cannot be trusted; what was predicted before it is kept.
  """
  scans = find_scans(input_path)
  to_file = output.endswith(('.nii', '.nii.gz'))
  if to_file and len(scans) > 1:
    raise InputError(output, f'{len(scans)} scans cannot go into one file', 'Give a folder as --output.')
  trained = load(workdir, which=which, mirror_axes=mirror_axes)
  folder = os.path.dirname(os.path.abspath(output)) if to_file else output
  try:
    os.makedirs(folder, exist_ok=True)
  except OSError as error:
    raise InputError(folder, f'cannot be made ({error})', 'Choose another --output.') from error
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
    if os.path.exists(target) and os.path.exists(path) and os.path.samefile(target, path):
      raise InputError(target, 'the output would overwrite the scan', 'Choose another --output.')
    scan = volumes.read_image(path)
    labels, probabilities = predict_volume(
      trained,
      scan,
      batch_size=batch_size,
      overlap=overlap,
      largest_component=largest_component,
      keep_probabilities=save_probabilities,
    )
    volumes.write_label(target, trained.on_file(labels), scan.geometry)
    if save_probabilities:
      stem = target.removesuffix('.gz').removesuffix('.nii')
      for organ, c in trained.labels.items():
        volumes.write_image(
          f'{stem}_probability_{organ}.nii.gz', probabilities[..., c].astype(np.float32), scan.geometry
        )
    voxel_ml = float(np.prod(scan.spacing_mm)) / 1000
    counts = np.bincount(labels.ravel(), minlength=len(trained.organs) + 1)
    rows.append(
      {
        'scan': name,
        'output': target,
        'volume_ml': {o: round(float(counts[c]) * voxel_ml, 3) for o, c in trained.labels.items()},
      }
    )
    if runtime.process_index() == 0:
      _write_volumes(folder, rows, trained.organs)  # after every scan: an error in the next one loses nothing
  by_name = {row['scan']: row for part in runtime.gather(rows) for row in part}
  rows = [by_name[name] for name in scans]
  if runtime.process_count() > 1:
    runtime.on_process_zero(lambda: _write_volumes(folder, rows, trained.organs))
  return rows


def find_scans(path: str) -> dict[str, str]:
  """The scans at a path, name -> path: the NIfTI files and DICOM series folders in a folder, or the one thing itself.

  Raises:
    InputError: nothing there.
  """
  if not os.path.exists(path):
    raise InputError(
      path, 'no such file or folder', 'Give a scan (.nii, .nii.gz), a DICOM series folder, or a folder of scans.'
    )
  if not os.path.isdir(path):
    return {_stem(path): path}
  entries = sorted(e for e in os.listdir(path) if not e.startswith('.'))
  files = [e for e in entries if e.endswith(('.nii', '.nii.gz'))]
  folders = [e for e in entries if os.path.isdir(os.path.join(path, e))]
  if files:  # beside them, folders of series; what else lies there is not a scan
    chosen = sorted(files + [e for e in folders if _holds_dicom(os.path.join(path, e))])
  else:
    chosen = folders if len(folders) == len(entries) else []
  if not entries:
    raise InputError(
      path, 'the folder is empty', 'Give a scan (.nii, .nii.gz), a DICOM series folder, or a folder of scans.'
    )
  if not chosen:  # files that are not NIfTI: a DICOM series, or volumes.read_image says what is wrong
    return {os.path.basename(os.path.abspath(path)): path}
  scans = {}
  for entry in chosen:
    if _stem(entry) in scans:
      raise InputError(
        os.path.join(path, entry), f'two scans are called {_stem(entry)}', 'Rename or remove one of them.'
      )
    scans[_stem(entry)] = os.path.join(path, entry)
  return scans


def _holds_dicom(folder: str) -> bool:
  """Whether a file in it carries DICOM's mark."""
  for entry in os.scandir(folder):
    if entry.is_file():
      with open(entry.path, 'rb') as f:
        if f.read(132)[128:] == b'DICM':
          return True
  return False


def _stem(path: str) -> str:
  return os.path.basename(os.path.abspath(path)).removesuffix('.gz').removesuffix('.nii')


def _write_volumes(folder: str, rows: list[dict], organs: Sequence[str]) -> None:
  metric_writer.write_json(os.path.join(folder, 'volumes.json'), {'unit': 'mL', 'scans': rows})
  path = os.path.join(folder, 'volumes.csv')
  with open(path + '.tmp', 'w', newline='') as f:
    table = csv.writer(f)
    table.writerow(['scan', *(f'{organ}_ml' for organ in organs)])
    table.writerows([row['scan'], *row['volume_ml'].values()] for row in rows)
  os.replace(path + '.tmp', path)
