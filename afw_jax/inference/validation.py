"""The score that chooses the best checkpoint."""

import sys
from collections.abc import Sequence

import numpy as np
import tqdm

from afw_jax import metrics
from afw_jax.data import resample, store
from afw_jax.data.selection import Selection
from afw_jax.distributed import runtime
from afw_jax.inference import segmentation


def validate(
  predict_step,
  variables,
  store_dir: str,
  index: dict,
  selection: Selection,
  *,
  window_size: Sequence[int],
  batch_size: int,
  overlap: float,
) -> dict[str, float]:
  """DSC of every validation case as a volume on its own grid, averaged over cases for each organ; each process takes a share.

  Args:
    predict_step: jitted.
    variables: of the network, on this process's devices.
    store_dir: the prepared data.
    index: of the store.
    selection: of the run; its split 'val' is scored.
    window_size, batch_size, overlap: as in `inference.segment`.

  Returns:
    {'val/dsc': mean over organs, 'val/dsc/<organ>': ...}; organs in no case are left out.
  """
  cases, scores = selection.splits['val'], {}
  for case_id in tqdm.tqdm(
    runtime.local_items(cases),
    desc='validate',
    leave=False,
    disable=runtime.process_index() > 0 or not sys.stderr.isatty(),
  ):
    case = store.read_case(store_dir, case_id)
    labels, _ = segmentation.segment(
      predict_step,
      variables,
      case.arrays['image'],
      selection.windows[case_id],
      resample.restore_matrices(resample.Resampling.from_json(case.meta['resampling'])),
      window_size=window_size,
      batch_size=batch_size,
      overlap=overlap,
    )
    scores[case_id] = metrics.dice_per_class(labels, case.arrays['native_label'], len(index['organs']) + 1)[1:].tolist()
  merged = {case_id: score for part in runtime.gather(scores) for case_id, score in part.items()}
  scores = np.array([merged[case_id] for case_id in cases])
  seen = ~np.isnan(scores).all(0)
  mean = {organ: float(np.nanmean(scores[:, i])) for i, organ in enumerate(index['organs']) if seen[i]}
  return {'val/dsc': float(np.mean(list(mean.values()))), **{f'val/dsc/{k}': v for k, v in mean.items()}}
