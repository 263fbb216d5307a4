"""Segments a scan by the networks of one run or several, whose probabilities are averaged on the grid of the scan."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from afw_jax.data import resample, usual, working_grid
from afw_jax.data.formats import volumes
from afw_jax.data.padding import without_padding
from afw_jax.data.sets import intensities
from afw_jax.data.sets.window import scan_window
from afw_jax.errors import InputError
from afw_jax.inference import batch, segmentation
from afw_jax.inference.forward import PredictStep
from afw_jax.inference.trained import Trained, overlap_of
from afw_jax.training import checkpoint


def alike(loaded: Mapping[str, Trained], mirror_axes: Sequence[int] = ()) -> list[Trained]:
  """Checks that the probabilities of networks can be averaged, and brings them into the order of the first.

  Args:
    loaded: workdir -> its network.
    mirror_axes: that they were loaded with.

  Returns:
    The networks; those of the same kind share one program, which is compiled once.

  Raises:
    InputError: runs of other organs (by name), another modality or another scale of intensities, the same checkpoint
      twice, or axes to mirror for networks of slices and of volumes.
  """
  (where, first), *others = loaded.items()
  digests = {_digest(first): where}
  networks, programs = [first], {_program(first): first.predict_step}
  for workdir, trained in others:
    if unlike := sorted(set(trained.organs) ^ set(first.organs)):
      what = f'has other organs than {where}: {", ".join(unlike)} only in one of them'
      raise InputError(workdir, what, 'Average runs of the same organs.')
    for name, of in (('modality', lambda t: t.meta['data'].get('modality')), ('scale of intensities', _scale)):
      if of(trained) != of(first):
        what = f'was trained on another {name} ({of(trained)}) than {where} ({of(first)})'
        raise InputError(workdir, what, 'Average runs that can predict the same scans.')
    if (same := digests.setdefault(_digest(trained), workdir)) != workdir:
      raise InputError(workdir, f'has the same checkpoint as {same}', 'Give each run once.')
    if mirror_axes and len(trained.input_size) != len(first.input_size):
      raise InputError(
        '--mirror_axes',
        f'{list(mirror_axes)} are other axes for the slices of a 2D network than for the volumes of a 3D one',
        f'Leave it out for {where} with {workdir}.',
      )
    trained = dataclasses.replace(trained, predict_step=programs.setdefault(_program(trained), trained.predict_step))
    networks.append(_in_order_of(first, trained))
  return networks


def _digest(trained: Trained) -> str:
  return checkpoint.digest(trained.meta)


def _scale(trained: Trained) -> str:
  return 'HU' if intensities.is_hu(trained.meta['data']['options']) else 'not in HU'


def _program(trained: Trained) -> str:
  """What tells the compiled forward pass of a network from others that were loaded with the same options."""
  runtime, mesh = (trained.meta['config'].get(section, {}) for section in ('runtime', 'mesh'))
  used = (trained.meta['model'], runtime.get('matmul_precision'), mesh.get('spatial'))
  return json.dumps(used, sort_keys=True)


def _in_order_of(first: Trained, trained: Trained) -> Trained:
  """A network that gives the probabilities of its classes in the order of another that has the same organs."""
  order = np.array([0, *(trained.labels[organ] for organ in first.organs)])
  if (np.diff(order) == 1).all():
    return trained
  step: PredictStep = trained.predict_step
  reordered = lambda variables, image, window: step(variables, image, window)[..., order]
  return dataclasses.replace(trained, predict_step=reordered)


def checkpoints(networks: Sequence[Trained], workdirs: Sequence[str]) -> dict:
  """The entry 'checkpoint' of the record of predictions: 'sha256' and the step and workdir of each network."""
  each = [
    {'step': trained.meta['step'], 'sha256': _digest(trained), 'workdir': os.fspath(workdir)}
    for trained, workdir in zip(networks, workdirs, strict=True)
  ]
  if len(each) == 1:
    return each[0]
  together = hashlib.sha256(' '.join(one['sha256'] for one in each).encode()).hexdigest()
  return {'sha256': together, 'average_of': each}


def option(values: Iterable) -> object:
  """An option in the record of predictions: its value, or those of all networks where they differ."""
  values = list(values)
  return values[0] if all(value == values[0] for value in values) else values


def segment_scan(
  networks: Sequence[Trained],
  scan: volumes.Volume,
  *,
  batch_size: int | None,
  overlap: float | None,
  largest_component: bool,
  keep_probabilities: bool,
) -> batch.Segmented:
  """Segments a scan by one network, or by the mean of the probabilities of several; see `predict.predict_volume`."""
  scan, views, notes = _cleaned(networks[0], scan), [], []
  for trained in networks:
    config, data = trained.meta['config']['eval'], trained.meta['data']
    window = scan_window(scan.array, data['window'])
    resampling, image = working_grid.to_working_grid(scan, data['options'], usual.overhang_of(data))
    options = segmentation.Options(
      trained.input_size,
      batch_size=batch_size or config['batch_size'],
      overlap=overlap_of(trained) if overlap is None else overlap,
    )
    matrices = resample.restore_matrices(resampling)
    views.append(segmentation.View(trained.predict_step, trained.variables, image, window, matrices, options))
    notes += _notes(trained, scan, window)
  labels, probabilities = segmentation.segment_views(views, keep_probabilities=keep_probabilities)
  labels = segmentation.largest_components(labels) if largest_component else labels
  return batch.Segmented(labels, probabilities, list(dict.fromkeys(notes)))


def scan_notes(networks: Sequence[Trained], scan: volumes.Volume) -> list[str]:
  """What is unusual about a scan for any of the networks; see `predict.scan_notes`."""
  scan = _cleaned(networks[0], scan)
  each = (_notes(trained, scan, scan_window(scan.array, trained.meta['data']['window'])) for trained in networks)
  return list(dict.fromkeys(note for notes in each for note in notes))


def _cleaned(trained: Trained, scan: volumes.Volume) -> volumes.Volume:
  """The scan without padding."""
  in_hu = intensities.is_hu(trained.meta['data']['options'])
  return dataclasses.replace(scan, array=without_padding(scan.array, in_hu=in_hu))


def _notes(trained: Trained, scan: volumes.Volume, window: tuple[float, float]) -> list[str]:
  data = trained.meta['data']
  return usual.notes_on(intensities.describe(scan.array, intensities.is_hu(data['options'])), window, data)
