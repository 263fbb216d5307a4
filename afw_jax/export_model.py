"""Exports the networks of runs as one model file, which predicts with and without this package."""

import glob
import io
import json
import os
import tempfile
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from afw_jax import predict
from afw_jax import workdir as run_folder
from afw_jax.data import phantom
from afw_jax.data.formats import volumes
from afw_jax.data.formats.geometry import Geometry
from afw_jax.data.sets import lookup
from afw_jax.errors import InputError
from afw_jax.inference.network import Trained, precision_of
from afw_jax.inference.trained import read_meta
from afw_jax.model_file import archive, card, content, networks, program, run, sources
from afw_jax.report import runs, tables
from afw_jax.system import atomic_files
from afw_jax.training import checkpoint
from afw_jax.weights import files

_EXAMPLE = ((10, 44, 52), (9.0, 5.0, 5.0))  # voxels and spacing (z, y, x) of a synthetic scan


def export_model(
  workdirs: Sequence[str], output: str, *, which: str = 'best', overwrite: bool = False
) -> tuple[str, str]:
  """Writes a model file with the networks of one run, or of several whose probabilities are averaged.

  Args:
    workdirs: of trained runs.
    output: of the file, which ends in .zip.
    which: 'best' or 'last' checkpoint.
    overwrite: replace a file that is there.

  Returns:
    (path of the file, how well it gives the labels of `predict` on this machine).

  Raises:
    InputError: a run that cannot be loaded, runs of other organs or modalities, an output that cannot be written or is
      there already, or a program that does not give the labels of the run. Nothing is left behind then.
  """
  workdirs, output = [os.path.expanduser(w) for w in workdirs], os.path.expanduser(output)
  _check_output(output, overwrite)
  for workdir in workdirs:
    if networks.is_in_file(workdir):
      raise InputError(workdir, 'is a model file already', 'Import it as a run first (--mode=import).')
  trained = predict.load_all(workdirs, which=which)
  entries = [_entry(i, w, which, t) for i, (w, t) in enumerate(zip(workdirs, trained, strict=True), 1)]
  programs: dict[str, str] = {}  # networks of the same kind share one
  for entry in entries:
    key = json.dumps([entry['meta']['model'], precision_of(entry['meta'])], sort_keys=True)
    entry['program'] = programs.setdefault(key, f'programs/{len(programs) + 1}.jax_export')
  first, versions = entries[0]['meta']['data'], run_folder.environment()
  meta = {
    'versions': {key: versions[key] for key in ('python', 'packages')},
    'organs': {organ: {'class': c, 'label': first['output_ids'][organ]} for c, organ in enumerate(first['organs'], 1)},
    'axis_order': content.AXES,
    **({'channels': [channel.name for channel in trained[0].channels]} if len(trained[0].channels) > 1 else {}),
    'platforms': program.PLATFORMS,
    'networks': entries,
  }

  def members() -> Iterator[tuple[str, bytes]]:
    yield 'README.md', card.text(meta, _sources_of(entries)).encode()
    yield from sources.members()
    for name, entry in {entry['program']: entry for entry in reversed(entries)}.items():
      yield name, program.serialised(entry['meta'])
    for entry, network in zip(entries, trained):
      weights = program.flat(jax.device_get(network.variables))
      yield entry['weights'], files.to_safetensors({name: np.ascontiguousarray(a) for name, a in weights.items()})
    yield from _example(trained)

  found = []
  archive.write(output, members(), meta, verify=lambda path: found.append(run.check(path)))
  return output, found[0]


def _check_output(output: str, overwrite: bool) -> None:
  if not output.lower().endswith('.zip') or os.path.isdir(output):
    raise InputError(output, 'is not the name of a model file', 'Give a file that ends in .zip: --output=model.zip.')
  if os.path.lexists(output) and not overwrite:
    raise InputError(output, 'is there already', 'Choose another --output, or replace it with --overwrite.')


