"""Argument validation of the losses: shapes, dtypes, and the values of options."""

from collections.abc import Collection, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from afw_jax.errors import InputError, did_you_mean


def check_arrays(logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> None:
  """Checks ranks, shapes and dtypes, which are static under jit, so that nothing is left of this in the program.

  Raises:
    InputError: logits are not floating point or lack a class axis of 2 or more; labels are not integers or differ in
      shape from the logits without the class axis; the mask differs from the labels in rank or does not broadcast to
      them.
  """
  shapes = f'logits {logits.shape} {logits.dtype}, labels {labels.shape} {labels.dtype}'
  if not jnp.issubdtype(logits.dtype, jnp.floating):
    raise InputError('logits', f'are not floating point ({shapes})', 'Give the raw network output, before any softmax.')
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise InputError('labels', f'are not integers ({shapes})', 'Give class ids, not one-hot vectors or floats.')
  if logits.shape[:-1] != labels.shape or logits.ndim == 0:
    cure = 'Give logits (B, *S, C), channels last, and labels (B, *S).'
    raise InputError('labels', f'do not match the shape of the logits ({shapes})', cure)
  if logits.shape[-1] < 2:
    raise InputError(
      'logits', f'have fewer than two classes ({shapes})', 'Give one channel per class, background first.'
    )
  if mask is not None and (mask.ndim != labels.ndim or any(m not in (1, n) for m, n in zip(mask.shape, labels.shape))):
    problem = f'shape {mask.shape} does not match labels {labels.shape}'
    raise InputError('mask', problem, 'Give the shape of the labels (axes of length 1 broadcast).')


def check_log_sigma_sq(log_sigma_sq: jax.Array, num_classes: int) -> None:
  """Checks that log_sigma_sq is one real number per class.

  Raises:
    InputError: the shape is not (C,), or the dtype is not real.
  """
  if log_sigma_sq.shape != (num_classes,) or jnp.issubdtype(log_sigma_sq.dtype, jnp.complexfloating):
    problem = f'shape {log_sigma_sq.shape} {log_sigma_sq.dtype}, but the logits have {num_classes} classes'
    cure = f'Give one log-variance per class, background included: shape ({num_classes},).'
    raise InputError('log_sigma_sq', problem, cure)


def check_number(name: str, value: object, *, low: float = 0.0, high: float = np.inf, above: bool = False) -> None:
  """Checks a scalar option; the value of a traced or device scalar is not read.

  Args:
    name: name of the option, for the message.
    value: value of the option.
    low, high: the allowed range, ends included.
    above: whether `low` itself is excluded.

  Raises:
    InputError: not a finite number in the range.
  """
  if isinstance(value, bool | np.bool_) or not (isinstance(value, int | float | np.number) or hasattr(value, 'aval')):
    raise InputError(
      name, f'{value!r} is not a number', f'Give a number {"above" if above else "of at least"} {low:g}.'
    )
  if not isinstance(value, int | float | np.number):
    return
  if not np.isfinite(value) or not low <= value <= high or (above and value == low):
    limits = f'{"above" if above else "of at least"} {low:g}' + (f' and at most {high:g}' if np.isfinite(high) else '')
    raise InputError(name, f'{value!r} is out of range', f'Give a finite number {limits}.')


def check_choice(name: str, value: object, choices: Iterable[str | None]) -> None:
  """Checks an option that takes one of a few values.

  Raises:
    InputError: the value is not among the choices; the message proposes the nearest.
  """
  choices = tuple(choices)
  if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
    guess = did_you_mean(value, [choice for choice in choices if choice is not None])
    raise InputError(name, f'{value!r} is unknown', f'{guess}Choose one of: {", ".join(map(str, choices))}.')


def check_flag(name: str, value: object) -> None:
  """Checks that an option is True or False (the string 'False' would count as true).

  Raises:
    InputError: any other value.
  """
  if not isinstance(value, bool | np.bool_):
    raise InputError(name, f'{value!r} is neither True nor False', 'Give True or False, without quotes.')


def focused_classes(num_classes: int, rare: Collection[int] | None, symmetric: bool = False) -> np.ndarray:
  """Which classes take the focal exponent.

  Args:
    num_classes: C.
    rare: ids of the classes that take it; None means every foreground class, 1 to C-1 (the paper's choice).
    symmetric: every class takes it, background included (paper Table 4); `rare` must be None then.

  Returns:
    (C,) bool, a constant of the compiled program.

  Raises:
    InputError: ids that are not integers in [0, C), or `rare` together with `symmetric`.
  """
  check_flag('symmetric', symmetric)
  if symmetric:
    if rare is not None:
      raise InputError('rare', f'{rare!r} is given together with symmetric=True', 'Give one of the two.')
    return np.ones(num_classes, bool)
  if rare is None:
    return np.arange(num_classes) > 0
  if isinstance(rare, str | bytes) or not isinstance(rare, Collection):
    cure = 'Give for example rare=(2, 5), or None for every organ.'
    raise InputError('rare', f'{rare!r} is not a sequence of class ids', cure)
  ids = list(rare)
  whole = lambda i: isinstance(i, int | np.integer) and not isinstance(i, bool)
  wrong = [i for i in ids if not (whole(i) and 0 <= i < num_classes)]
  if wrong:
    cure = f'Give integers from 0 to {num_classes - 1} (0 is the background).'
    raise InputError('rare', f'{wrong!r} are not valid class ids', cure)
  return np.isin(np.arange(num_classes), np.array(ids, int))
