"""Options that the networks share: compute dtype, validation of option values and of image sizes."""

import numbers
from collections.abc import Collection, Sequence

import jax.numpy as jnp

from afw_jax.errors import InputError, did_you_mean


def identity(x):
  """The default `constrain`: returns the features unchanged."""
  return x


def parts_of(constrain) -> int:
  """Number of devices over which `constrain` divides the rows of a sample: its attribute `parts`, 1 without one."""
  return getattr(constrain, 'parts', 1)


def logits_dtype(dtype) -> jnp.dtype:
  """float32 for any compute dtype but float64, which stays float64."""
  return jnp.promote_types(dtype, jnp.float32)


def compute_dtype(dtype) -> jnp.dtype:
  """The compute dtype of an option, a dtype or its name (as 'bfloat16').

  Raises:
    InputError: not a floating dtype.
  """
  cure = "Use 'float32' or 'bfloat16'."
  try:
    dtype = jnp.dtype(dtype)
  except TypeError:
    raise InputError(f'model option dtype={dtype!r}', 'is not a dtype', cure) from None
  if not jnp.issubdtype(dtype, jnp.floating):
    raise InputError(f'model option dtype={dtype.name}', 'is not a floating dtype', cure)
  return dtype


def check_choice(option: str, value, choices: Collection) -> None:
  """Raises InputError if the value of an option is not one of `choices`."""
  if value not in choices:
    cure = f'{did_you_mean(value, choices)}Choose one of: {", ".join(repr(c) for c in choices)}.'
    raise InputError(f'model option {option}={value!r}', 'is not a valid choice', cure)


def check_flags(**options) -> None:
  """Raises InputError if one of these options is neither True nor False (the string 'False' would count as true)."""
  for option, value in options.items():
    check_choice(option, value, (True, False))


def check_rates(**options) -> None:
  """Raises InputError if one of these options is not a dropout rate, a number in [0, 1)."""
  for option, value in options.items():
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < 1:
      problem = 'is not a valid dropout rate'
      raise InputError(f'model option {option}={value!r}', problem, 'Give a number from 0 to below 1, for example 0.1.')


def channels_per_level(features: Sequence[int], default: Sequence[int], *, least: int = 2) -> tuple[int, ...]:
  """The option `features` of the U-shaped networks, or the default where it is empty.

  Args:
    features: channels of each level, from full resolution down.
    default: channels of the network's size.
    least: least number of levels.

  Raises:
    InputError: fewer levels, or not positive integers.
  """
  features = features or default
  given = isinstance(features, Sequence) and all(type(f) is int and f > 0 for f in features)
  if not given or len(features) < least:
    raise InputError(
      f'model option features={features!r}',
      'is not a list of channels per level',
      f'Give {least} or more positive integers, for example {tuple(default)}.',
    )
  return tuple(features)


def gray_to_rgb(image):
  """Repeats a one-channel image (B, *S, 1) to three channels; another number of channels is left unchanged."""
  return jnp.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def check_image(name: str, image, strides: Sequence[int]) -> None:
  """Raises InputError for an image size that the network cannot take, with the nearest sizes that it can.

  Args:
    name: name of the network, for the message.
    image: (B, *S, Cin).
    strides: what each spatial side must be divisible by.
  """
  if image.ndim != len(strides) + 2:
    axes = ', '.join('DHW'[-len(strides) :])
    problem = f'{name} takes (B, {axes}, channels)'
    raise InputError(f'image of shape {tuple(image.shape)}', problem, 'Add or remove axes; channels are last.')
  sides = image.shape[1:-1]
  if any(n % s or n == 0 for n, s in zip(sides, strides)):
    below = tuple(max(n // s, 1) * s for n, s in zip(sides, strides))
    above = tuple(max(-(-n // s), 1) * s for n, s in zip(sides, strides))
    nearest = ' or '.join(_by(n) for n in dict.fromkeys((below, above)))
    problem = f'{name} needs sides divisible by {_by(strides)}'
    raise InputError(f'image of {_by(sides)} pixels', problem, f'The nearest sizes that work: {nearest}.')


def _by(sides: Sequence[int]) -> str:
  return ' x '.join(map(str, sides))