def _entry(number: int, workdir: str, which: str, trained: Trained) -> dict:
  """The entry of a network in meta.json, without its program."""
  folder, _ = read_meta(workdir, which)
  digest = trained.meta.get('checkpoint_sha256') or checkpoint.digest(trained.meta)
  return {
    'name': os.path.basename(os.path.abspath(workdir)),
    'weights': f'networks/{number}/weights.safetensors',
    'scores': _scores(workdir, checkpoint.digest(trained.meta)),
    'data_licence': _licence(trained.meta),
    'meta': content.handed_over(trained.meta, os.path.basename(folder), digest),
  }


def _scores(workdir: str, digest: str) -> dict | None:
  """The means over cases that the run was scored with; None where it was not, or with another checkpoint."""
  cases = sorted(glob.glob(os.path.join(glob.escape(workdir), 'cases', '*.json')))
  if not cases:
    return None
  scored = runs.read_run(workdir)  # all cases alike
  if atomic_files.read_json(cases[0], cure='Run --mode=evaluate again.').get('checkpoint_sha256') != digest:
    return None
  return {
    **{key: getattr(scored, key) for key in ('split', 'convention', 'unit')},
    'checkpoint': scored.settings.get('checkpoint'),
    'cases': len(scored.cases),
    'organs': {organ: {**means, **counts} for organ, means, counts in tables.organ_rows(scored)},
  }


def _licence(meta: dict) -> str:
  """The licence that dataset.json of a data set gives; '' where the data set is not there, or says nothing."""
  data = meta['config']['data']
  if data['dataset'] != 'folder' or not os.path.isfile(os.path.join(data['root'], 'dataset.json')):
    return ''
  spec = lookup.get_spec('folder', data['root'])
  return spec.licence if spec.name == meta['data']['name'] else ''


def _sources_of(entries: Sequence[dict]) -> dict[str, str]:
  """Name of a public data set -> where it comes from."""
  sets = {entry['meta']['config']['data']['dataset'] for entry in entries} - {'folder'}
  return {spec.name: f'{spec.how_to_get}.' for spec in map(lookup.get_spec, sets)}


def _example(trained: Sequence[Trained]) -> Iterator[tuple[str, bytes]]:
  """A synthetic scan on an oblique, flipped grid with its label map and probabilities, as members."""
  names = run.scan_names(trained[0])
  with tempfile.TemporaryDirectory() as folder:
    path = lambda name: os.path.join(folder, os.path.basename(name))
    for name, channel in zip(names, trained[0].channels, strict=True):
      volumes.write_image(path(name), *_synthetic(channel.in_hu, trained[0].meta['data']))
    scan = volumes.read_channels([path(name) for name in names])
    labels, shares = predict.predict_volume(trained, scan, keep_probabilities=True)
    volumes.write_label(path(run.LABELS), trained[0].file_ids(labels), scan.geometry)
    for name in (*names, run.LABELS):
      with open(path(name), 'rb') as file:
        yield name, file.read()
  content = io.BytesIO()
  np.save(content, shares, allow_pickle=False)
  yield run.SHARES, content.getvalue()


def _synthetic(in_hu: bool, data: dict) -> tuple[np.ndarray, Geometry]:
  """(scan in the internal orientation, its grid) with the intensities of a kind of scans."""
  shape, spacing_mm = _EXAMPLE
  image, _ = phantom.make_phantom(0, shape, spacing_mm)
  if not in_hu:
    image = image + np.int16(1024)
    image = image / np.float32(4095) if data['options']['source'] == 'transunet' else image
  turn, tilt = np.deg2rad(9), np.deg2rad(5)
  about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
  about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
  affine = np.eye(4)
  affine[:3, :3] = about_z @ about_x @ np.diag([-spacing_mm[2], spacing_mm[1], spacing_mm[0]])
  affine[:3, 3] = (90.0, -120.0, 40.0)
  return image, Geometry(shape=shape[::-1], affine=affine.tolist())
