"""What the networks share besides layers: the compute dtype, and the checks of options and images."""

from collections.abc import Sequence

import jax.numpy as jnp

from afw_jax.errors import InputError


def identity(x):
  """The default `constrain`: leaves the features as they are."""
  return x


def parts_of(constrain) -> int:
  """Over how many devices `constrain` divides the rows of a sample: its attribute `parts`, 1 where it has none."""
  return getattr(constrain, 'parts', 1)


def logits_dtype(dtype) -> jnp.dtype:
  """float32 whatever the compute dtype, except that float64 stays float64."""
  return jnp.promote_types(dtype, jnp.float32)


def compute_dtype(dtype) -> jnp.dtype:
  """The compute dtype an option names (a dtype or its name, as 'bfloat16'); InputError if it is no float type."""
  try:
    dtype = jnp.dtype(dtype)
  except TypeError:
    raise InputError(f'model option dtype={dtype!r}', 'is not a dtype', "use 'float32' or 'bfloat16'") from None
  if not jnp.issubdtype(dtype, jnp.floating):
    raise InputError(f'model option dtype={dtype.name}', 'is not a float type', "use 'float32' or 'bfloat16'")
  return dtype


def check_choice(option: str, value, choices) -> None:
  """Refuses a value of an option that is not among `choices`."""
  if value not in choices:
    raise InputError(
      f'model option {option}={value!r}',
      'there is no such choice',
      'these work: ' + ', '.join(repr(c) for c in choices),
    )


def check_image(name: str, image, strides: Sequence[int]) -> None:
  """Refuses an image whose sides the network cannot take, naming the nearest sizes that work.

  Args:
    name: the network, for the message.
    image: (B, *S, Cin).
    strides: per spatial axis, what the side must be divisible by.
  """
  if image.ndim != len(strides) + 2:
    axes = ', '.join('DHW'[-len(strides) :])
    raise InputError(
      f'image of shape {tuple(image.shape)}', f'{name} takes (B, {axes}, channels)', 'add or remove axes, channels last'
    )
  sides = image.shape[1:-1]
  if any(n % s or n == 0 for n, s in zip(sides, strides)):
    below = tuple(max(n // s, 1) * s for n, s in zip(sides, strides))
    above = tuple(max(-(-n // s), 1) * s for n, s in zip(sides, strides))
    nearest = ' or '.join(_by(n) for n in dict.fromkeys((below, above)))
    raise InputError(
      f'image of {_by(sides)} pixels',
      f'{name} needs sides divisible by {_by(strides)}',
      f'the nearest sizes that work: {nearest}',
    )


def _by(sides):
  return ' x '.join(map(str, sides))
