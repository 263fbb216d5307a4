"""Segments whole volumes by slices or sliding windows, and returns label maps on the grid of the scan."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from afw_jax.data import resample
from afw_jax.errors import InputError
from afw_jax.inference.forward import Array, PredictStep, PyTree
from afw_jax.inference.sliding_window import predict_windows

Matrices = tuple[np.ndarray, np.ndarray, np.ndarray]

_ROWS = 8  # slices of the scan's grid made at a time
_NO_CLASS = 255  # of a voxel whose probabilities are NaN; networks have at most 254 organs


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
    image: (D, h, w) raw intensities on the working grid.
    window: (low, high) intensities of this scan.
    batch_size: slices per call; the last call is padded, so there is one compilation.

  Yields:
    (first slice, probabilities (n, h, w, C)) on the device.
  """
  bounds = np.broadcast_to(np.asarray(window, np.float32), (batch_size, 2))
  for start in range(0, len(image), batch_size):
    part = np.asarray(image[start : start + batch_size])
    padded = np.concatenate([part, np.repeat(part[-1:], batch_size - len(part), 0)]) if len(part) < batch_size else part
    yield start, predict_step(variables, padded[..., None], bounds)[: len(part)]


class _Block(NamedTuple):
  """Slices of the working grid from which some slices of the scan's grid are interpolated.

  The number of working slices is the same in every block, and `weights` is padded with rows of zeros, so that
  `_restore` is compiled once.

  Attributes:
    first: first slice of the scan's grid.
    count: slices of the scan's grid.
    slices: of the working grid, (h, w, C) each.
    weights: (_ROWS, len(slices)) float32; None where both grids have the same slices.
  """

  first: int
  count: int
  slices: tuple[Array, ...]
  weights: np.ndarray | None


def _blocks(stream: Iterator[tuple[int, Array]], matrix: np.ndarray) -> Iterator[_Block]:
  """Groups working slices for _ROWS rows of `matrix` (D0, D) at a time, holding only those that later rows need."""
  same = _identity_as_none(matrix) is None
  used = matrix != 0
  low, high = used.argmax(1), used.shape[1] - 1 - used[:, ::-1].argmax(1)
  unseen = np.flatnonzero(~used.any(1))  # outside the field of view: any slice that is held will do
  low[unseen] = high[unseen] = np.where(unseen < used.any(1).argmax(), 0, used.shape[1] - 1)
  blocks = [(r, low[r : r + _ROWS].min(), high[r : r + _ROWS].max()) for r in range(0, len(matrix), _ROWS)]
  wide = _ROWS if same else max(last - first + 1 for _, first, last in blocks)
  held, todo = {}, iter(blocks)
  row, first, last = next(todo)
  for start, part in stream:
    held |= enumerate(_slices(part), start)
    while row < len(matrix) and last in held:
      rows = matrix[row : row + _ROWS, first : last + 1]
      weights = None if same else np.pad(rows, ((0, _ROWS - len(rows)), (0, wide - rows.shape[1]))).astype(np.float32)
      yield _Block(row, len(rows), tuple(held[min(z, last)] for z in range(first, first + wide)), weights)
      row, first, last = next(todo, (len(matrix), used.shape[1], 0))
    held = {z: part for z, part in held.items() if z >= first}


_slices = jax.jit(tuple)


def _identity_as_none(matrix: np.ndarray) -> np.ndarray | None:
  return None if np.array_equal(matrix, np.eye(len(matrix))) else np.asarray(matrix, np.float32)


@jax.jit
def _restore(
  slices: tuple[Array, ...], along_z: Array | None, rows: Array | None, columns: Array | None
) -> tuple[Array, Array]:
  """Working slices (h, w, C) -> probabilities (n, H, W, C) and labels (n, H, W) on the scan's grid.

  Args:
    slices: the working slices.
    along_z, rows, columns: interpolation matrices along the axes; None is the identity.
  """
  out = jnp.stack(slices)
  for equation, matrix in (('Dd,dhwc->Dhwc', along_z), ('Hh,nhwc->nHwc', rows), ('Ww,nHwc->nHWc', columns)):
    if matrix is not None:
      out = jnp.einsum(equation, matrix, out, precision='highest')
  # Outside the field of view of a centre crop every probability is 0, and the first class, background, wins.
  return out, _labels(out)


