"""Builds the parts of a run from its config: the one place that maps config keys to function arguments."""

import json

import jax
import ml_collections

from afw_jax import losses, models, preprocess
from afw_jax.data.preparation.options import StoreOptions
from afw_jax.data.run_record import recorded_selection
from afw_jax.data.selection import Selection, SelectionOptions, select
from afw_jax.data.sets.case_files import normal_name
from afw_jax.distributed import sharding
from afw_jax.errors import InputError
from afw_jax.training import augment, optimizer
from afw_jax.weights import from_run


def network(config: ml_collections.ConfigDict, num_classes: int, **more) -> tuple:
  """The network of a config.

  Args:
    config: of the run.
    num_classes: number of classes, background included.
    **more: options that no config or checkpoint holds, such as `constrain`.

  Returns:
    (the Linen module, the options it was built with as plain JSON).
  """
  options = {
    'dtype': config.model.dtype,
    'size': config.model.size,
    'remat': config.model.remat,
    **config.model.get(config.model.name, {}),
  }
  options = json.loads(ml_collections.ConfigDict(options).to_json_best_effort())
  return models.build(config.model.name, num_classes=num_classes, **options, **more), options


def input_size(config: ml_collections.ConfigDict) -> tuple[int, ...]:
  """Spatial shape of the samples that the network is trained on: the patch or, without one, the working grid.

  Returns:
    (h, w) for slices, (d, h, w) for volumes.

  Raises:
    InputError: its number of axes is not that of the network, or a side is not fixed.
  """
  size, name = tuple(config.train.patch_size or config.data.size), config.model.name
  key = 'train.patch_size' if config.train.patch_size else 'data.size'
  spatial_dims = models.module_of(name).SPATIAL_DIMS
  if spatial_dims == 2 and config.train.patch_size:
    raise InputError(
      key, f'is {size}, but {name} is a 2D network, which takes whole slices', 'Leave it out: train.patch_size=().'
    )
  if len(size) != spatial_dims:
    wanted = {2: 'data.size=(h, w)', 3: 'data.size=(d, h, w) or train.patch_size=(d, h, w)'}
    raise InputError(key, f'is {size}, but {name} is a {spatial_dims}D network', f'Give {wanted[spatial_dims]}.')
  if config.train.patch_size and len(config.data.size) == 2:
    raise InputError(
      'train.patch_size',
      f'is {size}, but data.size {tuple(config.data.size)} makes slices',
      'Give data.size=() or (d, h, w).',
    )
  if not all(isinstance(n, int) and n > 0 for n in size):
    raise InputError(key, f'{size} has a side that is not a number of voxels', 'Give train.patch_size=(d, h, w).')
  return size


def mesh(config: ml_collections.ConfigDict):
  """The device mesh, data x spatial."""
  return sharding.make_mesh(config.mesh.data, config.mesh.spatial)


def check_mesh(config: ml_collections.ConfigDict, on, model) -> None:
  """Raises InputError if the batch, the samples or the deepest level of the network do not divide over a mesh."""
  sharding.check_divisible(on, config.train.batch_size, input_size(config), models.reduction(config.model.name, model))


def loss(config: ml_collections.ConfigDict, model, class_names: tuple[str, ...]):
  """The loss, for one output or for several (a network with deep supervision gives the weights of its outputs).

  Raises:
    InputError: an unknown loss, an option that it does not take, or a rare organ that is not among the classes.
  """
  options = dict(config.loss.get(config.loss.name, {}))
  if 'rare' in options:
    options['rare'] = tuple(map(normal_name, options['rare']))
  unknown = [name for name in options.get('rare', ()) if name not in class_names]
  if unknown:
    raise InputError('loss.rare', f'{unknown} are not among the organs', f'Name some of {class_names[1:]}.')
  if 'rare' in options:  # names of organs -> class ids; () means every organ
    options['rare'] = tuple(class_names.index(name) for name in options['rare']) or None
  single = losses.make_loss(config.loss.name, **options)
  return losses.deep_supervised(single, getattr(model, 'head_weights', None), main=getattr(model, 'main_output', 0))


