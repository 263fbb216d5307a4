"""The networks, built by name: a network's name is its module's name.

Every module of `MODELS` offers

  make(num_classes, **options) -> nn.Module      called as apply(variables, image, train=False)
  smallest_image(module, channels) -> shape      of an image that is enough to initialise it
  SPATIAL_DIMS                                           2 (slices) or 3 (volumes)
  reduction(module) -> int                       of the first axis at the deepest level, where it is not the smallest image's side
  TORCH_NAMES, TORCH_CLASSES, TORCH_CHANNELS     what `afw_jax.convert` needs to read PyTorch weights

and every network takes the options `size` ('testing' is small enough for a train step in well under a second), `dtype`
(the compute dtype; parameters, the norms' statistics and the logits stay float32), `remat` (compute activations again in
the backward pass) and `constrain` (a function applied to the features after each block, for spatial sharding). One with
deep supervision answers with a list of logits, `main_output` is the index of its answer and `head_weights` what its heads
weigh in training.
"""

import difflib
import importlib
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp

from afw_jax.errors import InputError

MODELS = ('unet', 'unetpp', 'transunet', 'vatransunet', 'unet3d', 'unetr', 'unetrpp')


def module_of(name: str):
  """The module of the network called `name`; InputError with the nearest name when there is none."""
  if name not in MODELS:
    raise InputError(f'model {name!r}', 'no network has this name', _cure(name, MODELS))
  return importlib.import_module(f'afw_jax.models.{name}')


def check_options(name: str, options: dict) -> None:
  """Refuses options that the network `name` does not have, naming those it has."""
  known = list(inspect.signature(module_of(name).make).parameters)
  for option in options:
    if option not in known:
      raise InputError(f'model option {option!r}', f'{name} has no such option', _cure(option, known))


def reduction(name: str, model: nn.Module) -> int:
  """How many rows of an image (along its first axis) become one at the deepest level of the network `name`."""
  module = module_of(name)
  return module.reduction(model) if hasattr(module, 'reduction') else module.smallest_image(model)[1]


def build(name: str, num_classes: int, **options) -> nn.Module:
  """Builds a network.

  Args:
    name: one of `MODELS`.
    num_classes: number of classes, background included.
    **options: the network's own options, see `make` in its module.

  Returns:
    A Linen module: `apply(variables, image (B, *S, Cin), train=False) -> logits (B, *S, num_classes)` float32; with
    `train=True` pass `mutable=['batch_stats']`.

  Raises:
    InputError: an unknown name or option, or a value that cannot work.
  """
  check_options(name, options)
  if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
    raise InputError(
      f'num_classes={num_classes!r}',
      'is not a number of classes',
      'give an integer of at least 2: the background and one organ',
    )
  return module_of(name).make(num_classes, **options)


def init(model: nn.Module, key, image_shape: tuple[int, ...]) -> dict:
  """Initial variables of a network for images (B, *S, Cin) of this shape; only Cin matters to most networks.

  Compiled without optimisation, which changes no bit of the random numbers: they are drawn once, and for a UNet's 38
  arrays optimising takes ten seconds on two cores where this takes three.
  """
  compiled = jax.jit(model.init, compiler_options={'xla_backend_optimization_level': 0})
  return compiled(key, jnp.zeros(image_shape))


def _cure(word: object, known) -> str:
  near = difflib.get_close_matches(str(word), known, n=1)
  return (f'did you mean {near[0]!r}? ' if near else '') + 'these work: ' + ', '.join(known)
