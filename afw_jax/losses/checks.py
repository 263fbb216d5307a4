"""What can be wrong with the arguments of a loss, said at the door in one line."""

import difflib
from collections.abc import Collection, Iterable

import jax.numpy as jnp
import numpy as np

from afw_jax.errors import InputError


def check_arrays(logits, labels, mask=None) -> None:
  """Checks ranks, shapes and dtypes (static under jit, so it costs nothing there).

  Raises:
    InputError: logits not floating or without a class axis of 2 or more, labels not integer or of another shape than
      logits without the class axis, mask not of the labels' rank or not broadcastable to them.
  """
  shapes = f'logits {logits.shape} {logits.dtype}, labels {labels.shape} {labels.dtype}'
  if not jnp.issubdtype(logits.dtype, jnp.floating):
    raise InputError('logits', f'not floating point ({shapes})', 'Give the raw network output, before any softmax.')
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise InputError('labels', f'not of an integer dtype ({shapes})', 'Give class ids, not one-hot vectors or floats.')
  if logits.shape[:-1] != labels.shape or logits.ndim == 0:
    cure = 'Give logits (B, *S, C), channels last, and labels (B, *S).'
    raise InputError('labels', f'do not fit the logits ({shapes})', cure)
  if logits.shape[-1] < 2:
    raise InputError('logits', f'fewer than two classes ({shapes})', 'Give one channel per class, background first.')
  if mask is not None and (mask.ndim != labels.ndim or any(m not in (1, n) for m, n in zip(mask.shape, labels.shape))):
    problem = f'shape {mask.shape} does not fit labels {labels.shape}'
    raise InputError('mask', problem, "Give the labels' shape (axes of 1 broadcast).")


def check_log_sigma_sq(log_sigma_sq, num_classes: int) -> None:
  """Checks that log_sigma_sq is one real number per class.

  Raises:
    InputError: another shape than (C,), or not a real dtype.
  """
  if log_sigma_sq.shape != (num_classes,) or jnp.issubdtype(log_sigma_sq.dtype, jnp.complexfloating):
    problem = f'shape {log_sigma_sq.shape} {log_sigma_sq.dtype}, but logits have {num_classes} classes'
    cure = f'Give one log-variance per class, background included: shape ({num_classes},).'
    raise InputError('log_sigma_sq', problem, cure)


def check_number(name: str, value, *, low: float = 0.0, high: float = np.inf, above: bool = False) -> None:
  """Checks a scalar option; traced and device scalars pass unread.

  Args:
    name: the option, for the message.
    value: the option's value.
    low, high: the range allowed, ends included.
    above: low itself is not allowed.

  Raises:
    InputError: not a finite number in the range.
  """
  if isinstance(value, bool | np.bool_) or not (isinstance(value, int | float | np.number) or hasattr(value, 'aval')):
    raise InputError(name, f'{value!r} is not a number', f'Give a number, {"above" if above else "at least"} {low:g}.')
  if not isinstance(value, int | float | np.number):
    return
  if not np.isfinite(value) or not low <= value <= high or (above and value == low):
    limits = f'{"above" if above else "at least"} {low:g}' + (f' and at most {high:g}' if np.isfinite(high) else '')
    raise InputError(name, f'{value!r} is out of range', f'Give a finite number {limits}.')


def check_choice(name: str, value, choices: Iterable) -> None:
  """Checks an option that has a few names.

  Raises:
    InputError: value is none of the choices; proposes the nearest.
  """
  choices = tuple(choices)
  if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
    near = difflib.get_close_matches(str(value), [c for c in choices if isinstance(c, str)], n=1)
    guess = f'Did you mean {near[0]!r}? ' if near else ''
    raise InputError(name, f'{value!r} is unknown', f'{guess}Choose one of: {", ".join(map(str, choices))}.')


def check_flag(name: str, value) -> None:
  """Checks that an option is True or False (the string 'False' would count as true).

  Raises:
    InputError: anything else.
  """
  if not isinstance(value, bool | np.bool_):
    raise InputError(name, f'{value!r} is neither True nor False', 'Give one of the two, without quotes.')


def focused_classes(num_classes: int, rare, symmetric: bool = False) -> np.ndarray:
  """Which classes carry the focal exponent.

  Args:
    num_classes: C.
    rare: class ids that do; None means every foreground class 1..C-1 (the paper's choice).
    symmetric: every class, background included (the paper's Table 4); leaves no room for `rare`.

  Returns:
    (C,) bool, a constant of the trace.

  Raises:
    InputError: ids that are not integers in [0, C), or `rare` together with `symmetric`.
  """
  check_flag('symmetric', symmetric)
  if symmetric:
    if rare is not None:
      raise InputError('rare', f'{rare!r} given together with symmetric=True', 'Give one of the two.')
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
    raise InputError('rare', f'{wrong!r} are no class ids', cure)
  return np.isin(np.arange(num_classes), np.array(ids, int))
