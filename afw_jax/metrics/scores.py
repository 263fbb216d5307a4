"""Scores of a predicted label map against the reference: DSC, HD, HD95, ASSD and NSD of each organ.

Published tables follow different conventions, which give different numbers for the same label maps. They differ in the
unit of distances and in the scores of an organ that is missing from one label map or from both:

convention   distances  in neither map     only in the reference           only in the prediction
strict       mm         nan, skipped       DSC 0, NSD 0, image diagonal    DSC 0, NSD 0, image diagonal
transunet    voxels     DSC 0, 0           DSC 0, 0                        DSC 1, 0
unetrpp      voxels     DSC 1, 0           DSC 0, 0                        DSC 0, 0
monai        mm         nan                DSC 0, NSD 0, HD inf, HD95 nan  DSC nan, NSD 0, HD inf, HD95 nan

References:
  Dice L.R. 1945. Measures of the Amount of Ecologic Association Between Species. doi 10.2307/1932409 (DSC).
  Taha A.A., Hanbury A. 2015. Metrics for evaluating 3D medical image segmentation: analysis, selection, and tool.
    doi 10.1186/s12880-015-0068-x (HD, HD95).
  Nikolov S. et al. 2018. Deep learning to achieve clinically applicable segmentation of head and neck anatomy for
    radiotherapy. arXiv:1809.04430 (NSD, surface Dice at a tolerance; weighted by surface area there, by voxels here).
  Cardoso M.J. et al. 2022. MONAI: An open-source framework for deep learning in healthcare. arXiv:2211.02701.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from afw_jax.errors import InputError, did_you_mean
from afw_jax.metrics.surface_distance import c_ordered, surface_distances, union_boxes

SCORES = ('dsc', 'hd_mm', 'hd95_pooled_mm', 'hd95_max_mm', 'assd_mm', 'nsd')
# Unit of the distances in each convention. The keys of the scores end in _mm in any case: a table must print the unit.
UNITS = {'strict': 'mm', 'transunet': 'voxels', 'unetrpp': 'voxels', 'monai': 'mm'}

_NAN, _INF = float('nan'), float('inf')
# (DSC, HD, both HD95, ASSD, NSD) of an organ that is in neither map, only in the reference, only in the prediction.
# None is the length of the image diagonal. TransUNet and UNETR++ do not report NSD: it takes the value of their DSC.
# monai: what the functions of MONAI 1.6.1 return, DiceMetric with its defaults.
_EMPTY = {
  'strict': ((_NAN,) * 5, (0.0, None, None, None, 0.0), (0.0, None, None, None, 0.0)),
  'transunet': ((0.0,) * 5, (0.0,) * 5, (1.0, 0.0, 0.0, 0.0, 1.0)),
  'unetrpp': ((1.0, 0.0, 0.0, 0.0, 1.0), (0.0,) * 5, (0.0,) * 5),
  'monai': ((_NAN,) * 5, (0.0, _INF, _NAN, _INF, 0.0), (_NAN, _INF, _NAN, _INF, 0.0)),
}


def score_case(
  pred: np.ndarray,
  true: np.ndarray,
  *,
  spacing_mm: tuple[float, ...],
  labels: Mapping[str, int | Sequence[int]],
  convention: str = 'strict',
  nsd_tolerance_mm: float | Mapping[str, float] = 2.0,
  ignored: int | None = None,
) -> dict[str, dict[str, float | int | bool]]:
  """Scores one case: DSC, HD, HD95 (two definitions), ASSD and NSD of every organ.

  The surface of an organ is its voxels with a face neighbour outside it (`surface_distance.border`); distances are
  measured between voxel centres, from each surface voxel to the nearest one of the other surface, in both directions.
  `hd_mm` is the largest distance; `hd95_pooled_mm` the 95th percentile of both directions together (as in medpy),
  `hd95_max_mm` the larger of the two directed percentiles (as in MONAI); `assd_mm` the mean of all distances; `nsd` the
  share of them within the tolerance. With `transunet` and `unetrpp` the spacing is not used: distances and the NSD
  tolerance are in voxels (see `UNITS`). With `monai` distances and percentile ranks are float32, as in MONAI; otherwise
  float64.

  Args:
    pred: (D, H, W) or (H, W) integer labels of the prediction.
    true: reference labels of the same shape. Ids that are not in `labels` are background in both.
    spacing_mm: voxel size along each axis, (z, y, x).
    labels: organ name -> id, or the ids of which it is the union; unions may overlap.
    convention: 'strict', 'transunet', 'unetrpp' or 'monai', see the docstring of this module.
    nsd_tolerance_mm: one tolerance for all organs, or organ name -> tolerance.
    ignored: id in `true` of voxels that count nowhere: they belong to no organ in either map. An organ that reaches
      into them ends there in both maps, and has a surface there.

  Returns:
    organ -> `dsc`, `hd_mm`, `hd95_pooled_mm`, `hd95_max_mm`, `assd_mm`, `nsd` (floats), `missed` (only in the
    reference), `false_positive` (only in the prediction), `absent` (in neither), `true_voxels`, `pred_voxels`,
    `true_ml`, `pred_ml`.

  Raises:
    InputError: shapes differ, labels are not integers, spacing is not positive, or an option is unknown.
  """
  pred, true = np.asarray(pred), np.asarray(true)
  _check(pred, true, spacing_mm, labels, convention)
  if ignored is not None:
    if any(ignored in _ids(value) for value in labels.values()):
      raise InputError('ignored', f'{ignored} is the id of an organ', 'Give an id that no organ has.')
    pred = np.where(true == ignored, true, pred) if (true == ignored).any() else pred
  tolerances = _tolerances(nsd_tolerance_mm, labels)
  pred, true = c_ordered(pred), c_ordered(true)
  millimetres = tuple(float(s) for s in spacing_mm)
  spacing = millimetres if UNITS[convention] == 'mm' else (1.0,) * pred.ndim
  diagonal = float(np.linalg.norm(np.multiply(pred.shape, spacing)))
  voxel_ml = float(np.prod(millimetres)) / 1000
  boxes = union_boxes(pred, true, [_ids(value) for value in labels.values()])

  scores = {}
  for organ, index in labels.items():
    ids = _ids(index)
    box = boxes[ids] or (slice(0),) * pred.ndim
    p, t = (array[box] == ids[0] if len(ids) == 1 else np.isin(array[box], ids) for array in (pred, true))
    n_pred, n_true = int(np.count_nonzero(p)), int(np.count_nonzero(t))
    if n_pred and n_true:
      dsc = 2 * int(np.count_nonzero(p & t)) / (n_pred + n_true)
      distances = surface_distances(p, t, spacing)
      values = dsc, *_summaries(*distances, tolerances[organ], float32=convention == 'monai')
    else:
      dsc, hd, hd95, assd, nsd = _EMPTY[convention][1 if n_true else 2 if n_pred else 0]
      values = dsc, *(diagonal if d is None else d for d in (hd, hd95, hd95, assd)), nsd
    scores[organ] = dict(zip(SCORES, values)) | {
      'missed': n_true > 0 and n_pred == 0,
      'false_positive': n_pred > 0 and n_true == 0,
      'absent': n_pred == 0 and n_true == 0,
      'true_voxels': n_true,
      'pred_voxels': n_pred,
      'true_ml': n_true * voxel_ml,
      'pred_ml': n_pred * voxel_ml,
    }
  return scores


def dice_per_class(pred: np.ndarray, true: np.ndarray, num_classes: int, *, ignored: int | None = None) -> np.ndarray:
  """DSC of every class, by one pass over the label maps; used for validation during training.

  Args:
    pred, true: integer arrays of one shape, values in [0, num_classes).
    num_classes: C, background included.
    ignored: value in `true` of voxels that count nowhere.

  Returns:
    (C,) float64, nan for a class that is in neither array.

  Raises:
    InputError: shapes differ, labels are not integers or lie outside [0, num_classes).
  """
  pred, true = np.asarray(pred), np.asarray(true)
  _check_arrays(pred, true)
  if ignored is not None and not (counts := true != ignored).all():
    pred, true = pred[counts], true[counts]
  for name, array in (('pred', pred), ('true', true)):
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < num_classes:
      raise InputError(name, f'labels lie in [{array.min()}, {array.max()}]', f'Give labels in [0, {num_classes}).')
  pairs = true.astype(np.int64).ravel() * num_classes + pred.ravel()
  table = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
  total = table.sum(0) + table.sum(1)
  return np.where(total > 0, 2 * np.diag(table) / np.maximum(total, 1), np.nan)


def _summaries(to_true: np.ndarray, to_pred: np.ndarray, tolerance: float, *, float32: bool) -> tuple[float, ...]:
  """HD, HD95 pooled, HD95 max, ASSD and NSD of the distances in the two directions."""
  if float32:
    to_true, to_pred = to_true.astype(np.float32), to_pred.astype(np.float32)
    percentile, slack = _percentile_float32, np.float32(1)
  else:
    percentile, slack = (lambda d: np.percentile(d, 95)), 1 + 1e-9  # a distance equal to the tolerance is within it
  pooled = np.concatenate([to_true, to_pred])
  values = (
    pooled.max(),
    percentile(pooled),
    max(percentile(to_true), percentile(to_pred)),
    pooled.mean(),
    np.count_nonzero(pooled <= pooled.dtype.type(tolerance) * slack) / pooled.size,
  )
  return tuple(float(v) for v in values)


def _percentile_float32(distances: np.ndarray) -> np.float32:
  """95th percentile with the rank in float32, as `torch.quantile` computes it."""
  rank = np.float32(0.95) * np.float32(distances.size - 1)
  low, high = int(np.floor(rank)), int(np.ceil(rank))
  ordered = np.partition(distances, (low, high))
  return ordered[low] + np.float32(rank - low) * (ordered[high] - ordered[low])


def _check_arrays(pred: np.ndarray, true: np.ndarray) -> None:
  if pred.shape != true.shape:
    cure = 'Resample the prediction to the grid of the reference first.'
    raise InputError('pred', f'has shape {pred.shape}, the reference {true.shape}', cure)
  for name, array in (('pred', pred), ('true', true)):
    if not (np.issubdtype(array.dtype, np.integer) or array.dtype == bool):
      raise InputError(name, f'labels are of type {array.dtype}', 'Give integer labels, not scores or probabilities.')


def _check(pred: np.ndarray, true: np.ndarray, spacing: tuple, labels: Mapping, convention: str) -> None:
  _check_arrays(pred, true)
  if convention not in UNITS:
    raise InputError(
      'convention', f'{convention!r} is unknown', f'{did_you_mean(convention, UNITS)}Choose one of: {", ".join(UNITS)}.'
    )
  sizes = np.asarray(spacing, np.float64)
  if pred.ndim < 2:
    raise InputError('pred', f'has {pred.ndim} axes', 'Give arrays (D, H, W) or (H, W).')
  if sizes.shape != (pred.ndim,) or not (np.isfinite(sizes) & (sizes > 0)).all():
    cure = f'Give {pred.ndim} positive sizes in mm, in the order of the axes (z, y, x).'
    raise InputError('spacing_mm', f'{spacing} is not valid for an array of shape {pred.shape}', cure)
  if not labels:
    raise InputError('labels', 'names no organ', "Give a mapping such as {'liver': 1}.")
  ids = [_ids(value) for value in labels.values()]
  valid = all(isinstance(i, int | np.integer) and not isinstance(i, bool) and 0 <= i < 65536 for of in ids for i in of)
  double = len({frozenset(of) for of in ids}) < len(ids) or any(len(set(of)) < len(of) for of in ids)
  if not valid or not all(ids) or double:
    cure = 'Give each organ an integer of its own, 0 to 65535, or several.'
    raise InputError('labels', f'{dict(labels)} does not map organs to distinct ids', cure)


def _ids(value: int | Sequence[int]) -> tuple[int, ...]:
  return tuple(value) if isinstance(value, Sequence) else (value,)


def _tolerances(tolerance: float | Mapping[str, float], labels: Iterable[str]) -> dict[str, float]:
  by_organ = dict(tolerance) if isinstance(tolerance, Mapping) else dict.fromkeys(labels, tolerance)
  if lacking := [organ for organ in labels if organ not in by_organ]:
    problem = f'has no tolerance for {", ".join(lacking)}'
    raise InputError('nsd_tolerance_mm', problem, 'Give one number, or a tolerance for every organ.')
  if bad := {o: v for o, v in by_organ.items() if not (np.isfinite(v) and v >= 0)}:
    raise InputError('nsd_tolerance_mm', f'{bad} is not a valid distance', 'Give a finite number of mm, 0 or more.')
  return {organ: float(by_organ[organ]) for organ in labels}