def augmentation(config: ml_collections.ConfigDict):
  """The augmentation, (key, batch) -> batch."""
  return augment.make_augment(config.augment.name, **config.augment.get(config.augment.name, {}))


def preprocessing(config: ml_collections.ConfigDict, on):
  """The preprocessing of raw batches on a mesh, window and augmentation: (key, batch) -> batch."""
  transform = preprocess.make_preprocess(augmentation(config))
  return transform if config.augment.name == 'none' else sharding.gather_samples(on, transform)


def schedule(config: ml_collections.ConfigDict, steps_per_epoch: int):
  """The learning-rate schedule, step -> learning rate."""
  return optimizer.polynomial_schedule(
    config.optimizer.learning_rate,
    epochs=config.train.epochs,
    steps_per_epoch=steps_per_epoch,
    unit=config.optimizer.schedule_unit,
    power=config.optimizer.power,
  )


def sgd(config: ml_collections.ConfigDict, rate, num_classes: int):
  """The optimizer, SGD with momentum.

  Args:
    config: of the run.
    rate: step -> learning rate.
    num_classes: of the network, background included.
  """
  head, body = (config.optimizer[f'{part}_learning_rate_factor'] for part in ('head', 'body'))
  factors = None
  if (head, body) != (1, 1):
    described = from_run.Network(config.model.name, network(config, num_classes)[1], input_size(config))
    in_head = from_run.head_leaves(described, num_classes)
    factors = {'net': jax.tree.map(lambda inside: head if inside else body, in_head), 'log_sigma_sq': 1.0}
  return optimizer.sgd(
    rate,
    momentum=config.optimizer.momentum,
    weight_decay=config.optimizer.weight_decay,
    clip_norm=config.optimizer.clip_norm,
    factors=factors,
  )


def store_options(data: ml_collections.ConfigDict) -> StoreOptions:
  """The options of the store of `config.data`; axes without a size or spacing keep those of the scan."""
  return StoreOptions(
    data.dataset,
    size=tuple(data.size),
    spacing_mm=(None,) * (3 - len(data.spacing_mm)) + tuple(data.spacing_mm),
    fit=data.fit,
    order=data.interpolation,
    organs=tuple(organ.strip() for organ in data.organs.split(',')) if data.organs else (),
    overlap=data.overlap,
  )


def selection_options(data: ml_collections.ConfigDict) -> SelectionOptions:
  """The options of `config.data` that select cases of a store."""
  return SelectionOptions(
    window=_window(data.window),
    fractions=tuple(data.fractions) or None,
    seed=data.split_seed,
    cases=data.num_cases or None,
    keep_defective=data.keep_defective,
    fold=data.fold,
  )


def selection(config: ml_collections.ConfigDict, index: dict, checkpoint_meta: dict | None = None) -> Selection:
  """The cases that a run uses: those recorded in its checkpoint, or those that its config selects from the store.

  Raises:
    InputError: the checkpoint was trained on another fold than that of the config, or as `select`.
  """
  recorded = checkpoint_meta and recorded_selection(index, checkpoint_meta['data'])
  if recorded and recorded.fold != config.data.fold:
    raise InputError(
      'data.fold',
      f'is {config.data.fold!r}, but the checkpoints of this run were trained with {recorded.fold!r}',
      'Choose another --workdir for this fold.',
    )
  return recorded or select(index, selection_options(config.data))


def _window(text: str) -> str | tuple | None:
  if ';' in text:
    return tuple(_window(part.strip()) for part in text.split(';'))
  try:
    return tuple(float(v) for v in text.strip('()[]').split(',')) if ',' in text else text or None
  except ValueError as error:
    raise InputError(
      'data.window', f'{text!r} is not a valid window', 'Use paper, transunet, percentile or LOW,HIGH.'
    ) from error
