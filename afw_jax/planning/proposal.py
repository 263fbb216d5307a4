"""Proposes spacing, size and batch size for a data set whose scans are measured; nothing is changed by itself."""

import math
from collections.abc import Callable, Mapping, Sequence

import ml_collections
import numpy as np

from afw_jax import models
from afw_jax.config import build
from afw_jax.data import resample
from afw_jax.errors import InputError, InputErrors
from afw_jax.planning import accelerators, isolated

ANISOTROPY = 3.0  # nnU-Net's: an axis is coarse that is so much coarser, and has so much fewer voxels, than the others
FEWER_MM = 10.0  # percentile of the spacings along a coarse axis; the median would blur the scans of thin slices
PATCH_VOXELS = 128**3  # of a patch where no memory is given
_LARGEST_PATCH = 256**3  # nnU-Net's first try
_BATCH_3D = 2  # nnU-Net's least
_COMPILATIONS = 3
_MARGIN = 0.95  # memory is not quite proportional to voxels


def propose(
  config: ml_collections.ConfigDict,
  cases: Sequence[Mapping],
  target_name: str,
  memory_gib: float | None = None,
  *,
  on_wait: Callable[[], None] = lambda: None,
) -> dict:
  """Proposes options for the network of a config.

  Args:
    config: as `config.default_config` describes it.
    cases: 'shape' and 'spacing_mm' of each, from `measures.of_case`; at least one.
    target_name: one of `accelerators.TARGETS`.
    memory_gib: the memory of one device; None: that of the target. Where neither is known (a CPU's is that of the
      machine that trains), no program is compiled, and the batch is that of the config.
    on_wait: called about twice a second while a program is compiled.

  Returns:
    'options': key of the config -> value; 'median_size', the voxels of the median scan at this spacing; 'target',
    'memory_gib' and 'needs_gib', what a training step takes of it by its compiled program (None where none was
    compiled); 'remarks': sentences.

  Raises:
    InputError: an unknown network or target.
  """
  target = accelerators.get(target_name, memory_gib)
  memory_gib = memory_gib or accelerators.TARGETS[target_name].memory_gib
  network = build.network(config, 2)[0]
  sides = models.module_of(config.model.name).smallest_image(network)[1:-1]
  has_mm = all(case['spacing_mm'] for case in cases)
  spacing = target_spacing(cases, volumes=len(sides) == 3) if has_mm else None
  median = median_size(cases, spacing)
  trial = config.copy_and_resolve_references()
  remarks = [] if has_mm else ['The files have no voxel size in mm, so there is no spacing to propose.']
  with trial.unlocked():
    if has_mm:
      trial.data.spacing_mm = tuple(round(mm, 4) for mm in spacing[-len(sides) :])
    if len(sides) == 3:
      trial.data.size = ()
      whole = rounded(median, sides)
      most = _LARGEST_PATCH if memory_gib else PATCH_VOXELS
      trial.train.patch_size = shrunk(whole, first_patch(whole, spacing, sides, most), sides, most)
      trial.train.batch_size = min(config.train.batch_size, max(_BATCH_3D, config.train.micro_batches))
    else:
      trial.data.size, trial.train.patch_size = rounded_up(median[1:], sides), ()
      if config.data.fit == 'resize':
        remarks.append(
          'With `data.fit=resize` a scan of another extent is stretched to this size; `crop_pad` keeps the spacing and '
          'cuts or fills.'
        )
    needs = None
    if memory_gib:
      needs, said = _fit(trial, median[-len(sides) :], sides, target_name, target, on_wait)
      remarks += said
    else:
      remarks.append('For a batch size (and patch) that fits a device, give its memory: `--memory_gib=16`.')
  keys = [*(['data.spacing_mm'] if has_mm else []), 'data.size']
  keys += [*(['train.patch_size'] if len(sides) == 3 else []), 'train.batch_size']
  value = lambda key: trial[key.split('.')[0]][key.split('.')[1]]
  return {
    'options': {key: list(value(key)) if isinstance(value(key), tuple) else value(key) for key in keys},
    'network': config.model.name,
    'median_size': list(median),
    'target': target_name,
    'memory_gib': memory_gib,
    'needs_gib': needs,
    'remarks': remarks,
  }


def command_options(options: Mapping) -> list[str]:
  """The options of a proposal as they are typed."""
  text = lambda value: f'"({", ".join(f"{v:g}" for v in value)})"' if isinstance(value, list) else str(value)
  return [f'--config.{key}={text(value)}' for key, value in options.items()]


