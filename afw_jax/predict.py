"""Prediction: label maps of new scans (NIfTI, DICOM series, or folders of them) by the network of a run or several."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from afw_jax import workdir as run_folder
from afw_jax.data.formats import dicom_seg, itk_files, volumes
from afw_jax.data.formats import scans as scan_files
from afw_jax.data.formats.dicom_series import PassedOver
from afw_jax.data.formats.scans import Scan
from afw_jax.data.sets import channels
from afw_jax.distributed import runtime
from afw_jax.errors import InputError, InputErrors
from afw_jax.inference import averaging, batch, channel_input, ensemble, outputs, record
from afw_jax.inference.network import Trained, overlap_of, precision_of
from afw_jax.inference.trained import load, meta_of
from afw_jax.model_file.networks import names


def load_all(
  workdirs: Sequence[str | os.PathLike],
  *,
  which: str = 'best',
  mirror_axes: Sequence[int] = (),
  matmul_precision: str | None = None,
) -> list[Trained]:
  """Loads the networks of several trained runs or model files, whose probabilities can be averaged.

  Args:
    workdirs: of the runs, or model files; of unlike networks too (2D and 3D), whose order of the organs may differ.
    which, mirror_axes, matmul_precision: as in `load`.

  Returns:
    The networks; all give the probabilities of their classes in the order of the first.

  Raises:
    InputError: a run cannot be loaded, is given twice, or is not of the same organs or the same modality.
  """
  loaded = {}
  for workdir in networks_at(workdirs):
    if workdir in loaded:
      raise InputError('--workdir', f'{workdir} is given twice', 'Give each run once.')
    loaded[workdir] = load(workdir, which=which, mirror_axes=mirror_axes, matmul_precision=matmul_precision)
  return ensemble.alike(loaded, mirror_axes)


def networks_at(workdirs: Sequence[str | os.PathLike]) -> list[str]:
  """The networks of runs and model files, as `load` takes them: of a file that holds several, FILE/1, FILE/2, ..."""
  return [name for workdir in workdirs for name in names(os.path.expanduser(os.fspath(workdir)))]


def predict_volume(
  trained: Trained | Sequence[Trained],
  scan: volumes.Volume,
  *,
  batch_size: int | None = None,
  overlap: float | None = None,
  largest_component: bool = False,
  keep_probabilities: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
  """Segments a scan that was read with `volumes.read_image`.

  Args:
    trained: from `load`; or from `load_all`, to average their probabilities.
    scan: in the internal orientation; of several channels from `volumes.read_channels`.
    batch_size: slices or sliding windows per call of the network; None: eval.batch_size of the run.
    overlap: of neighbouring sliding windows, as a share of their side; None: eval.overlap of the run.
    largest_component: keep only the largest connected component of each organ.
    keep_probabilities: also return the probabilities.

  Returns:
    (labels (D, H, W) uint8 class ids on the scan's own grid, probabilities (D, H, W, C) float16 or None).

  Raises:
    InputError: the scan carries no voxel size and the working grid needs one.
  """
  made = averaging.segment_scan(
    [trained] if isinstance(trained, Trained) else trained,
    scan,
    batch_size=batch_size,
    overlap=overlap,
    largest_component=largest_component,
    keep_probabilities=keep_probabilities,
  )
  return made.labels, made.probabilities


def scan_notes(trained: Trained | Sequence[Trained], scan: volumes.Volume) -> list[str]:
  """What is unusual about a scan for a network: warnings, with which its label map is not to be trusted unseen.

  Args:
    trained: from `load` or `load_all`.
    scan: from `volumes.read_image`.

  Returns:
    Sentences without a full stop; empty for a scan like those of the training.
  """
  return averaging.scan_notes([trained] if isinstance(trained, Trained) else trained, scan)


def predict(
  workdir: str | os.PathLike | Sequence[str | os.PathLike],
  input_path: str | os.PathLike,
  output: str | os.PathLike,
  **options: Any,
) -> list[dict]:
  """Segments one scan or a folder of scans, as `predict_all`, and returns the rows of all of them.

  Raises:
    InputError, InputErrors: as `predict_all`, and where scans could not be segmented; the label maps of the others are
      there.
  """
  outcome = predict_all(workdir, input_path, output, **options)
  if outcome.failed:
    raise outcome.failed[0] if len(outcome.failed) == 1 else InputErrors(outcome.failed)
  return outcome.rows


def predict_all(
  workdir: str | os.PathLike | Sequence[str | os.PathLike],
  input_path: str | os.PathLike,
  output: str | os.PathLike,
  *,
  which: str = 'best',
  mirror_axes: Sequence[int] = (),
  largest_component: bool = False,
  save_probabilities: bool = False,
  batch_size: int | None = None,
  overlap: float | None = None,
  overwrite: bool = False,
  matmul_precision: str | None = None,
  file_format: str = 'nifti',
  resample_dicom: bool = False,
) -> batch.Outcome:
  """Segments one scan or a folder of scans; of several processes each takes a part of them.

  A scan that cannot be segmented does not end the others. A label map that was made before, from the same scan by the
  same checkpoint with the same options, is not made again.

  Args:
    workdir: of the trained run, or a model file; window, grid and organ names come from its checkpoint. Of several
      runs the probabilities are averaged on the grid of the scan, each with its own window and working grid.
    input_path: a file with one scan, or a folder, with files and DICOM series at any depth. Of several channels
      NAME_0000, NAME_0001, ... are one scan, NAME; as a file any of them is given.
    output: a folder, or a .nii.gz file (.dcm: dicom_seg) where the input is one scan. Tables of all label maps in the
      folder are volumes.csv and volumes.json; the latter also names what failed and what was passed over.
    which, mirror_axes, largest_component, batch_size, overlap, matmul_precision: as in `load` and `predict_volume`.
    save_probabilities: also write <scan>_probability_<organ>.nii.gz.
    overwrite: make every label map again, also in place of files that were not made from this scan.
    file_format: of the label maps: 'nifti', 'nrrd', 'mha', or 'dicom_seg' for DICOM segmentations of DICOM series.
    resample_dicom: interpolate tilted or unevenly spaced DICOM slices, which are refused otherwise, to an even grid, on
      which the label map is written too.

  Returns:
    What became of the scans, in every process of all of them.

  Raises:
    InputError, InputErrors: no scan was found, a channel is missing, `output` cannot be used, the network
      cannot be loaded, or the machine is at its end (disk, memory). What was predicted before is kept, and the same
      call goes on from there.
  """
  workdirs = networks_at([workdir] if isinstance(workdir, str | os.PathLike) else workdir)
  input_path, output = (os.path.expanduser(path) for path in (input_path, output))
  folder, to_file = outputs.destination(output, file_format)
  found, passed_over = _find(input_path)
  if file_format == 'dicom_seg':
    dicom_seg.check_possible(input_path, found)
  if file_format in ('nrrd', 'mha'):
    itk_files.simple_itk(f'--format={file_format}')
  options = meta_of(workdirs[0], which)['data']['options']
  scans = channel_input.grouped(found, channels.of(options), input_path)
  if to_file and len(scans) > 1:
    raise InputError(output, f'{len(scans)} scans cannot go into one file', 'Give a folder as --output.')
  record.check(folder)
  networks = load_all(workdirs, which=which, mirror_axes=mirror_axes, matmul_precision=matmul_precision)
  trained = networks[0]
  checkpoint = ensemble.checkpoints(networks, workdirs)
  job = batch.Job(
    input_path,
    folder,
    scans,
    labels={scan.name: output if to_file else outputs.label_path(folder, scan, file_format) for scan in scans},
    made_by={
      'checkpoint': checkpoint,
      'options': {
        'mirror_axes': list(mirror_axes),
        'overlap': ensemble.option(overlap_of(network) if overlap is None else overlap for network in networks),
        'largest_component': largest_component,
        'matmul_precision': ensemble.option(matmul_precision or precision_of(network.meta) for network in networks),
      },
      'format': file_format,
      'environment': {k: v for k, v in run_folder.environment().items() if k in ('python', 'packages', 'devices')},
    },
    ids={organ: trained.meta['data']['output_ids'][organ] for organ in trained.organs},
    file_ids=trained.file_ids,
    segment=functools.partial(
      averaging.segment_scan,
      networks,
      batch_size=batch_size,
      overlap=overlap,
      largest_component=largest_component,
      keep_probabilities=save_probabilities,
    ),
    measured=channels.measured(options),
    as_segments=functools.partial(dicom_seg.opened, organs=trained.organs, checkpoint=checkpoint['sha256'])
    if file_format == 'dicom_seg'
    else None,
    probabilities=save_probabilities,
    overwrite=overwrite,
    resample_dicom=resample_dicom,
  )
  return batch.run(job, passed_over)


def _find(path: str) -> tuple[list[Scan], list[PassedOver]]:
  """The scans that process 0 finds at a path, in every process; label maps of earlier predictions are not scans."""

  def find() -> list:
    found = scan_files.find_scans(path, written=record.files_below)
    return [[dataclasses.astuple(scan) for scan in found.scans], found.passed_over]

  scans, passed_over = runtime.from_process_zero(find)
  return [Scan(name, path, tuple(files)) for name, path, files, _ in scans], [
    PassedOver(*entry) for entry in passed_over
  ]