def _labels(probabilities: Array) -> Array:
  """(..., C) -> uint8 class ids; _NO_CLASS where they are NaN, which would pass for background."""
  return jnp.where(jnp.isnan(probabilities).any(-1), _NO_CLASS, jnp.argmax(probabilities, -1)).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True)
class View:
  """One scan as one network takes it.

  Attributes:
    predict_step: jitted.
    variables: of the network.
    image: (d, h, w) raw intensities on the working grid of the network.
    window: (low, high) intensities of this scan.
    matrices: (D, d), (H, h) and (W, w), working grid -> scan's grid, from `resample.restore_matrices`.
    options: how the volume is put through the network.
  """

  predict_step: PredictStep
  variables: PyTree
  image: np.ndarray
  window: Sequence[float]
  matrices: Matrices
  options: Options


def _restored(view: View) -> Iterator[tuple[slice, Array, Array]]:
  """(slices of the scan's grid, their probabilities (_ROWS, H, W, C), labels (_ROWS, H, W)), in z order."""
  size, options = view.options.input_size, view.options
  if len(size) not in (2, 3):
    raise InputError(f'input_size {tuple(size)}', 'is not a valid size', 'Give (h, w) or (d, h, w).')
  if tuple(size) == view.image.shape[1:]:
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
  rows, columns = (m if m is None else jnp.asarray(m) for m in map(_identity_as_none, view.matrices[1:]))
  for block in _blocks(working, np.asarray(view.matrices[0])):
    probabilities, found = _restore(block.slices, block.weights, rows, columns)
    yield slice(block.first, block.first + block.count), probabilities, found


@jax.jit
def _mean(probabilities: tuple[Array, ...]) -> tuple[Array, Array]:
  """The mean of the probabilities (n, H, W, C) of several networks, and its labels (n, H, W)."""
  total = sum(probabilities[1:], probabilities[0])
  return total / len(probabilities), _labels(total)


def segment_views(
  views: Sequence[View], *, keep_probabilities: bool = False, name: str | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
  """The label map of one scan on its own grid, by one network or by the mean of the probabilities of several.

  It is computed a few slices at a time. The networks take turns, so that of no network the probabilities of a whole
  volume are held; where the working grid of one does not reach, its probabilities are 0 and the others decide.

  Args:
    views: of the same scan by each network, all with the same classes.
    keep_probabilities: also return the probabilities.
    name: of the scan, for the error where its probabilities are NaN; None: they are background.

  Returns:
    (labels (D, H, W) uint8 class ids, probabilities (D, H, W, C) float16 or None).

  Raises:
    InputError: options.input_size or options.overlap are not valid, or the network gives no numbers.
  """
  labels = np.empty([len(m) for m in views[0].matrices], np.uint8)
  kept, ready = None, None
  for (part, probabilities, found), *others in zip(*map(_restored, views), strict=True):
    if others:
      probabilities, found = _mean((probabilities, *(other for _, other, _ in others)))
    if keep_probabilities:
      if kept is None:
        kept = np.empty((*labels.shape, probabilities.shape[-1]), np.float16)
      kept[part] = np.asarray(probabilities)[: part.stop - part.start]
    if ready is not None:  # copied one block late, so that the device is never idle
      _copy(labels, *ready)
    ready = part, found
  if ready is not None:
    _copy(labels, *ready)
  if labels.max(initial=0) < _NO_CLASS:
    return labels, kept
  if name is not None:
    what = 'the network gives NaN for it: its weights are damaged, or numbers overflow in it'
    raise InputError(name, what, 'Use another checkpoint; check the intensities of the scan, and model.dtype=float32.')
  return np.where(labels == _NO_CLASS, np.uint8(0), labels), kept


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
    image: (d, h, w) raw intensities on the working grid.
    window: (low, high) intensities of this scan.
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
