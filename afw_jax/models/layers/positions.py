"""Learned position embeddings, interpolated to grids of tokens other than the one they were made for."""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax

from afw_jax.errors import InputError


def position_table(
  module: nn.Module,
  name: str,
  grid: Sequence[int],
  features: int,
  init: Callable,
  position_grid: Sequence[int] | None = None,
):
  """The table of positions of `module`, a parameter (1, tokens, features), resized to the grid of the image.

  Call it inside the module's compact `__call__`: `x + position_table(self, 'pos_embed', grid, x.shape[-1], init)`. At
  initialisation the table has the tokens of `position_grid` if that is given, otherwise those of `grid`. Later, and
  with converted weights, the image may have another grid; the grid of the table is then `position_grid` if it is given,
  otherwise `grid` if the number of tokens is the same, otherwise the square or cube with that number of tokens.

  Args:
    module: the module that has the table as a parameter.
    name: name of the parameter.
    grid: tokens per axis of the image; the first axis is the slowest in the order of the tokens.
    features: channels of a token.
    init: initialiser (key, shape, dtype).
    position_grid: tokens per axis for which the table was made, if known.

  Returns:
    (1, prod(grid), features) float32.

  Raises:
    InputError: the grid of the table is unknown, or is not `position_grid`.
  """
  grid = tuple(grid)
  if module.has_variable('params', name):  # self.param refuses a table of another length
    table = module.get_variable('params', name)
  else:
    table = module.param(name, init, (1, math.prod(position_grid or grid), features), jnp.float32)
  return resize_table(table, source_grid(table.shape[1], grid, position_grid), grid)


def source_grid(tokens: int, grid: Sequence[int], position_grid: Sequence[int] | None = None) -> tuple[int, ...]:
  """Tokens per axis of a table with this number of tokens, see `position_table`.

  Raises:
    InputError: the grid of the table is unknown, or is not `position_grid`.
  """
  if position_grid is not None:
    if math.prod(position_grid) != tokens or len(position_grid) != len(grid):
      raise InputError(
        f'model option position_grid={tuple(position_grid)}',
        f'has {math.prod(position_grid)} tokens along {len(position_grid)} axes, '
        f'the table of positions has {tokens} along {len(grid)}',
        'Give the image size that the weights were trained on, divided by the patch size.',
      )
    return tuple(position_grid)
  if math.prod(grid) == tokens:
    return tuple(grid)
  side = round(tokens ** (1 / len(grid)))
  if side ** len(grid) != tokens:
    raise InputError(
      f'a table of {tokens} positions for a grid of {" x ".join(map(str, grid))}',
      'the grid of the table cannot be inferred from this number',
      'Give model option position_grid: the image size that the weights were trained on, divided by the patch size.',
    )
  return (side,) * len(grid)


def resize_table(table, source: Sequence[int], target: Sequence[int]):
  """Resizes a table of positions by linear interpolation along each axis, corners onto corners.

  Args:
    table: (1, prod(source), features).
    source, target: tokens per axis.

  Returns:
    (1, prod(target), features); the table itself if the grids are the same.
  """
  source, target = tuple(source), tuple(target)
  if source == target:
    return table
  values = table.reshape(*source, table.shape[-1])
  for axis, (n, m) in enumerate(zip(source, target)):
    if n != m:
      mixed = jnp.tensordot(linear_matrix(n, m).astype(table.dtype), values, (1, axis), precision=lax.Precision.HIGHEST)
      values = jnp.moveaxis(mixed, 0, axis)
  return values.reshape(1, math.prod(target), table.shape[-1])


def linear_matrix(n: int, m: int) -> np.ndarray:
  """Weights (m, n) float32 of linear interpolation with corners aligned; a single output is the first input."""
  at = np.arange(m) * ((n - 1) / max(m - 1, 1))
  return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n))).astype(np.float32)
