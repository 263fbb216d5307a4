"""Segments a scan by the networks of one run or several, whose probabilities are averaged on the grid of the scan."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from afw_jax.data import resample, usual, working_grid
from afw_jax.data.formats.volume import Volume
from afw_jax.data.padding import without_padding_of
from afw_jax.data.sets import intensities
from afw_jax.data.sets.window import scan_window
from afw_jax.errors import InputError
from afw_jax.inference import segmentation
from afw_jax.inference.forward import PredictStep
from afw_jax.inference.network import Trained, overlap_of


class Segmented(NamedTuple):
  """A segmented scan.

  Attributes:
    labels: (D, H, W) class ids.
    probabilities: (D, H, W, C), or None.
    notes: what is unusual about the scan; logged, and recorded with its row.
  """

  labels: np.ndarray
  probabilities: np.ndarray | None
  notes: list[str]


def in_order_of(first: Trained, trained: Trained) -> Trained:
  """A network that gives the probabilities of its classes in the order of another that has the same organs."""
  order = np.array([0, *(trained.labels[organ] for organ in first.organs)])
  if (np.diff(order) == 1).all():
    return trained
  step: PredictStep = trained.predict_step
  reordered = lambda variables, image, window: step(variables, image, window)[..., order]
  return dataclasses.replace(trained, predict_step=reordered)


def segment_scan(
  networks: Sequence[Trained],
  scan: Volume,
  *,
  batch_size: int | None,
  overlap: float | None,
  largest_component: bool,
  keep_probabilities: bool,
) -> Segmented:
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
  labels, probabilities = segmentation.segment_views(views, keep_probabilities=keep_probabilities, name=scan.source)
  labels = segmentation.largest_components(labels) if largest_component else labels
  return Segmented(labels, probabilities, list(dict.fromkeys(notes)))


def scan_notes(networks: Sequence[Trained], scan: Volume) -> list[str]:
  """What is unusual about a scan for any of the networks; see `predict.scan_notes`."""
  scan = _cleaned(networks[0], scan)
  each = (_notes(trained, scan, scan_window(scan.array, trained.meta['data']['window'])) for trained in networks)
  return list(dict.fromkeys(note for notes in each for note in notes))


def _cleaned(trained: Trained, scan: Volume) -> Volume:
  """The scan without padding."""
  wanted, found = len(trained.channels), scan.array.shape[3] if scan.array.ndim == 4 else 1
  if found != wanted:
    names = f' ({", ".join(channel.name for channel in trained.channels)})' if wanted > 1 else ''
    what = f'has {found} channel{"s" if found > 1 else ""}, and the network takes {wanted}{names}'
    raise InputError(scan.source, what, 'Read all channels of its training, and no other (volumes.read_channels).')
  return dataclasses.replace(scan, array=without_padding_of(scan.array, trained.channels))


def _notes(trained: Trained, scan: Volume, window: Sequence) -> list[str]:
  return usual.notes_on(intensities.describe_channels(scan.array, trained.channels), window, trained.meta['data'])
