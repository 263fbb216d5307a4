"""Imports PyTorch weights or a model file as a run: a workdir with a checkpoint that the other modes accept."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import ml_collections
from flax import traverse_util

from afw_jax import losses, models
from afw_jax import workdir as run_folder
from afw_jax.config import build
from afw_jax.data.sets.spec import DatasetSpec
from afw_jax.data.sets.window import resolve_windows
from afw_jax.errors import InputError
from afw_jax.inference.network import image_shape
from afw_jax.model_file import archive, networks
from afw_jax.models.layers import positions
from afw_jax.system import atomic_files
from afw_jax.system.file_names import temporary_name
from afw_jax.training import checkpoint, checkpoint_writer, step
from afw_jax.weights import convert, files

_CHANNELS = {1: 'one-channel', 2: 'two-channel', 3: 'three-channel'}


def import_run(config: ml_collections.ConfigDict, workdir: str, path: str) -> None:
  """Converts a file of PyTorch weights into the checkpoint of a new run.

  Args:
    config: names the network, and the data set whose organs, grid and HU window the weights were trained with.
    workdir: a new or empty folder.
    path: the weights, see `weights.files.read`.

  Raises:
    InputError: a file that cannot be read, weights of another network, or a workdir that holds a trained run.
  """
  if config.model.init_from or config.model.pretrained:
    what = 'is given, but all weights of an imported run come from its file'
    raise InputError('model.init_from or model.pretrained', what, 'Leave it out.')
  workdir = os.path.expanduser(workdir)
  folder = os.path.join(workdir, 'checkpoints', 'last')
  _check_untrained(workdir, folder)
  spec = build.store_options(config.data).spec(config.data.root)
  num_classes, size = len(spec.organs) + 1, build.input_size(config)
  model, options = build.network(config, num_classes)
  image = (1, *size, len(spec.channels) or 1)
  variables = _fit(path, config.model.name, model, _read(path, config.model.name, num_classes, options), image)
  state = _initial_state(config, variables, num_classes)
  meta = {
    'config': json.loads(config.to_json_best_effort()),
    'total_steps': 0,
    'best_dsc': None,
    'source': os.path.abspath(path),
    'model': {'name': config.model.name, 'num_classes': num_classes, 'options': options, 'input_size': size},
    'data': _describe_data(config, spec),
  }

  with run_folder.claimed(workdir, config, alone=True):
    _check_untrained(workdir, folder)  # again: another run may have used the workdir meanwhile
    with checkpoint_writer.opened(folder, keep=2) as manager:
      checkpoint_writer.save(manager, state, meta)


def import_model(path: str, workdir: str) -> list[str]:
  """Unpacks the networks of a model file as new runs, which predict, evaluate or train on with a new optimizer.

  Args:
    path: of the model file.
    workdir: a new or empty folder; of several networks the runs are WORKDIR/1, WORKDIR/2, ...

  Returns:
    The workdirs of the runs.

  Raises:
    InputError: the file is damaged, the workdir is in use, or the disk cannot be written. Nothing is left behind then.
  """
  path, workdir = os.path.expanduser(path), os.path.abspath(os.path.expanduser(workdir))
  archive.read_meta(path)
  found = [_from_file(name, os.path.basename(path)) for name in networks.names(path)]
  if os.path.lexists(workdir) and not (os.path.isdir(workdir) and not os.listdir(workdir)):
    raise InputError(workdir, 'is there already, and not an empty folder', 'Choose another --workdir.')
  names = [''] if len(found) == 1 else [str(i) for i in range(1, len(found) + 1)]
  staging = temporary_name(workdir, atomic_files.process_name())
  try:
    for name, (config, state, meta) in zip(names, found, strict=True):
      folder = os.path.join(staging, name)
      last = os.path.join(folder, 'checkpoints', 'last')
      with run_folder.claimed(folder, config, alone=True), checkpoint_writer.opened(last, keep=2) as manager:
        checkpoint_writer.save(manager, state, meta)
    with atomic_files.write_errors(workdir):
      os.replace(staging, workdir)
  finally:
    shutil.rmtree(staging, ignore_errors=True)
  return [os.path.join(workdir, name).rstrip(os.sep) for name in names]


def _from_file(name: str, source: str) -> tuple[ml_collections.ConfigDict, step.TrainState, dict]:
  """(config, state, meta) of a run with the weights of one network of a model file."""
  _, network = networks.read(name)
  meta = network['meta']
  config, made = run_folder.completed(meta['config']), meta['model']
  model = models.build(made['name'], num_classes=made['num_classes'], **made['options'])
  variables = networks.read_weights(name, models.abstract_variables(model, image_shape(meta)))
  state = _initial_state(config, variables, made['num_classes'])
  source = f'{source}: {network["name"]}, step {meta["step"]}'
  return config, state, {**meta, 'total_steps': 0, 'best_dsc': None, 'source': source}


def _initial_state(config: ml_collections.ConfigDict, variables: dict, num_classes: int) -> step.TrainState:
  """The state before the first step, with these variables."""
  params = {'net': variables['params'], 'log_sigma_sq': losses.init_log_sigma_sq(num_classes)}
  tx = build.sgd(config, build.schedule(config, 1), num_classes)
  return step.TrainState(jnp.zeros((), jnp.int32), params, variables.get('batch_stats', {}), jax.jit(tx.init)(params))


def _check_untrained(workdir: str, folder: str) -> None:
  if checkpoint.read_meta(folder) is not None:
    raise InputError(workdir, 'already holds a trained run', 'Choose another --workdir.')


def _describe_data(config: ml_collections.ConfigDict, spec: DatasetSpec) -> dict:
  """The entry 'data' of a checkpoint, as training writes it; without the cases, which are not known."""
  window = build.selection_options(config.data).window
  window = resolve_windows(window, spec.window_hu, in_hu=spec.in_hu, dataset=spec.name, channels=spec.channels)
  options = json.loads(json.dumps({**build.store_options(config.data).to_json(spec), 'window': window}))
  return {
    'name': spec.name,
    'modality': spec.modality,
    'organs': list(spec.organs),
    'output_ids': dict(spec.output_ids),
    'window': options['window'],
    'options': options,
    'splits': None,
  }


def _read(path: str, name: str, num_classes: int, options: dict) -> dict:
  """The variables in a file of weights."""
  arrays = files.read(path)
  try:
    return convert.from_torch(name, arrays, num_classes=num_classes, **options)
  except InputError as error:
    raise InputError(path, f'{error.where}: {error.problem}', error.cure) from error


def _fit(path: str, name: str, model, variables: dict, image: tuple[int, ...]) -> dict:
  """Resizes position embeddings for images of this shape; raises InputError for any other leaf of another shape."""
  needed, size = models.abstract_variables(model, image), image[1:-1]
  flat, differing = traverse_util.flatten_dict(variables), []
  for key, leaf in traverse_util.flatten_dict(needed).items():
    if flat[key].shape == leaf.shape:
      continue
    if key[-1] == 'position_embeddings':
      grid = tuple(n // models.module_of(name).PATCH for n in size)
      source = positions.source_grid(flat[key].shape[1], grid, model.position_grid)
      flat[key] = positions.resize_table(flat[key], source, grid)
    else:
      differing.append(f'{"/".join(key[1:])} is {flat[key].shape}, not {leaf.shape}')
  if differing:
    raise InputError(
      path,
      f'its weights are not for {_CHANNELS.get(image[-1], f"{image[-1]}-channel")} images of '
      f'{" x ".join(map(str, size))}: {"; ".join(differing[:3])}'
      + (f' and {len(differing) - 3} more' if len(differing) > 3 else ''),
      'Give the data.size or train.patch_size they were trained on (UNETR++); for weights of three channels and scans '
      'of one, model.unet.recipe=released or model.unetpp.repeat_to_rgb=True; else a data set with their channels.',
    )
  return traverse_util.unflatten_dict(flat)
