"""Segmentation networks in Flax Linen, built by name: `build('unet', num_classes=9)`.

The name of a network is the name of its module. To add a network, write a module in this folder, add its name to
`MODELS`, and give it an entry in the tables of tests/models/test_models.py. The module defines

  make(num_classes, **options) -> nn.Module       the network, called as apply(variables, image, train=False)
  smallest_image(model, channels=1) -> shape      shape (1, *S, channels) of the smallest image it takes
  SPATIAL_DIMS                                    2 for a network of slices, 3 for a network of volumes
  SIZES                                           its numbers of channels and layers by `size`: 'full' and 'testing'

and, where they apply,

  reduction(model) -> int                         rows of the image per row at the deepest level (along the first axis),
                                                  if that is not the side of the smallest image
  PATCH                                           side of the patches of a network with a table of positions
  TORCH_NAMES                                     rules (pattern, replacement) from the path of one of our layers to the
                                                  key of a PyTorch state dict, applied in order (`weights.convert`)
  TORCH_CLASSES, TORCH_CHANNELS                   keys from whose shapes the numbers of classes and channels are read
  TORCH_IGNORED, TORCH_ALIASES                    keys without effect; keys that are second names of others
  torch_image(model, arrays, channels) -> shape   of an image that fits the PyTorch weights, if it is not the smallest

Every network takes the options
- `size`: 'full', or 'testing' for a miniature that takes a training step in well under a second;
- `dtype`: the compute dtype; parameters, statistics of the norms and logits are float32 with any;
- `remat`: whether activations are recomputed in the backward pass: less memory, more time;
- `constrain`: a function applied to the features after each block, which sharding in space uses.
Those with self-attention also take `attend`, the function that computes it (`layers.attention`).

A network with deep supervision returns a list of logits. Its attributes are then `main_output`, the index of its
prediction in the list, and `head_weights`, the weights of the heads' losses in training.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from types import ModuleType

import flax.linen as nn
import jax
import jax.numpy as jnp

from afw_jax.errors import InputError, did_you_mean

MODELS = ('unet', 'unetpp', 'transunet', 'vatransunet', 'unet3d', 'unetr', 'unetrpp')
PRECISIONS = ('default', 'high', 'highest')


def module_of(name: str) -> ModuleType:
  """The module of a network.

  Raises:
    InputError: an unknown name; the message proposes the nearest.
  """
  if name not in MODELS:
    cure = f'{did_you_mean(name, MODELS)}Choose one of: {", ".join(MODELS)}.'
    raise InputError(f'model {name!r}', 'no network has this name', cure)
  return importlib.import_module(f'afw_jax.models.{name}')


def check_options(name: str, options: dict) -> None:
  """Checks that the network `name` has all of these options.

  Raises:
    InputError: an unknown name or option; the message proposes the nearest.
  """
  known = list(inspect.signature(module_of(name).make).parameters)
  for option in options:
    if option not in known:
      cure = f'{did_you_mean(option, known)}Its options are: {", ".join(known)}.'
      raise InputError(f'model option {option!r}', f'{name} has no such option', cure)


def takes(name: str, option: str) -> bool:
  """Whether the network `name` has an option."""
  return option in inspect.signature(module_of(name).make).parameters


def reduction(name: str, model: nn.Module) -> int:
  """How many rows of an image (along its first axis) make one row at the deepest level of the network `name`."""
  module = module_of(name)
  return module.reduction(model) if hasattr(module, 'reduction') else module.smallest_image(model)[1]


def build(name: str, num_classes: int, **options) -> nn.Module:
  """Builds a network.

  Args:
    name: one of `MODELS`.
    num_classes: number of classes, background included.
    **options: options of the network, see `make` in its module.

  Returns:
    A Linen module: `apply(variables, image (B, *S, Cin), train=False) -> logits (B, *S, num_classes)` float32; with
    `train=True` pass `mutable=['batch_stats']`.

  Raises:
    InputError: an unknown name or option, or an invalid value.
  """
  check_options(name, options)
  if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
    cure = 'Give an integer of at least 2: the background and one organ.'
    raise InputError(f'num_classes={num_classes!r}', 'is not a valid number of classes', cure)
  return module_of(name).make(num_classes, **options)


def init(model: nn.Module, key: jax.Array, image_shape: tuple[int, ...]) -> dict:
  """Initial variables of a network for images of a shape.

  It is compiled without optimisation: the numbers are drawn once, and for the 38 arrays of a UNet optimising takes ten
  seconds on two cores where this takes three.

  Args:
    model: the network.
    key: PRNG key.
    image_shape: (B, *S, Cin); for most networks only Cin matters.

  Returns:
    {'params': ..., 'batch_stats': ...}, without the collections that the network does not have.

  Raises:
    InputError: an image that the network cannot take.
  """
  compiled = jax.jit(model.init, compiler_options={'xla_backend_optimization_level': 0})
  return compiled(key, jnp.zeros(image_shape))


def abstract_variables(model: nn.Module, image_shape: tuple[int, ...]) -> dict:
  """Shapes and dtypes of a network's variables for images of a shape, without computing or allocating anything.

  Args:
    model: the network.
    image_shape: (B, *S, Cin).

  Returns:
    As from `init`, with a `jax.ShapeDtypeStruct` in the place of each array.

  Raises:
    InputError: an image that the network cannot take.
  """
  image = jax.ShapeDtypeStruct(image_shape, jnp.float32)
  return jax.eval_shape(lambda image: model.init(jax.random.key(0), image), image)


def at_precision(name: str, function: Callable) -> Callable:
  """A function whose products and convolutions of float32 numbers have the precision `runtime.matmul_precision`.

  Products that ask for a precision themselves keep it. 'default' leaves the function as it is: JAX's own default, or
  that of the environment variable JAX_DEFAULT_MATMUL_PRECISION.

  Args:
    name: one of `PRECISIONS`.
    function: not yet jitted; the precision becomes part of its program.

  Raises:
    InputError: an unknown precision.
  """
  check_precision(name)
  if name == 'default':
    return function

  @functools.wraps(function)
  def precise(*args, **kwargs):
    with jax.default_matmul_precision(name):
      return function(*args, **kwargs)

  return precise


def check_precision(name: str) -> None:
  """Raises InputError if `runtime.matmul_precision` is not one of `PRECISIONS`."""
  if name not in PRECISIONS:
    hint = f'{did_you_mean(name, PRECISIONS)}Use one of {", ".join(PRECISIONS)}.'
    raise InputError('runtime.matmul_precision', f'{name!r} is unknown', hint)
