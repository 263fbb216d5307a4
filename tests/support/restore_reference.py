"""NumPy reference of the restoration from the working grid to the grid of the scan."""

import numpy as np

from afw_jax.data.resample import Resampling, restore_matrices


def from_working(probabilities: np.ndarray, resampling: Resampling) -> np.ndarray:
  """Class probabilities on the grid of the scan.

  Args:
    probabilities: (d, h, w, C) float.
    resampling: of the scan.

  Returns:
    (D, H, W, C) float32; the background (class 0) has probability 1 outside the working field of view.
  """
  mz, my, mx = restore_matrices(resampling)
  out = np.tensordot(mz, np.asarray(probabilities, np.float32), (1, 0))
  out = np.stack([np.moveaxis(my @ np.moveaxis(classes, -1, 0) @ mx.T, 0, -1) for classes in out])
  seen = mz.sum(1)[:, None, None] * my.sum(1)[:, None] * mx.sum(1)
  out[..., 0] += 1 - seen
  return out
