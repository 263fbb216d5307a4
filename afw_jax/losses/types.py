"""Type aliases for the arguments and results of the losses."""

from collections.abc import Callable, Hashable
from typing import Literal

import jax
import numpy as np

Array = jax.Array | np.ndarray
Scalar = float | jax.Array  # a number, or a traced or device scalar
AxisName = Hashable  # of a mapped axis, or a tuple of such names
Reduction = Literal['mean', 'sum', 'none']
Correction = Literal['eq6', 'eq2'] | None
RecipeName = Literal['paper', 'released']
Weights = Literal['learned', 'equal', 'solved', 'entropic', 'entropic_present']
Background = Literal['weighted', 'anchored']

# (logits, labels, log_sigma_sq, *, mask=None) -> (scalar loss, per-class terms for logging)
LossFn = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
