"""A network trained elsewhere becomes a run of ours: PyTorch weights -> WORKDIR/checkpoints."""

import json
import os

import jax
import jax.numpy as jnp
import ml_collections

from afw_jax import assembly, checkpoint, convert, step, weights_file
from afw_jax import workdir as run_folder
from afw_jax.data import datasets, prepare
from afw_jax.errors import InputError


def adopt(config: ml_collections.ConfigDict, workdir: str, path: str) -> None:
  """Converts a file of PyTorch weights into a checkpoint that evaluate, predict and train take.

  Args:
    config: names the network, and the data set whose organs, grid and window the weights were trained with.
    workdir: a new or empty folder.
    path: the weights, see `weights_file.read`.

  Raises:
    InputError: a file that cannot be read, weights of another network, or a workdir that holds a trained run.
  """
  folder = os.path.join(workdir, 'checkpoints', 'last')
  if checkpoint.read_meta(folder) is not None:
    raise InputError(workdir, 'holds a trained run already', 'Choose another --workdir.')
  arrays = weights_file.read(path)
  spec = datasets.spec(config.data.dataset, config.data.root)
  num_classes = len(spec.organs) + 1
  model, options = assembly.network(config, num_classes)
  try:
    variables = convert.from_torch(config.model.name, arrays, num_classes=num_classes, **options)
  except InputError as error:
    raise InputError(path, f'{error.where}: {error.problem}', error.cure) from error
  request = prepare.make_request(config.data.dataset, **assembly.data_choices(config.data))
  data_options = json.loads(json.dumps(prepare.case_options(spec, request)))
  params = {'net': variables['params'], 'log_sigma_sq': jnp.zeros((num_classes,), jnp.float32)}
  tx = assembly.sgd(config, assembly.schedule(config, 1))
  state = step.TrainState(jnp.zeros((), jnp.int32), params, variables.get('batch_stats', {}), jax.jit(tx.init)(params))

  run_folder.claim(workdir, config)
  manager = checkpoint.open_manager(folder, keep=2)
  checkpoint.save(manager, state, {
      'config': json.loads(config.to_json_best_effort()), 'total_steps': 0, 'best_dsc': None, 'source': os.path.abspath(path),
      'model': {'name': config.model.name, 'num_classes': num_classes, 'options': options,
                'input_size': assembly.input_size(config)},
      'data': {'name': spec.name, 'modality': spec.modality, 'organs': list(spec.organs), 'output_ids': dict(spec.output_ids),
               'window': data_options['window'], 'options': data_options, 'splits': None}})
  checkpoint.finish(manager)
  manager.close()
