"""From a config to the parts of a run: the one place that knows which key feeds which function."""

import json

import ml_collections

from afw_jax import losses, metrics, models, preprocess
from afw_jax.distributed import sharding
from afw_jax.errors import InputError
from afw_jax.training import accumulation, augment, optimizer
from afw_jax.weights import pretrained


def network(config: ml_collections.ConfigDict, num_classes: int, **more) -> tuple:
  """(module, the options it was built with as plain JSON); `more` are options no file keeps, as `constrain`."""
  options = {
    'dtype': config.model.dtype,
    'size': config.model.size,
    'remat': config.model.remat,
    **config.model.get(config.model.name, {}),
  }
  options = json.loads(ml_collections.ConfigDict(options).to_json_best_effort())
  return models.build(config.model.name, num_classes=num_classes, **options, **more), options


def input_size(config: ml_collections.ConfigDict) -> tuple[int, ...]:
  """Spatial shape that the network is trained on: the patch, or without one the working grid ((h, w): slices).

  Raises:
    InputError: it has not as many axes as the network takes, or a side is left open.
  """
  size, name = tuple(config.train.patch_size or config.data.size), config.model.name
  key = 'train.patch_size' if config.train.patch_size else 'data.size'
  rank = models.module_of(name).SPATIAL_DIMS
  if rank == 2 and config.train.patch_size:
    raise InputError(
      key, f'is {size}, but {name} is a 2D network, which takes whole slices', 'Leave it out: train.patch_size=().'
    )
  if len(size) != rank:
    wanted = {2: 'data.size=(h, w)', 3: 'data.size=(d, h, w) or train.patch_size=(d, h, w)'}
    raise InputError(key, f'is {size}, but {name} is a {rank}D network', f'Give {wanted[rank]}.')
  if config.train.patch_size and len(config.data.size) == 2:
    raise InputError(
      'train.patch_size',
      f'is {size}, but data.size {tuple(config.data.size)} makes slices',
      'Give data.size=() or (d, h, w).',
    )
  if not all(isinstance(n, int) and n > 0 for n in size):
    raise InputError(key, f'{size} has a side that is no number of voxels', 'Give train.patch_size=(d, h, w).')
  return size


def mesh(config: ml_collections.ConfigDict):
  """The devices as data x spatial."""
  return sharding.make_mesh(config.mesh.data, config.mesh.spatial)


def check_mesh(config: ml_collections.ConfigDict, on, model) -> None:
  """Raises InputError where the batch, the samples or the network's deepest level do not divide over a mesh."""
  sharding.check_divisible(on, config.train.batch_size, input_size(config), models.reduction(config.model.name, model))


def loss(config: ml_collections.ConfigDict, model, class_names: tuple[str, ...]):
  """The configured loss for one head or several (networks with deep supervision say what their heads weigh)."""
  options = dict(config.loss.get(config.loss.name, {}))
  unknown = [name for name in options.get('rare', ()) if name not in class_names]
  if unknown:
    raise InputError('loss.rare', f'{unknown} are not among the organs', f'Name some of {class_names[1:]}.')
  if 'rare' in options:  # organs by name -> by class id; none named means every organ
    options['rare'] = tuple(class_names.index(name) for name in options['rare']) or None
  single = losses.make_loss(config.loss.name, **options)
  return losses.deep_supervised(single, getattr(model, 'head_weights', None), main=getattr(model, 'main_output', 0))


def augmentation(config: ml_collections.ConfigDict):
  """The configured augmentation, (key, batch) -> batch."""
  return augment.make_augment(config.augment.name, **config.augment.get(config.augment.name, {}))


def preparation(config: ml_collections.ConfigDict, on):
  """What a train step does to a raw batch on a mesh: window and augmentation, (key, batch) -> batch."""
  prepare = preprocess.make_preprocess(augmentation(config))
  return prepare if config.augment.name == 'none' else sharding.gather_samples(on, prepare)


def schedule(config: ml_collections.ConfigDict, steps_per_epoch: int):
  """Learning rate of a step."""
  return optimizer.polynomial_schedule(
    config.optimizer.learning_rate,
    epochs=config.train.epochs,
    steps_per_epoch=steps_per_epoch,
    unit=config.optimizer.schedule_unit,
    power=config.optimizer.power,
  )


def sgd(config: ml_collections.ConfigDict, rate):
  """The optimizer."""
  return optimizer.sgd(
    rate,
    momentum=config.optimizer.momentum,
    weight_decay=config.optimizer.weight_decay,
    clip_norm=config.optimizer.clip_norm,
  )


def data_choices(data: ml_collections.ConfigDict) -> dict:
  """What `prepare.prepare` needs of `config.data`; axes that size and spacing leave out are those of the scan."""
  return dict(
    size=data.size,
    spacing_mm=(None,) * (3 - len(data.spacing_mm)) + tuple(data.spacing_mm),
    fit=data.fit,
    order=data.interpolation,
    window=_window(data.window),
    fractions=data.fractions or None,
    seed=data.split_seed,
    cases=data.num_cases or None,
    keep_defective=data.keep_defective,
  )


def check(config: ml_collections.ConfigDict, *, fresh: bool = True) -> None:
  """Raises InputError for what the config asks for and cannot have, before any long work; takes no time.

  Args:
    config: of the run.
    fresh: False where its training has begun, so that pretrained weights are not read again.
  """
  for section, key in (
    ('train', 'batch_size'),
    ('train', 'epochs'),
    ('train', 'log_every_steps'),
    ('eval', 'batch_size'),
    ('train', 'checkpoint_every_steps'),
    ('train', 'validate_every_epochs'),
  ):
    if config[section][key] < 1:
      raise InputError(f'{section}.{key}', f'is {config[section][key]}', 'Give 1 or more.')
  for key, known in (
    ('convention', metrics.UNITS),
    ('split', ('train', 'val', 'test')),
    ('checkpoint', ('best', 'last')),
  ):
    if config.eval[key] not in known:
      raise InputError(f'eval.{key}', f'{config.eval[key]!r} is unknown', f'Use one of {", ".join(known)}.')
  for section, key in (('train', 'foreground'), ('eval', 'overlap')):
    if not 0 <= config[section][key] <= 1 or (key == 'overlap' and config[section][key] == 1):
      raise InputError(f'{section}.{key}', f'is {config[section][key]}', 'Give a share: 0 or more, and below 1.')
  augmentation(config)
  if config.augment.name == 'volume' and len(input_size(config)) == 2:
    raise InputError('augment.name', "'volume' turns volumes, and these are slices", "Use 'paper' or 'extended'.")
  schedule(config, 1)
  options = dict(config.loss.get(config.loss.name, {}))
  options.pop('rare', None)  # organ names: checked when the data are known
  losses.make_loss(config.loss.name, **options)
  model, options = network(config, 2)
  check_mesh(config, mesh(config), model)
  accumulation.check(config.train.micro_batches, config.train.batch_size, mesh(config).shape['data'])
  if config.model.pretrained and fresh:
    pretrained.check(config.model.name, config.model.pretrained, encoder=options.get('encoder', 'r50'))
  models.abstract_variables(model, (1, *input_size(config), 1))  # refuses a size that the network cannot take


def _window(text: str) -> str | tuple[float, ...] | None:
  try:
    return tuple(float(v) for v in text.strip('()[]').split(',')) if ',' in text else text or None
  except ValueError as error:
    raise InputError(
      'data.window', f'{text!r} is no window', 'Use paper, transunet, percentile or LOW,HIGH.'
    ) from error
