"""The state that a run starts from: random, with a published encoder, or with the parameters of another run."""

import logging
from collections.abc import Mapping, Sequence

import jax
import ml_collections

from afw_jax.config.program import Program
from afw_jax.data import run_record
from afw_jax.data.sets import channels
from afw_jax.data.sets.case_files import abbreviate
from afw_jax.distributed import runtime, sharding
from afw_jax.errors import InputError
from afw_jax.training import checkpoint, step
from afw_jax.weights import from_run, pretrained

_log = logging.getLogger('afw_jax')


def initial_state(
  config: ml_collections.ConfigDict, program: Program, organs: Sequence[str], key: jax.Array
) -> step.TrainState:
  """The state before the first step.

  Args:
    config: of the run; model.pretrained and model.init_from say what is not random.
    program: of the run.
    organs: without the background.
    key: of the random parameters.

  Raises:
    InputError: the file or the run to start from cannot be read, or is of another network.
  """
  state = program.initial_state(key)
  if config.model.init_from:
    network = from_run.Network(config.model.name, program.model_options, program.input_size, program.channels)
    params, batch_stats, meta = from_run.load(
      config.model.init_from, network, organs, jax.device_get(state.params), jax.device_get(state.batch_stats)
    )
    runtime.check_same('model.init_from', meta.get('checkpoint_sha256') or checkpoint.digest(meta))
  elif config.model.pretrained:
    variables = pretrained.load(
      config.model.name,
      config.model.pretrained,
      step.variables_of(state),
      image_shape=program.input_size,
      **program.model_options,
    )
    params = {**state.params, 'net': variables['params']}
    batch_stats = variables.get('batch_stats', {})
  else:
    return state
  params, batch_stats = jax.device_put((params, batch_stats), sharding.replicated(program.mesh))
  return state._replace(params=params, batch_stats=batch_stats)


def seen_before(config: ml_collections.ConfigDict, recorded: Mapping | None, data: Mapping) -> dict:
  """The entry 'seen_before' of the description of the data: scans that the run to start from was trained with.

  A run that has begun keeps what its checkpoint says, so that the other run need not be there any more. Of a fresh one
  a warning names the cases that it would validate on or score though the other was trained with them.

  Args:
    config: of the run.
    recorded: meta of its last checkpoint; None for a fresh run.
    data: `run_record.data_record` of the run.

  Returns:
    {'seen_before': as from `run_record.seen_scans`}, or {} where the run starts from no other.

  Raises:
    InputError: the other run has the same channels in another order.
  """
  if recorded is not None:
    return {key: recorded['data'][key] for key in ('seen_before',) if key in recorded['data']}
  if not config.model.init_from:
    return {}
  other = from_run.trained.meta_of(config.model.init_from)['data']
  _compare_channels(config.model.init_from, other['options'], data['options'])
  if other['splits'] is None:
    _log.warning(
      '%s does not say which scans it was trained with: if scans to validate or to test here were among them, their '
      'scores say nothing about new scans, and nothing can warn of it',
      config.model.init_from,
    )
  seen = run_record.seen_scans(other)
  for part in ('val', 'test'):
    if known := run_record.seen_cases(data, seen, part):
      _log.warning(
        '%s was trained with %d of the %s cases of this run (%s): their scores say nothing about new scans, and '
        '--mode=evaluate refuses them; train that run with the same split, or with other scans',
        *(config.model.init_from, len(known), part, abbreviate(known)),
      )
  return {'seen_before': seen}


def _compare_channels(path: str, theirs: Mapping, ours: Mapping) -> None:
  """Refuses the channels of another run in another order, and warns of others: the first layer takes them by place."""
  there, here = ([(channel.name, channel.in_hu) for channel in channels.of(options)] for options in (theirs, ours))
  if there == here:
    return
  text = lambda of: ', '.join(name or 'one channel' for name, _ in of)
  if sorted(there) == sorted(here):
    what = f'has the channels {text(there)}, and this run has them as {text(here)}'
    raise InputError(
      f'model.init_from={path}', what, 'Number them in dataset.json, and in the names of the files, alike.'
    )
  _log.warning('%s was trained on other channels: %s there, %s here', path, text(there), text(here))
