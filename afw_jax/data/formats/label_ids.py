"""Label ids in files: whole numbers, also where a tool stored them as fractions by automatic scaling."""

import numpy as np

TOLERANCE = 1e-3  # of a stored value from its id: automatic scaling gives 1.00000004 for 1


def whole_ids(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The ids that stored values stand for.

  Args:
    values: of any real type and shape.

  Returns:
    (the nearest whole numbers, of the type of the values; those values that are further than 0.001 from theirs). NaN
    and infinity stay as they are.
  """
  if values.dtype.kind != 'f':
    return values, values[:0]
  ids = np.rint(values)
  with np.errstate(invalid='ignore'):  # infinity - infinity
    return ids, values[np.abs(values - ids) > TOLERANCE]
