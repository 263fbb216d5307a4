"""What the viewer shows of one scan: the scan with its label maps on one grid, as files that a browser can read."""

import base64
import dataclasses
import gzip
from collections.abc import Mapping, Sequence

import numpy as np

from afw_jax.data.formats import nifti
from afw_jax.data.formats.geometry import Geometry
from afw_jax.report.choice import choose_slice

_MARGIN = 2  # voxels around what is kept of a scan
_AIR = 0.04  # of the range of grey values; what lies below at the border of a scan is cropped
# Windows of CT beside that of the network, in HU.
_WINDOWS_HU = {'soft tissue': (-160, 240), 'liver': (-15, 135), 'lung': (-1350, 150), 'bone': (-500, 1300)}
_HU = (-200, 300)  # range of grey values of a scan that is embedded
_LEAST_BYTES_A_VOXEL = 0.2  # as base64: less than any scan takes
_NARROW = 0.6  # of the range of the network, a window for dark structures in MR


@dataclasses.dataclass(frozen=True)
class Scene:
  """A scan and label maps on one grid.

  Attributes:
    image: (D, H, W) intensities, in the internal orientation.
    masks: 'truth' or 'prediction' -> (D, H, W) classes 0, 1, 2, ...
    affine: 4 x 4, voxel (z, y, x, 1) -> RAS coordinates in mm.
    has_mm: whether the files of the scan say its voxel size and orientation.
    window: (low, high) that is shown first.
    in_hu: whether intensities are Hounsfield units.
    window_name: what that window is.
    note: what is to be known about this grid; '' where it is that of the scan.
  """

  image: np.ndarray
  masks: Mapping[str, np.ndarray]
  affine: np.ndarray
  has_mm: bool
  window: tuple[float, float]
  in_hu: bool
  window_name: str = 'as the network sees it'
  note: str = ''

  @property
  def spacing_mm(self) -> tuple[float, ...]:
    """Voxel size (z, y, x)."""
    return tuple(float(n) for n in np.linalg.norm(self.affine[:3, :3], axis=0))

  def file(self, name: str) -> bytes:
    """A volume as it is, as an uncompressed NIfTI file: 'scan', or the name of a mask."""
    return nifti.encode(self.image if name == 'scan' else self.masks[name], self.affine)


def windows(scene: Scene, *, whole: bool) -> list[dict]:
  """The windows to choose from.

  Args:
    scene: that is shown.
    whole: whether the volumes have all intensities of the scan, or those of `embedded`.

  Returns:
    {'name', 'low', 'high'} of each, that of the scene first.
  """
  low, high = map(float, scene.window)
  found = {scene.window_name: (low, high)}
  if not scene.in_hu:
    return _as_json(found | {'dark structures': (low, low + _NARROW * (high - low))})
  least, most = _embedded_range(scene.window, scene.in_hu)
  return _as_json(found | {k: v for k, v in _WINDOWS_HU.items() if whole or (least <= v[0] and v[1] <= most)})


def _as_json(named: Mapping[str, tuple[float, float]]) -> list[dict]:
  return [{'name': name, 'low': float(low), 'high': float(high)} for name, (low, high) in named.items()]


def _embedded_range(window: Sequence[float], in_hu: bool) -> tuple[float, float]:
  low, high = map(float, window)
  return (min(low, _HU[0]), max(high, _HU[1])) if in_hu else (low, high)


def embedded(scene: Scene, limit: int) -> dict:
  """A scene for a page: grey values of 8 bits, cropped to the body, and reduced until it takes no more than so much.

  Voxels are merged along the axis with the smallest of them first: grey values to their mean, classes to the most
  frequent.

  Args:
    scene: to show.
    limit: bytes of all volumes as base64.

  Returns:
    `details` of what the page holds, with 'volumes': {name: {'data': base64 of .nii.gz}}.
  """
  scene = _cropped(scene)
  low, high = _embedded_range(scene.window, scene.in_hu)
  factors = np.ones(3, int)
  goal = limit / _LEAST_BYTES_A_VOXEL
  while True:
    while np.prod(np.ceil(np.array(scene.image.shape) / factors)) > max(goal, 1):
      sides = np.where(factors < scene.image.shape, factors * scene.spacing_mm, np.inf)
      factors[np.argmin(sides)] += 1
    affine = _merged_affine(scene.affine, factors)
    grey = (_blocks(scene.image.astype(np.float32), factors).mean((1, 3, 5)) - low) * (255 / (high - low))
    arrays = {'scan': np.clip(np.rint(grey), 0, 255).astype(np.uint8)}
    arrays |= {name: _most_frequent(mask, factors) for name, mask in scene.masks.items()}
    scales = {'scan': ((high - low) / 255, low)}
    packed = {
      name: base64.b64encode(gzip.compress(nifti.encode(array, affine, *scales.get(name, ())), 6, mtime=0)).decode()
      for name, array in arrays.items()
    }
    size = sum(map(len, packed.values()))
    if size <= limit or arrays['scan'].size == 1:
      break
    goal = arrays['scan'].size * limit / size  # voxels, if each takes as much as now
  merged = f'Here {" x ".join(map(str, factors[::-1]))} voxels are merged into one' if factors.max() > 1 else ''
  shown = dataclasses.replace(scene, affine=affine, note='. '.join(filter(None, [scene.note, merged])))
  return details(shown, whole=False) | {'volumes': {name: {'data': data} for name, data in packed.items()}}