def target_spacing(cases: Sequence[Mapping], *, volumes: bool) -> tuple[float, ...]:
  """The (z, y, x) spacing in mm: the median, and of volumes with a coarse axis nnU-Net's along that.

  Reference: F. Isensee et al., nnU-Net, Nature Methods 18:203-211, 2021 (`determine_fullres_target_spacing`).

  Args:
    cases: 'shape' and 'spacing_mm' of each.
    volumes: whether the network takes volumes; slices are not resampled along z.
  """
  spacings, shapes = (np.array([case[key] for case in cases], np.float64) for key in ('spacing_mm', 'shape'))
  target, shape = np.median(spacings, axis=0), np.median(shapes, axis=0)
  worst = int(np.argmax(target))
  others = np.arange(3) != worst
  if volumes and target[worst] > ANISOTROPY * target[others].max() and shape[worst] * ANISOTROPY < shape[others].min():
    target[worst] = max(np.percentile(spacings[:, worst], FEWER_MM), target[others].max())
  return tuple(float(mm) for mm in target)


def median_size(cases: Sequence[Mapping], spacing: Sequence[float] | None) -> tuple[int, ...]:
  """Voxels (z, y, x) of the median scan at a spacing; None: that of each scan."""
  shape_at = lambda case: (
    resample.make_resampling(
      case['shape'], case['spacing_mm'] or (1, 1, 1), size=(), spacing=spacing or (None,) * 3
    ).resampled
  )
  return tuple(round(n) for n in np.median([shape_at(case) for case in cases], axis=0))


def rounded_up(size: Sequence[int], sides: Sequence[int]) -> tuple[int, ...]:
  """The next size whose sides are multiples of `sides`."""
  return tuple(-(-n // side) * side for n, side in zip(size, sides, strict=True))


def rounded(size: Sequence[int], sides: Sequence[int]) -> tuple[int, ...]:
  """The nearest size whose sides are multiples of `sides`; for patches, of which several cover a scan."""
  return tuple(max(1, round(n / side)) * side for n, side in zip(size, sides, strict=True))


def first_patch(
  whole: Sequence[int], spacing: Sequence[float] | None, sides: Sequence[int], voxels: int
) -> tuple[int, ...]:
  """nnU-Net's first patch: as many voxels, of the same length in mm along each axis, but within the median scan."""
  per_mm = 1 / np.array(spacing or (1.0,) * 3)
  wanted = per_mm * (voxels / np.prod(per_mm)) ** (1 / 3)
  return rounded([min(round(n), m) for n, m in zip(wanted, whole)], sides)


def shrunk(whole: Sequence[int], patch: Sequence[int], sides: Sequence[int], voxels: float) -> tuple[int, ...]:
  """A patch of at most so many voxels where `sides` allow it, made smaller where it covers most of the scan."""
  patch = list(patch)
  while math.prod(patch) > voxels:
    free = [axis for axis, side in enumerate(sides) if patch[axis] > side]
    if not free:
      break
    axis = max(free, key=lambda axis: patch[axis] / whole[axis])
    patch[axis] -= sides[axis]
  return tuple(patch)


def _fit(trial, median, sides, target_name, target, on_wait) -> tuple[float | None, list[str]]:
  """Compiles the training step, and makes the batch, then the patch smaller until it fits: at most three times.

  Returns (GiB that it needs, remarks); `trial` has the result.
  """
  limit = target.memory_gib * target.usable
  asked = trial.train.batch_size
  part = trial.train.micro_batches
  job = {'config': trial, 'target_name': target_name, 'memory_gib': target.memory_gib, 'mesh_shape': (1, 1)}
  for attempt in range(_COMPILATIONS):
    try:
      accelerators.check(target_name, target, 1)
      found = isolated.measure_in_subprocess({**job, 'flops': 1.0}, target, on_wait)  # they are not counted
    except (InputError, InputErrors, RuntimeError) as error:
      return None, [f'The batch size was not fitted to the memory: {" ".join(str(error).split())}']
    if 'refused' in found:
      return None, [f'The batch size was not fitted to the memory: {found["refused"]}']
    memory = found.get('memory')
    total = memory['total'] / accelerators.GIB if memory else found['exhausted']
    if total <= limit:
      return total, []
    if attempt == _COMPILATIONS - 1 or not math.isfinite(total):
      break
    # The state of the optimizer stays as it is, whatever the batch; the rest is about proportional to the voxels.
    state = memory['aliased'] / accelerators.GIB if memory else 0.0
    share = _MARGIN * max(0.0, limit - state) / (total - state)
    least = min(asked, max(part, _BATCH_3D)) if len(sides) == 3 else part
    batch = trial.train.batch_size
    trial.train.batch_size = max(least, int(batch * share) // part * part)
    if len(sides) == 3:
      patch = trial.train.patch_size
      voxels = math.prod(patch) * share * batch / trial.train.batch_size
      trial.train.patch_size = shrunk(rounded(median, sides), patch, sides, voxels)
    if trial.train.batch_size == batch and (len(sides) == 2 or trial.train.patch_size == patch):
      break
  return None, [
    f'No size was found that fits: the smallest that was compiled needs {total:.3g} of {limit:.3g} GiB. '
    '`--config.model.remat=True` or `--config.model.dtype=bfloat16` may help (`--mode=plan`).'
  ]
