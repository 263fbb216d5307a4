"""Where the working grid lies in a scan that is larger: around its middle, around the body, or wherever the body is.

`data.fit='crop_pad'` cuts a scan evenly around its middle. That is right as long as the body lies there as it does in
the training scans; in another scan the grid is moved to the body, or extended to all of it and predicted in overlapping
windows.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from afw_jax.data.resample import Resampling

# (low, high) along each axis, in voxels at the target spacing
Box = Sequence[Sequence[float]]
# For each axis (pairs, off): pairs are the shares of the width of some bodies that are beyond the two ends of the grid;
# off is how far the middles of bodies are from that of the grid, as a share of its side.
Usual = Sequence[Sequence]

_COARSE_MM = 4.0  # the body is found on a grid about as fine as this
_THIN_MM = 12.0  # couches and cables are thinner
_SMALL = 0.02  # parts of less than this share of the largest one are no part of the body
_TOLERANCE = 0.02  # of the side of the grid
OFF = 0.05  # of the side of the grid; patients do not lie more exactly in the middle of the scanner
_CENTRED = (((0.0, 0.0),), 0.0)


def find_body(scan: np.ndarray, threshold: float, resampling: Resampling) -> list[list[float]] | None:
  """The box around the body in a scan that the working grid cuts.

  Args:
    scan: (D, H, W) intensities.
    threshold: voxels of the body are above it.
    resampling: of the scan, with any offset.

  Returns:
    (low, high) of the box along each axis, in voxels at the target spacing; None if the grid holds the whole scan, or
    if there is no body.
  """
  if not any(is_cut(resampling)):
    return None
  steps = [1, *(max(1, int(_COARSE_MM // mm)) for mm in resampling.native_spacing_mm[1:])]
  width = [round(_THIN_MM / (mm * k)) | 1 for mm, k in zip(resampling.native_spacing_mm[1:], steps[1:])]
  mask = np.pad(scan[:, :: steps[1], :: steps[2]] > threshold, [(0, 0), *((n, n) for n in width)], mode='edge')
  mask = ndimage.binary_opening(mask, np.ones((1, *width), bool))[:, width[0] : -width[0], width[1] : -width[1]]
  parts, count = ndimage.label(mask)  # pyright: ignore[reportGeneralTypeIssues]
  if not count:
    return None
  sizes = np.bincount(parts.ravel())
  sizes[0] = 0
  boxes = [b for b, size in zip(ndimage.find_objects(parts), sizes[1:]) if size >= _SMALL * sizes.max()]
  found = []
  for axis, step in enumerate(steps):
    n, m = resampling.native[axis], resampling.resampled[axis]
    low, high = min(b[axis].start for b in boxes) * step, min(max(b[axis].stop for b in boxes) * step, n)
    found.append([float(np.floor(low * m / n)), float(np.ceil(high * m / n))])
  return found


def is_cut(resampling: Resampling) -> list[bool]:
  """Whether the grid of `make_resampling` is smaller than the scan, for each axis."""
  crop = resampling.fit == 'crop_pad'
  return [crop and r > w for r, w in zip(resampling.resampled, resampling.working)]


def complete(centre: Resampling) -> Resampling:
  """The grid of `make_resampling`, extended to the whole scan."""
  return _with(centre, [(0, r) if cut else None for cut, r in zip(is_cut(centre), centre.resampled)])


def covering(centre: Resampling, body: Box | None) -> Resampling:
  """The grid of `make_resampling`, extended to the whole body and to every place that the grid can be moved to."""
  if body is None:
    return centre
  spans = []
  for cut, low, width, ends, _ in _axes(centre, body):
    moved = _around(ends, width)
    spans.append((int(min(low, moved, ends[0])), int(max(low + width, moved + width, ends[1]))) if cut else None)
  return _with(centre, spans)


def around_body(centre: Resampling, body: Box | None) -> Resampling:
  """The grid of `make_resampling`, moved within the scan so that its middle is that of the body."""
  if body is None:
    return centre
  spans = []
  for cut, low, width, ends, size in _axes(centre, body):
    low = low if low <= ends[0] and ends[1] <= low + width else int(np.clip(_around(ends, width), 0, size - width))
    spans.append((low, low + width) if cut else None)
  return _with(centre, spans)


def placed(centre: Resampling, body: Box | None, usual: Usual | None) -> Resampling:
  """The grid on which a scan is predicted.

  Args:
    centre: of the scan, from `make_resampling`.
    body: from `find_body`.
    usual: of the training scans, from `usual_of`; None: no body may be beyond the grid.

  Returns:
    `centre` where the body lies in it as it does in training; the same moved to the body, beyond the end of the scan if
    need be, where that suffices; else a larger grid with the whole body.
  """
  if body is None:
    return centre
  spans = []
  for (cut, low, width, ends, _), (pairs, off) in zip(_axes(centre, body), usual or (_CENTRED,) * 3):
    span = (low, low + width)
    off_middle = abs(sum(ends) / 2 - low - width / 2) > (max(off, OFF) + _TOLERANCE) * width
    if cut and (off_middle or not _as_usual(span, ends, pairs)):
      moved = _around(ends, width)
      span = (moved, moved + width)
      if not _as_usual(span, ends, pairs):
        span = (int(min(ends[0], moved)), int(max(ends[1], moved + width)))
    spans.append(span if cut else None)
  return _with(centre, spans)


def overhang(grid: Resampling, body: Box | None) -> list[list[float]]:
  """For each axis how a body lies in a grid: what is beyond its low and its high end, and how far it is off the middle.

  Returns:
    (low, high, off) for each axis: shares of the width of the body, and a share of the side of the grid.
  """
  found = []
  for cut, low, width, ends, _ in _axes(grid, body) if body is not None else [(False,) * 5] * 3:
    if not cut:
      found.append([0.0, 0.0, 0.0])
      continue
    beyond = (max(0.0, low - ends[0]), max(0.0, ends[1] - low - width))
    off = abs(sum(ends) / 2 - low - width / 2) / width
    found.append([*(float(b / (ends[1] - ends[0])) for b in beyond), float(off)])
  return found


def usual_of(overhangs: Sequence[Sequence[Sequence[float]]]) -> list[list]:
  """What `placed` takes as usual, from the `overhang` of the training cases of which no organ was cut."""
  usual = []
  for axis in range(3):
    pairs = {(round(a, 4), round(b, 4)) for a, b, _ in (case[axis] for case in overhangs)} | {(0.0, 0.0)}
    outermost = [list(p) for p in sorted(pairs) if not any(_allows(q, p) for q in pairs - {p})]
    usual.append([outermost, max((case[axis][2] for case in overhangs), default=0.0)])
  return usual


def _allows(usual: Sequence[float], other: Sequence[float], more: float = 0.0) -> bool:
  """Whether a body is beyond both ends by no more than another is, and no less evenly."""
  uneven = abs(other[0] - other[1]) - abs(usual[0] - usual[1])
  return other[0] <= usual[0] + more and other[1] <= usual[1] + more and uneven <= 2 * more


def crop(array: np.ndarray, grid: Resampling, part: Resampling) -> np.ndarray:
  """A view of an array on `grid` that holds `part` of it.

  Raises:
    ValueError: the part reaches beyond the grid.
  """
  starts = [p - g for p, g in zip(part.offset, grid.offset)]
  if any(s < 0 or s + w > n for s, w, n in zip(starts, part.working, grid.working)):
    raise ValueError(f'{part.working} voxels at {part.offset} are not within {grid.working} at {grid.offset}')
  return array[tuple(slice(s, s + w) for s, w in zip(starts, part.working))]


def centre_of(grid: Resampling) -> Resampling:
  """The grid of `make_resampling` of which `grid` is a moved one."""
  offset = [(r - w) // 2 if cut else o for cut, r, w, o in zip(is_cut(grid), grid.resampled, grid.working, grid.offset)]
  return dataclasses.replace(grid, offset=tuple(offset))


def cut_off(voxels: Mapping[str, int], kept: Mapping[str, int]) -> dict[str, float]:
  """Organ -> the share of its voxels that a grid cuts off, for the organs of which it cuts any.

  Args:
    voxels: of each organ on the complete grid.
    kept: of each organ on the grid.
  """
  return {organ: 1 - kept[organ] / n for organ, n in voxels.items() if n > kept[organ]}


def _axes(grid: Resampling, body: Box):
  """(whether the grid cuts it, first voxel, side, ends of the body, voxels of the scan) of each axis."""
  return list(zip(is_cut(grid), grid.offset, grid.working, body, grid.resampled))


def _around(ends: Sequence[float], width: int) -> int:
  """First voxel of a grid around the middle of the body; it may begin before the scan, or end behind it."""
  return round((ends[0] + ends[1] - width) / 2)


def _as_usual(span: tuple[int, int], ends: Sequence[float], pairs: Sequence[Sequence[float]]) -> bool:
  width = ends[1] - ends[0]
  beyond = (max(0.0, span[0] - ends[0]) / width, max(0.0, ends[1] - span[1]) / width)
  return any(_allows(pair, beyond, _TOLERANCE * (span[1] - span[0]) / width) for pair in pairs)


def _with(centre: Resampling, spans: Sequence[tuple[int, int] | None]) -> Resampling:
  """The resampling with other (first, end) voxels along some axes."""
  offset = tuple(o if span is None else span[0] for o, span in zip(centre.offset, spans))
  working = tuple(w if span is None else span[1] - span[0] for w, span in zip(centre.working, spans))
  return dataclasses.replace(centre, offset=offset, working=working)