def details(scene: Scene, *, whole: bool) -> dict:
  """What the viewer is told about a scene, as JSON.

  Args:
    scene: that is shown.
    whole: as in `windows`.

  Returns:
    {'windows', 'unit' of the intensities, 'has_mm', 'grid' (its voxel size and note), 'focus' (x, y, z in [0, 1], a
    place within the organs)}.
  """
  size = ' x '.join(f'{side:.2f}' for side in scene.spacing_mm[::-1])
  grid = f'Voxels of {size} mm' if scene.has_mm else 'The files of this scan have neither voxel size nor orientation'
  return {
    'windows': windows(scene, whole=whole),
    'unit': 'HU' if scene.in_hu else '',
    'has_mm': scene.has_mm,
    'grid': '. '.join(filter(None, [grid, scene.note])),
    'focus': _focus(next(iter(scene.masks.values()))),
  }


def _focus(mask: np.ndarray) -> list[float]:
  """(x, y, z) of the middle of the organs in the slice with the most of them, as parts of the sides of the volume."""
  z = choose_slice(mask)
  places = np.argwhere(mask[z] > 0)
  y, x = places.mean(0) if len(places) else np.array(mask.shape[1:]) / 2
  return [float((at + 0.5) / side) for at, side in zip((x, y, z), mask.shape[::-1])]


def _cropped(scene: Scene) -> Scene:
  """The scene without the air at its borders; no voxel of a mask is cut off."""
  low, high = scene.window
  kept = scene.image > low + _AIR * (high - low)
  for mask in scene.masks.values():
    kept |= mask > 0
  box = []
  for axis in range(3):
    there = np.flatnonzero(kept.any(axis=tuple({0, 1, 2} - {axis})))
    first, last = (there[0], there[-1]) if there.size else (0, kept.shape[axis] - 1)
    box.append(slice(max(0, int(first) - _MARGIN), int(last) + 1 + _MARGIN))
  affine = scene.affine.copy()
  affine[:, 3] = scene.affine @ [*(b.start for b in box), 1]
  masks = {name: mask[tuple(box)] for name, mask in scene.masks.items()}
  return dataclasses.replace(scene, image=scene.image[tuple(box)], masks=masks, affine=affine)


def _merged_affine(affine: np.ndarray, factors: np.ndarray) -> np.ndarray:
  merged = np.diag([*map(float, factors), 1.0])
  merged[:3, 3] = (factors - 1) / 2  # the middle of the first block
  return affine @ merged


def _blocks(array: np.ndarray, factors: np.ndarray) -> np.ndarray:
  """(d, fz, h, fy, w, fx): the voxels of each block; the last blocks are filled with the last voxels."""
  shape = [-(-n // f) for n, f in zip(array.shape, factors)]
  array = np.pad(array, [(0, n * f - m) for n, f, m in zip(shape, factors, array.shape)], mode='edge')
  return array.reshape([side for pair in zip(shape, factors) for side in pair])


def _most_frequent(mask: np.ndarray, factors: np.ndarray) -> np.ndarray:
  """(d, h, w) uint8 or uint16: the class of most voxels of each block, the smaller of two that are as frequent."""
  dtype = np.uint8 if mask.max(initial=0) < 256 else np.uint16
  if (factors == 1).all():
    return mask.astype(dtype)
  blocks = _blocks(mask, factors)
  best = np.zeros(blocks.shape[::2], np.int32)
  winner = np.zeros(blocks.shape[::2], dtype)
  for c in np.unique(mask):
    count = (blocks == c).sum((1, 3, 5), dtype=np.int32)
    winner[count > best], best = c, np.maximum(best, count)
  return winner


def working_affine(geometry: Geometry, grid) -> np.ndarray:
  """4 x 4, voxel of a working grid -> RAS coordinates in mm.

  Args:
    geometry: of the scan.
    grid: its `resample.Resampling`.
  """
  reached = grid.working if grid.fit == 'resize' else grid.resampled
  scale = [(n - 1) / (m - 1) if n > 1 and m > 1 else n / m for n, m in zip(grid.native, reached)]
  to_native = np.diag([*scale, 1.0])
  to_native[:3, 3] = np.array(scale) * grid.offset
  return geometry.internal_affine @ to_native
