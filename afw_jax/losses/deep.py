"""Deep supervision: a loss applied to several heads of a network, each against the labels resized to it.

References:
  Lee C.-Y., Xie S., Gallagher P., Zhang Z., Tu Z. 2015. Deeply-Supervised Nets. arXiv:1409.5185.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from afw_jax.errors import InputError
from afw_jax.losses.checks import check_number
from afw_jax.losses.types import Array, LossFn


def deep_supervised(loss_fn: LossFn, weights: Sequence[float] | None = None, *, main: int = 0) -> LossFn:
  """Extends a loss to a list of heads: the sum of w_i loss(head i, labels at the size of head i).

  Args:
    loss_fn: (logits, labels, log_sigma_sq) -> (loss, terms), as `make_loss` returns it.
    weights: one number of 0 or more per head, scaled here to the sum 1. None: 1, 1/2, 1/4, ... in the order of the
      heads (as nnU-Net and UNETR++ do); UNet++ uses equal ones. A head of weight 0 is left out.
    main: index of the head that is the network's prediction, with the size of the labels; -1 is the last.

  Returns:
    fn(logits, labels, log_sigma_sq, *, mask=None) -> (loss, terms). logits is a list of (B, *S_i, C); labels (B, *S)
    are resized to each S_i by `nearest`, and so is a mask; all heads share log_sigma_sq (C,). terms are those of the
    main head. A single array of logits is passed to loss_fn unchanged.

  Raises:
    InputError: weights that are not finite, negative, or all zero. The returned function raises it for a number of
      heads that differs from the number of weights or has no index `main`, for heads that differ in rank from the
      labels, and for a main head that differs in size from them.
  """
  if weights is not None:
    weights = tuple(weights)
    for weight in weights:
      check_number('weights of the heads', weight)
    if not sum(weights) > 0:
      raise InputError(
        'weights of the heads', f'{weights} do not have a sum above 0', 'Give for example (1, 0.5, 0.25).'
      )

  def deep_loss(logits, labels, log_sigma_sq, *, mask=None):
    masked = lambda mask: {} if mask is None else {'mask': mask}
    if not isinstance(logits, list | tuple):
      return loss_fn(logits, labels, log_sigma_sq, **masked(mask))
    shapes = [head.shape for head in logits]
    _check_heads(shapes, labels.shape, weights, main)
    given = np.array([0.5**i for i in range(len(logits))] if weights is None else weights, float)
    total: Array | float = 0.0
    main_terms: dict[str, jax.Array] = {}
    for i, (weight, head) in enumerate(zip(given / given.sum(), logits)):
      if weight == 0 and i != main % len(logits):
        continue
      sides = head.shape[1:-1]
      loss, terms = loss_fn(head, nearest(labels, sides), log_sigma_sq, **masked(_nearest_mask(mask, labels, sides)))
      total += float(weight) * loss
      if i == main % len(logits):
        main_terms = terms
    return jnp.asarray(total), main_terms

  return deep_loss


def nearest(labels: Array, sides: Sequence[int]) -> Array:
  """Resizes labels by nearest neighbour: along each axis output i of m takes input floor((i + 1/2) n / m) of n.

  That is the input at the middle of the cell that output i covers, the later one of two: for halves 1, 3, 5, ..., for
  quarters 2, 6, 10, .... PyTorch's 'nearest-exact' and nnU-Net's labels for deep supervision are the same; PyTorch's
  'nearest' takes floor(i n / m) instead, the first corner of the cell, which moves the labels by up to half a cell.

  Args:
    labels: (B, *S) any dtype.
    sides: new length of each spatial axis; the ratios may differ and need not be whole.

  Returns:
    (B, *sides) of the same dtype.
  """
  for axis, m in enumerate(sides, 1):
    n = labels.shape[axis]
    if n % m == 0:  # a strided slice, which needs no communication along a sharded axis
      step = n // m
      labels = labels[(slice(None),) * axis + (slice(step // 2, None, step),)]
    else:
      labels = jnp.take(labels, (2 * np.arange(m) + 1) * n // (2 * m), axis)
  return labels


def _nearest_mask(mask, labels, sides):
  """The mask resized to a head; axes of length 1 broadcast and are kept (a mask of another rank is refused later)."""
  if mask is None or mask.ndim != labels.ndim:
    return mask
  return nearest(mask, [1 if own == 1 else side for own, side in zip(mask.shape[1:], sides)])


def _check_heads(shapes, labels_shape, weights, main) -> None:
  if weights is not None and len(weights) != len(shapes):
    raise InputError(
      'weights of the heads',
      f'there are {len(weights)} for {len(shapes)} heads',
      'Give one per head in the order of the network, or None for 1, 1/2, 1/4, ...',
    )
  if not -len(shapes) <= main < len(shapes):
    problem = f'{main} is not a valid index of {len(shapes)} heads'
    raise InputError('main', problem, 'Give the index of the full-size head.')
  if any(len(shape) != len(labels_shape) + 1 for shape in shapes):
    raise InputError(
      'heads',
      f'shapes {shapes} do not match labels {labels_shape}',
      'Give logits (B, *S, C), channels last, and labels (B, *S).',
    )
  if shapes[main][1:-1] != labels_shape[1:]:
    raise InputError(
      'heads',
      f'the main one, {main}, is {shapes[main]} and the labels are {labels_shape}',
      'Name the full-size head with main=.',
    )
