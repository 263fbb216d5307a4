"""Predicts with a model file by the programs in it; with jax, numpy, scipy (which jax needs) and nibabel alone.

This module and those that it imports are part of every model file. It reads, resamples, predicts and restores as
`predict` does, by the same code; the network is the serialised program instead of a Flax module.
"""

import io
import json
import os
import sys
import tempfile

from afw_jax.distributed import xla_flags
from afw_jax.system import allocator

xla_flags.set_cpu_flags()  # before jax is imported: the kernels that `predict` uses

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax import export  # noqa: E402

from afw_jax.data.formats import channel_scans, nifti  # noqa: E402
from afw_jax.data.formats.volume import Volume  # noqa: E402
from afw_jax.errors import InputError  # noqa: E402
from afw_jax.inference import averaging  # noqa: E402
from afw_jax.inference.network import Trained  # noqa: E402
from afw_jax.model_file import archive, content  # noqa: E402

SCAN, LABELS, SHARES = (f'example/{name}' for name in ('scan.nii.gz', 'labels.nii.gz', 'probabilities.npy'))
ALIKE = 0.9999  # share of the voxels of the example: other devices round otherwise
_FAR = 0.02  # of a probability; bfloat16 and the products of TPUs and GPUs are less exact


def main(model: str, *arguments: str) -> int:
  """The program: (model, a file for each channel, label map), or (model, '--check'). Returns the exit code."""
  if xla_flags.is_for_cpu():
    allocator.keep_freed_memory()
  try:
    print(check(model) if arguments == ('--check',) else segment(model, *arguments))
  except InputError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


def segment(model: str, *paths: str) -> str:
  """Writes the label map of a NIfTI scan, on the grid and with the label ids of `predict`.

  Args:
    model: the model file.
    *paths: the scan, or a file for each of its channels in their order; and the label map.

  Returns:
    Text: what is unusual about the scan, the volume of each organ, and where the label map is.

  Raises:
    InputError: a damaged model file or scan, or a label map that cannot be written or is there already.
  """
  *scans, labels = paths
  if not labels.endswith(('.nii', '.nii.gz')):
    raise InputError(labels, 'does not end in .nii or .nii.gz', 'Choose such a name for the label map.')
  if os.path.lexists(labels):
    raise InputError(labels, 'is there already', 'Choose another name, or move it away.')
  networks = load(model)
  _check_count(networks[0], scans)
  scan = channel_scans.joined([Volume(*_read_image(path)) for path in scans])
  made = _segmented(networks, scan)
  nifti.write(labels, networks[0].file_ids(made.labels), scan.geometry)
  voxel_ml = float(np.prod(scan.spacing_mm)) / 1000
  counts = np.bincount(made.labels.ravel(), minlength=len(networks[0].organs) + 1)
  lines = [f'note: {note}' for note in made.notes]
  lines += [f'{organ}: {counts[c] * voxel_ml:.1f} mL' for organ, c in networks[0].labels.items()]
  return '\n'.join([*lines, f'label map: {labels}'])


def _check_count(network: Trained, scans: list[str]) -> None:
  if len(scans) == len(network.channels):
    return
  wanted = ' '.join(channel.name or 'SCAN' for channel in network.channels)
  what = f'takes {len(network.channels)} file(s) of a scan ({wanted}), and {len(scans)} are given'
  raise InputError(' '.join(scans), what, 'Give each channel in this order, then the label map.')


def _read_image(path: str) -> tuple:
  array, geometry, sha256 = nifti.read_image(path)
  return array, geometry, path, sha256


def scan_names(network: Trained) -> list[str]:
  """The members with the scan of the example, one for each channel."""
  several = len(network.channels)
  return [SCAN] if several == 1 else [f'example/scan_{i:04d}.nii.gz' for i in range(several)]


def check(model: str) -> str:
  """Compares the labels and probabilities of the example with those that are computed here.

  Raises:
    InputError: they differ.
  """
  meta, networks = archive.read_meta(model), load(model)
  scan = channel_scans.joined([_volume(model, meta, name) for name in scan_names(networks[0])])
  made = _segmented(networks, scan, keep_probabilities=True)
  wanted = _volume(model, meta, LABELS).array
  shares = np.load(io.BytesIO(archive.read(model, meta, SHARES)), allow_pickle=False)
  same = float(np.mean(networks[0].file_ids(made.labels) == wanted))
  apart = float(np.abs(made.probabilities.astype(np.float32) - shares).max())
  text = f'{same:.4%} of the labels of the example are equal, probabilities differ by up to {apart:.2g}'
  if not (same >= ALIKE and apart <= _FAR):  # NaN compares false
    raise InputError(model, f'does not predict here as where it was exported: {text}', 'Use another version of jax.')
  return text


def load(model: str) -> list[Trained]:
  """The networks of a model file; all give the probabilities of their classes in the order of the first.

  Raises:
    InputError: a damaged file, or one whose programs this version of jax cannot read.
  """
  meta, programs, networks = archive.read_meta(model), {}, []
  for network in content.networks_of(model, meta):
    name = network['program']
    if name not in programs:
      programs[name] = _program(model, name, archive.read(model, meta, name))
    weights = read_tensors(archive.read(model, meta, network['weights']))
    networks.append(Trained(programs[name], jax.device_put(weights), network['meta']))
  return [networks[0], *(averaging.in_order_of(networks[0], other) for other in networks[1:])]


def _program(model: str, name: str, data: bytes):
  try:
    exported = export.deserialize(bytearray(data))
  except Exception as error:  # of a version that does not know it: anything
    cure = 'Use the version of jax in its meta.json, or export the model again with this one (--mode=import, export).'
    raise InputError(f'{model}/{name}', f'cannot be read by jax {jax.__version__} ({error})', cure) from error
  return jax.jit(lambda weights, image, window: exported.call(weights, image.astype(jnp.float32), window))


def read_tensors(data: bytes) -> dict[str, np.ndarray]:
  """The arrays of a .safetensors file of float32 numbers: 8 bytes with the size of a JSON header, header, data."""
  start = 8 + int.from_bytes(data[:8], 'little')
  header = json.loads(data[8:start])
  header.pop('__metadata__', None)
  arrays = {}
  for name, entry in header.items():
    first, last = entry['data_offsets']
    arrays[name] = np.frombuffer(data[start + first : start + last], '<f4').reshape(entry['shape'])
  return arrays


def _segmented(networks: list[Trained], scan: Volume, *, keep_probabilities: bool = False) -> averaging.Segmented:
  return averaging.segment_scan(
    networks, scan, batch_size=None, overlap=None, largest_component=False, keep_probabilities=keep_probabilities
  )


def _volume(model: str, meta: dict, name: str) -> Volume:
  """The scan or the label map of the example."""
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, os.path.basename(name))
    with open(path, 'wb') as file:
      file.write(archive.read(model, meta, name))
    array, geometry, sha256 = nifti.read_label(path) if name == LABELS else nifti.read_image(path)
  return Volume(array, geometry, name, sha256)
