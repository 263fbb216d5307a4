"""Validation of a config before any long work: unknown names, impossible values, and what does not fit together."""

import math

import ml_collections

from afw_jax import losses, metrics, models
from afw_jax.config import build
from afw_jax.distributed import devices
from afw_jax.errors import InputError, did_you_mean
from afw_jax.training import accumulation, tracker
from afw_jax.weights import from_run, pretrained

_POSITIVE = (
  'train.batch_size',
  'train.epochs',
  'train.log_every_steps',
  'train.checkpoint_every_steps',
  'train.validate_every_epochs',
  'eval.batch_size',
)


def check_config(config: ml_collections.ConfigDict, *, fresh: bool = True) -> None:
  """Checks what can be checked without data, in a second or two; nothing is computed.

  Args:
    config: of the run.
    fresh: False for a run that has begun training, which does not read the weights it started from again.

  Raises:
    InputError: the first option that cannot work, and what to give instead.
  """
  for key in _POSITIVE:
    section, name = key.split('.')
    if config[section][name] < 1:
      raise InputError(key, f'is {config[section][name]}', 'Give 1 or more.')
  _check_choice(config, 'convention', tuple(metrics.UNITS))
  _check_choice(config, 'split', ('train', 'val', 'test'))
  _check_choice(config, 'checkpoint', ('best', 'last'))
  tracker.check(config.tracker)
  devices.check_platform(config.runtime.platform)
  models.check_precision(config.runtime.matmul_precision)
  if not 0 <= config.train.foreground <= 1:
    raise InputError('train.foreground', f'is {config.train.foreground}', 'Give a fraction from 0 to 1.')
  if not 0 <= config.eval.overlap < 1:
    raise InputError('eval.overlap', f'is {config.eval.overlap}', 'Give a fraction from 0 to below 1.')
  build.selection_options(config.data)
  build.augmentation(config)
  size = build.input_size(config)
  if config.augment.name == 'volume' and len(size) == 2:
    raise InputError('augment.name', "'volume' is for volumes, and these are slices", "Use 'paper' or 'extended'.")
  build.schedule(config, 1)
  options = dict(config.loss.get(config.loss.name, {}))
  options.pop('rare', None)  # names of organs: checked when the data set is known
  losses.make_loss(config.loss.name, **options)
  model, options = build.network(config, 2)
  mesh = build.mesh(config)
  build.check_mesh(config, mesh, model)
  accumulation.check(config.train.micro_batches, config.train.batch_size, mesh.shape['data'])
  for key in ('head_learning_rate_factor', 'body_learning_rate_factor'):
    if not 0 <= config.optimizer[key] < math.inf:
      raise InputError(f'optimizer.{key}', f'is {config.optimizer[key]}', 'Give 0 (frozen) or more.')
  if config.model.pretrained and config.model.init_from:
    cure = 'Give one of them: the other run has its own encoder.'
    raise InputError('model.init_from', 'is given, and model.pretrained too', cure)
  if config.model.init_from and fresh:
    from_run.check(config.model.init_from, from_run.Network(config.model.name, options, size, channels=None))
  if config.model.pretrained and fresh:
    pretrained.check(config.model.name, config.model.pretrained, encoder=options.get('encoder', 'r50'))
  models.abstract_variables(model, (1, *size, 1))


def _check_choice(config: ml_collections.ConfigDict, key: str, choices: tuple[str, ...]) -> None:
  value = config.eval[key]
  if value not in choices:
    hint = f'{did_you_mean(value, choices)}Use one of {", ".join(choices)}.'
    raise InputError(f'eval.{key}', f'{value!r} is unknown', hint)
