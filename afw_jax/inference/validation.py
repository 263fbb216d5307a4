"""Validation during training: the mean Dice similarity coefficient (DSC) that chooses the best checkpoint."""

from collections.abc import Mapping, Sequence

import numpy as np

from afw_jax import metrics
from afw_jax.data import field_of_view, store, working_grid
from afw_jax.data.sets.spec import IGNORED
from afw_jax.distributed import runtime
from afw_jax.inference import segmentation
from afw_jax.inference.forward import PredictStep, PyTree
from afw_jax.system import terminal


def validate(
  predict_step: PredictStep,
  variables: PyTree,
  store_dir: str,
  case_ids: Sequence[str],
  windows: Mapping[str, Sequence],
  *,
  contents: Mapping[str, str],
  organs: Sequence[str],
  options: segmentation.Options,
  overhang: field_of_view.Usual | None = None,
) -> dict[str, float]:
  """DSC of each case as a volume on its own grid, averaged over cases for each organ; every process scores a part.

  Args:
    predict_step: jitted.
    variables: of the network, on this process's devices.
    store_dir: the prepared data.
    case_ids: cases to score.
    windows: case id -> (low, high) of its intensity window, or one for each channel.
    contents: case id -> the `store.content_digest` that the case must have.
    organs: names of the classes 1..C-1.
    options: how a volume is put through the network.
    overhang: how far bodies usually reach beyond the working grid; see `field_of_view.placed`.

  Returns:
    {'val/dsc': mean over organs, 'val/dsc/<organ>': ...}. Organs that no case has and that are predicted in none are
    left out; the mean is nan where that leaves no organ.
  """
  scores = {}
  for case_id in terminal.progress_bar(
    runtime.local_items(case_ids),
    desc='validate',
    leave=False,
    disable=runtime.process_index() > 0 or not terminal.is_interactive(),
  ):
    case = store.read_case(store_dir, case_id, content=contents[case_id])
    grid, image = working_grid.prepared_case(case, overhang)
    labels = segmentation.segment_volume(predict_step, variables, image, windows[case_id], grid, options)
    scores[case_id] = _dice(labels, case.arrays['native_label'], len(organs))
  merged = {case_id: score for part in runtime.gather(scores) for case_id, score in part.items()}
  table = np.array([merged[case_id] for case_id in case_ids])
  mean = {organ: float(np.nanmean(dsc)) for organ, dsc in zip(organs, table.T) if not np.isnan(dsc).all()}
  overall = float(np.mean(list(mean.values()))) if mean else float('nan')
  return {'val/dsc': overall, **{f'val/dsc/{organ}': dsc for organ, dsc in mean.items()}}


def _dice(labels: np.ndarray, true: np.ndarray, num_organs: int) -> list[float]:
  return metrics.dice_per_class(labels, true, num_organs + 1, ignored=IGNORED)[1:].tolist()
