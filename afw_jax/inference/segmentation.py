"""Segments whole volumes by slices or sliding windows, and returns label maps on the grid of the scan."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import cast

import jax
import numpy as np
from scipy import ndimage

from afw_jax.data import resample
from afw_jax.errors import InputError
from afw_jax.inference import restoration
from afw_jax.inference.forward import Array, PredictStep, PyTree
from afw_jax.inference.sliding_window import predict_windows

Matrices = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Options:
  """How a volume is put through a network.

  Attributes:
    input_size: spatial shape that the network sees at once: (h, w) of slices, (d, h, w) of sliding windows. Slices that
      are larger are put together from windows too.
    batch_size: slices or sliding windows per call of the network.
    overlap: of neighbouring sliding windows along each axis, as a share of their side, in [0, 1).
    largest_component: keep only the largest connected component of each organ.
  """

  input_size: tuple[int, ...]
  batch_size: int = 8
  overlap: float = 0.5
  largest_component: bool = False


def predict_slices(
  predict_step: PredictStep, variables: PyTree, image: np.ndarray, window: Sequence[float], *, batch_size: int
) -> Iterator[tuple[int, Array]]:
  """Runs a 2D network over the slices of a volume.

  Args:
    predict_step: jitted.
    variables: of the network.
    image: (D, h, w) or (D, h, w, channels) raw intensities on the working grid.
    window: (low, high) intensities of this scan, or one for each channel.
    batch_size: slices per call; the last call is padded, so there is one compilation.

  Yields:
    (first slice, probabilities (n, h, w, C)) on the device.
  """
  bounds = np.asarray(window, np.float32)
  bounds = np.broadcast_to(bounds, (batch_size, *bounds.shape))
  for start in range(0, len(image), batch_size):
    part = np.asarray(image[start : start + batch_size])
    padded = np.concatenate([part, np.repeat(part[-1:], batch_size - len(part), 0)]) if len(part) < batch_size else part
    yield start, predict_step(variables, padded.reshape(*padded.shape[:3], -1), bounds)[: len(part)]


@dataclasses.dataclass(frozen=True)
class View:
  """One scan as one network takes it.

  Attributes:
    predict_step: jitted.
    variables: of the network.
    image: (d, h, w) or (d, h, w, channels) raw intensities on the working grid of the network.
    window: (low, high) intensities of this scan, or one for each channel.
    matrices: (D, d), (H, h) and (W, w), working grid -> scan's grid, from `resample.restore_matrices`.
    options: how the volume is put through the network.
  """

  predict_step: PredictStep
  variables: PyTree
  image: np.ndarray
  window: Sequence
  matrices: Matrices
  options: Options


def _slabs(view: View) -> Iterator[tuple[slice, restoration.Slab]]:
  """(slices of the scan's grid, what they are restored from), in z order."""
  size, options = view.options.input_size, view.options
  if len(size) not in (2, 3):
    raise InputError(f'input_size {tuple(size)}', 'is not a valid size', 'Give (h, w) or (d, h, w).')
  if tuple(size) == view.image.shape[1:3]:
    working = predict_slices(view.predict_step, view.variables, view.image, view.window, batch_size=options.batch_size)
  else:
    working = predict_windows(
      view.predict_step if len(size) == 3 else _of_flat_volumes(view.predict_step),
      view.variables,
      view.image,
      view.window,
      window_size=(1,) * (3 - len(size)) + tuple(size),
      overlap=options.overlap,
      batch_size=options.batch_size,
    )
  rows, columns = (jax.device_put(restoration.interpolation(matrix)) for matrix in view.matrices[1:])
  for block in restoration.blocks(working, np.asarray(view.matrices[0])):
    slab = restoration.Slab(block.slices, block.along_z, rows, columns)
    yield slice(block.first, block.first + block.count), slab


def segment_views(
  views: Sequence[View], *, keep_probabilities: bool = False, name: str | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
  """The label map of one scan on its own grid, by one network or by the mean of the probabilities of several.

  It is computed a few slices at a time. The networks take turns, so that of no network the probabilities of a whole
  volume are held; where the working grid of one does not reach, its probabilities are 0 and the others decide.

  Args:
    views: of the same scan by each network, all with the same classes.
    keep_probabilities: also return the probabilities.
    name: of the scan, for the error where its probabilities are NaN; None: such slices are background.

  Returns:
    (labels (D, H, W) uint8 class ids, probabilities (D, H, W, C) float16 or None).

  Raises:
    InputError: options.input_size or options.overlap are not valid, or the network gives no numbers.
  """
  labels = np.empty([len(m) for m in views[0].matrices], np.uint8)
  kept: np.ndarray | None = None
  ready: tuple[slice, Array] | None = None
  for parts in zip(*map(_slabs, views), strict=True):
    part = parts[0][0]
    found, probabilities = restoration.restore([slab for _, slab in parts], keep_probabilities=keep_probabilities)
    if probabilities is not None:
      if kept is None:
        kept = np.empty((*labels.shape, probabilities.shape[-1]), np.float16)
      kept[part] = np.asarray(probabilities)[: part.stop - part.start]
    if ready is not None:  # copied one block late, so that the device is never idle
      _copy(labels, *ready)
    ready = part, found
  if ready is not None:
    _copy(labels, *ready)
  if labels.max(initial=0) < restoration.NO_CLASS:
    return labels, kept
  if name is not None:
    what = 'the network gives NaN for it: its weights are damaged, or numbers overflow in it'
    raise InputError(name, what, 'Use another checkpoint; check the intensities of the scan, and model.dtype=float32.')
  return np.where(labels == restoration.NO_CLASS, np.uint8(0), labels), kept


def _of_flat_volumes(predict_step: PredictStep) -> PredictStep:
  """The forward pass of a 2D network as that of a 3D one, for volumes of one slice."""
  return lambda variables, image, window: predict_step(variables, image[:, 0], window)[:, None]


def _copy(labels: np.ndarray, part: slice, found: Array) -> None:
  labels[part] = np.asarray(found)[: part.stop - part.start]


def segment(
  predict_step: PredictStep,
  variables: PyTree,
  image: np.ndarray,
  window: Sequence[float],
  matrices: Matrices,
  options: Options,
  *,
  keep_probabilities: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
  """`segment_views` for one network; the arguments are the attributes of its `View`."""
  view = View(predict_step, variables, image, window, matrices, options)
  return segment_views([view], keep_probabilities=keep_probabilities)


def segment_volume(
  predict_step: PredictStep,
  variables: PyTree,
  image: np.ndarray,
  window: Sequence[float],
  resampling: resample.Resampling,
  options: Options,
  *,
  name: str | None = None,
) -> np.ndarray:
  """The final label map of one scan: `segment` on its own grid, then the clean-up that the options ask for.

  Args:
    predict_step: jitted.
    variables: of the network.
    image: (d, h, w) or (d, h, w, channels) raw intensities on the working grid.
    window: (low, high) intensities of this scan, or one for each channel.
    resampling: how the scan was brought to the working grid.
    options: how the volume is put through the network.
    name: as in `segment_views`.

  Returns:
    (D, H, W) uint8 class ids.

  Raises:
    InputError: as `segment_views`.
  """
  matrices = resample.restore_matrices(resampling)
  labels, _ = segment_views([View(predict_step, variables, image, window, matrices, options)], name=name)
  return largest_components(labels) if options.largest_component else labels


def largest_components(labels: np.ndarray) -> np.ndarray:
  """Keeps the largest 26-connected component of every organ; the rest becomes background.

  Args:
    labels: (D, H, W) integer class ids, 0 the background.

  Returns:
    A new array of the same shape and dtype.
  """
  out = labels.copy()
  for c, box in enumerate(ndimage.find_objects(labels), 1):
    if box is None:
      continue
    organ = labels[box] == c
    parts, n = cast(tuple[np.ndarray, int], ndimage.label(organ, structure=np.ones((3,) * labels.ndim)))
    if n > 1:
      sizes = np.bincount(parts.ravel())
      sizes[0] = 0
      out[box][organ & (parts != sizes.argmax())] = 0
  return out
