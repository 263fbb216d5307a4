"""Surfaces of a label map as one camera sees them: parallel rays, the nearest organ, Lambert shading. No GPU.

The surface of an organ is where its mask, interpolated linearly between voxel centres, passes one half: that of
marching cubes. Nothing is smoothed away, so that single wrong voxels are seen; only the slopes that shade the surface
are those of a smoothed mask.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from afw_jax.report.style import rgb

_SMOOTH_MM = 2.0  # of the slopes; at least _SMOOTH_VOXELS along each axis
_SMOOTH_VOXELS = 0.8
_AMBIENT = 0.42
_LIGHT = np.array([0.45, -0.40, -0.80])  # towards the light: up, right, into the picture
_BACKGROUND = 1.0
_ROUNDING = 1e-6
_SAMPLES = 2**23  # at a time


class Camera(NamedTuple):
  """Directions of a picture, each a unit vector (z, y, x) in mm of an array with z up, y to the back and x to the left.

  Attributes:
    up, right: of the picture.
    into: away from the viewer.
  """

  up: np.ndarray
  right: np.ndarray
  into: np.ndarray

  @property
  def axes(self) -> np.ndarray:
    """(3, 3) the directions as rows."""
    return np.stack([self.up, self.right, self.into])


def camera(azimuth_deg: float = 0.0, elevation_deg: float = 0.0) -> Camera:
  """A camera that looks at the patient from the front, whose left is then at the right of the picture.

  Args:
    azimuth_deg: how far it is turned towards the patient's left.
    elevation_deg: how far it is raised towards the patient's head.
  """
  a, e = np.radians([azimuth_deg, elevation_deg])
  level = np.array([0, np.cos(a), -np.sin(a)])
  head = np.array([1.0, 0, 0])
  into = np.cos(e) * level - np.sin(e) * head
  return Camera(np.sin(e) * level + np.cos(e) * head, np.array([0, np.sin(a), np.cos(a)]), into)


@dataclasses.dataclass(frozen=True)
class Frame:
  """What a picture shows of space.

  Attributes:
    low: (3,) lowest place along up, right and into, in mm from the centre of the first voxel.
    shape: (rows, columns) of pixels.
    pixel_mm: side of a pixel.
  """

  low: tuple[float, ...]
  shape: tuple[int, int]
  pixel_mm: float


def frame(
  label_maps: Sequence[np.ndarray], spacing_mm: Sequence[float], seen_by: Camera, *, pixels: int = 480
) -> Frame:
  """The smallest frame around the organs of several label maps on one grid; each has an organ.

  Args:
    label_maps: (D, H, W) classes, 0 is background.
    spacing_mm: (z, y, x) voxel size.
    seen_by: the camera.
    pixels: of the longer side.
  """
  places = np.concatenate([_edges(np.asarray(labels) > 0, spacing_mm) @ seen_by.axes.T for labels in label_maps])
  low, high = places.min(0), places.max(0)
  pixel_mm = float((high - low)[:2].max() / pixels)
  rows, columns = (int(np.ceil(side / pixel_mm - _ROUNDING)) for side in (high - low)[:2])
  return Frame(tuple(low), (rows, columns), pixel_mm)


def _edges(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
  """(N, 3) places in mm that enclose a mask: the faces of the voxels at its outside."""
  inner = ndimage.binary_erosion(mask, border_value=0)
  centres = np.argwhere(mask & ~inner)
  steps = np.concatenate([np.eye(3), -np.eye(3)]) / 2
  return ((centres[:, None] + steps).reshape(-1, 3)) * np.asarray(spacing_mm)


def render(
  labels: np.ndarray, spacing_mm: Sequence[float], seen_by: Camera, framed: Frame, *, classes: Sequence[int]
) -> np.ndarray:
  """A picture of the organs of a label map: of organs behind each other, the nearest.

  Args:
    labels: (D, H, W) classes.
    spacing_mm: (z, y, x) voxel size.
    seen_by, framed: camera and frame, which may be those of other label maps on this grid.
    classes: to draw, in the colours of `style.colour`.

  Returns:
    (rows, columns, 3) float32 red, green, blue in [0, 1]; the first row is the top; white where there is no organ.
  """
  picture = np.full((*framed.shape, 3), _BACKGROUND, np.float32)
  nearest = np.full(framed.shape, np.inf, np.float32)
  for c in classes:
    found = depths(labels == c, spacing_mm, seen_by, framed)
    if found is None:
      continue
    part, depth = found
    front = depth < nearest[part]
    shade = _shades(labels == c, spacing_mm, seen_by, framed, part, depth, front)
    picture[part][front] = shade[:, None] * np.asarray(rgb(c), np.float32)
    nearest[part][front] = depth[front]
  return picture[::-1]


def depths(
  mask: np.ndarray, spacing_mm: Sequence[float], seen_by: Camera, framed: Frame
) -> tuple[tuple[slice, slice], np.ndarray] | None:
  """Where the rays of the pixels meet a mask first.

  Args:
    mask: (D, H, W) bool.
    spacing_mm, seen_by, framed: as in `render`.

  Returns:
    ((rows, columns) of the frame, the first row at the bottom; (h, w) float32 depth of these pixels along `into`, in mm
    from the centre of the first voxel; inf where a ray meets nothing); None if the frame shows nothing of the mask.
  """
  box = _box(mask)
  if box is None:
    return None
  field = np.pad(mask[box].astype(np.float32), 1)
  first = np.array([b.start - 1 for b in box]) * np.asarray(spacing_mm)  # mm of the corner of `field`
  last = first + (np.array(field.shape) - 1) * spacing_mm
  corners = np.array([*itertools.product(*zip(first, last))]) @ seen_by.axes.T
  low, high = corners.min(0), corners.max(0)
  side = framed.pixel_mm
  start = [max(0, int((low[n] - framed.low[n]) / side)) for n in range(2)]
  stop = [min(framed.shape[n], int(np.ceil((high[n] - framed.low[n]) / side)) + 1) for n in range(2)]
  if any(b <= a for a, b in zip(start, stop)):
    return None
  step = min(2 * side, 0.75 * float(min(spacing_mm)))
  count = int(np.ceil((high[2] - low[2]) / step)) + 1
  corner = [framed.low[n] + (start[n] + 0.5) * side for n in range(2)] + [low[2]]
  to_index = seen_by.axes.T / np.asarray(spacing_mm)[:, None]
  matrix = to_index * [side, side, step]
  depth = np.empty([b - a for a, b in zip(start, stop)], np.float32)
  block = max(1, _SAMPLES // (depth.shape[1] * count))  # rows of the picture at a time, to bound the memory
  for row in range(0, len(depth), block):
    shape = (min(block, len(depth) - row), depth.shape[1], count)
    offset = to_index @ (corner + np.array([row * side, 0, 0])) - first / np.asarray(spacing_mm)
    along = ndimage.affine_transform(field, matrix, offset, shape, order=1, output=np.float32)
    depth[row : row + block] = low[2] + step * _first_crossing(along.reshape(-1, count)).reshape(shape[:2])
  return (slice(start[0], stop[0]), slice(start[1], stop[1])), depth


def _first_crossing(along: np.ndarray) -> np.ndarray:
  """(N,) the place, in samples, where rays (N, samples) first reach one half; inf where they do not."""
  reached = along >= 0.5
  i = reached.argmax(1)
  rays = np.arange(len(along))
  after, before = along[rays, i], along[rays, np.maximum(i - 1, 0)]
  rise = np.where(after > before, after - before, 1)
  return np.where(reached[rays, i], i - np.where(i > 0, (after - 0.5) / rise, 0), np.inf)


def _box(mask: np.ndarray) -> tuple[slice, ...] | None:
  return next(iter(ndimage.find_objects(mask.astype(np.uint8))), None)


def _shades(mask, spacing_mm, seen_by: Camera, framed: Frame, part, depth, front) -> np.ndarray:
  """(N,) Lambert shading of the pixels `front` of a mask, from the slopes of its smoothed self."""
  sigma = [max(_SMOOTH_MM / s, _SMOOTH_VOXELS) for s in spacing_mm]
  margin = [int(np.ceil(3 * s)) + 1 for s in sigma]
  box = _box(mask)
  assert box is not None
  smooth = ndimage.gaussian_filter(np.pad(mask[box].astype(np.float32), [(m, m) for m in margin]), sigma)
  rows, columns = np.nonzero(front)
  in_picture = np.stack([rows + part[0].start + 0.5, columns + part[1].start + 0.5], 1) * framed.pixel_mm
  at = np.column_stack([in_picture + framed.low[:2], depth[front]]) @ seen_by.axes
  corner = np.array([b.start - m for b, m in zip(box, margin)])
  slope = np.empty((len(at), 3))
  reach = min(_SMOOTH_MM, float(min(spacing_mm)))
  for n, direction in enumerate(seen_by.axes):
    ends = [(at + sign * reach * direction) / spacing_mm - corner for sign in (1, -1)]
    ahead, behind = (ndimage.map_coordinates(smooth, end.T, order=1) for end in ends)
    slope[:, n] = behind - ahead  # outwards
  length = np.linalg.norm(slope, axis=1, keepdims=True)
  normal = np.where(length > _ROUNDING, slope / np.maximum(length, _ROUNDING), [0, 0, -1])
  light = _LIGHT / np.linalg.norm(_LIGHT)
  return (_AMBIENT + (1 - _AMBIENT) * np.clip(normal @ light, 0, 1)).astype(np.float32)
