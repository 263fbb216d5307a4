"""A network trained elsewhere becomes a run of ours: PyTorch weights -> WORKDIR/checkpoints."""

import json
import os

import jax
import jax.numpy as jnp
import ml_collections
from flax import traverse_util

from afw_jax import losses, models
from afw_jax import workdir as run_folder
from afw_jax.config import build
from afw_jax.data.preparation import prepare
from afw_jax.data.sets import datasets
from afw_jax.errors import InputError
from afw_jax.models.layers import positions
from afw_jax.training import checkpoint, checkpoint_writer, step
from afw_jax.weights import convert, files


def import_run(config: ml_collections.ConfigDict, workdir: str, path: str) -> None:
  """Converts a file of PyTorch weights into a checkpoint that evaluate, predict and train take.

  Args:
    config: names the network, and the data set whose organs, grid and window the weights were trained with.
    workdir: a new or empty folder.
    path: the weights, see `weights_file.read`.

  Raises:
    InputError: a file that cannot be read, weights of another network, or a workdir that holds a trained run.
  """
  workdir = os.path.expanduser(workdir)
  folder = os.path.join(workdir, 'checkpoints', 'last')
  _check_empty(workdir, folder)
  arrays = files.read(path)
  spec = datasets.spec(config.data.dataset, config.data.root)
  num_classes = len(spec.organs) + 1
  model, options = build.network(config, num_classes)
  try:
    variables = convert.from_torch(config.model.name, arrays, num_classes=num_classes, **options)
  except InputError as error:
    raise InputError(path, f'{error.where}: {error.problem}', error.cure) from error
  size = build.input_size(config)
  variables = _fit(path, config.model.name, model, variables, size)
  request = prepare.make_request(config.data.dataset, **build.data_choices(config.data))
  data_options = json.loads(json.dumps(prepare.case_options(spec, request)))
  params = {'net': variables['params'], 'log_sigma_sq': losses.init_log_sigma_sq(num_classes)}
  tx = build.sgd(config, build.schedule(config, 1))
  state = step.TrainState(jnp.zeros((), jnp.int32), params, variables.get('batch_stats', {}), jax.jit(tx.init)(params))

  meta = {
    'config': json.loads(config.to_json_best_effort()),
    'total_steps': 0,
    'best_dsc': None,
    'source': os.path.abspath(path),
    'model': {'name': config.model.name, 'num_classes': num_classes, 'options': options, 'input_size': size},
    'data': {
      'name': spec.name,
      'modality': spec.modality,
      'organs': list(spec.organs),
      'output_ids': dict(spec.output_ids),
      'window': data_options['window'],
      'options': data_options,
      'splits': None,
    },
  }
  with run_folder.claimed(workdir, config, alone=True):
    _check_empty(workdir, folder)  # again: another run may have used the workdir meanwhile
    with checkpoint_writer.opened(folder, keep=2) as manager:
      checkpoint_writer.save(manager, state, meta)


def _check_empty(workdir: str, folder: str) -> None:
  if checkpoint.read_meta(folder) is not None:
    raise InputError(workdir, 'holds a trained run already', 'Choose another --workdir.')


def _fit(path: str, name: str, model, variables: dict, size: tuple[int, ...]) -> dict:
  """The variables for images (*size, 1): tables of positions resized, anything else that differs refused."""
  needed = traverse_util.flatten_dict(models.abstract_variables(model, (1, *size, 1)))
  flat, differing = traverse_util.flatten_dict(variables), []
  for key, leaf in needed.items():
    if flat[key].shape == leaf.shape:
      continue
    if key[-1] == 'position_embeddings':
      grid = tuple(n // models.module_of(name).PATCH for n in size)
      source = positions.source_grid(flat[key].shape[1], grid, model.position_grid)
      flat[key] = positions.resize_table(flat[key], source, grid)
    else:
      differing.append(f'{"/".join(key[1:])} is {flat[key].shape}, needed is {leaf.shape}')
  if differing:
    raise InputError(
      path,
      f'its weights are not for one-channel images of {" x ".join(map(str, size))}: {"; ".join(differing[:3])}'
      + (f' and {len(differing) - 3} more' if len(differing) > 3 else ''),
      'Give the data.size or train.patch_size they were trained on (UNETR++), or model.unet.recipe=released '
      'or model.unetpp.repeat_to_rgb=True (weights for three channels).',
    )
  return traverse_util.unflatten_dict(flat)
