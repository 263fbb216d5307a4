"""Checkpoints: what they hold, how they are verified, and how they are restored; `checkpoint_writer` saves them.

A checkpoint holds two trees, `model` (net, log_sigma_sq, batch_stats) and `train` (opt_state, step), and a JSON `meta`
with the config, the description of the data and the fingerprint of every array. Orbax keeps no checksum of the arrays
(a flipped bit is restored without an error), so every array is fingerprinted on the device when it is saved, and
compared when it is restored, with whatever sharding. Only this module and `checkpoint_writer` use Orbax.
"""

import errno
import hashlib
import itertools
import json
import logging
import os
import pathlib
import re
from typing import Any

import jax
import orbax.checkpoint as ocp

from afw_jax.distributed import runtime
from afw_jax.errors import InputError
from afw_jax.training.fingerprint import fingerprint
from afw_jax.training.step import TrainState

_log = logging.getLogger('afw_jax')

PyTree = Any
# A file that is missing, or not a file, means corruption; any other error of the system (file handles, permissions, the
# network) says nothing about the checkpoint.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


def split(state: TrainState) -> dict[str, PyTree]:
  """The trees that a checkpoint of a state holds."""
  model = {**state.params, 'batch_stats': state.batch_stats}
  return {'model': model, 'train': {'opt_state': state.opt_state, 'step': state.step}}


def _join(model: PyTree, train: PyTree) -> TrainState:
  params = {k: model[k] for k in ('net', 'log_sigma_sq')}
  return TrainState(train['step'], params, model['batch_stats'], train['opt_state'])


def digest(meta: dict) -> str:
  """Checksum of a meta, which is saved in it as 'sha256'."""
  return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _steps(folder: str) -> list[int]:
  """Finished checkpoints, newest first (an unfinished one has a temporary name)."""
  if not os.path.isdir(folder):
    return []
  return sorted((int(name) for name in os.listdir(folder) if name.isdigit()), reverse=True)


def _read(path: pathlib.Path, item: str, args) -> Any:
  handler = {
    ocp.args.JsonRestore: ocp.JsonCheckpointHandler,
    ocp.args.StandardRestore: ocp.StandardCheckpointHandler,
    ocp.args.PyTreeRestore: ocp.PyTreeCheckpointHandler,
  }[type(args)]()
  me = jax.process_index()  # every process reads for itself: where one fails, the others do not wait for it
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me, active_processes={me}, barrier_sync_key_prefix=f'alone{me}'
  )
  with ocp.Checkpointer(
    handler, multiprocessing_options=alone if jax.process_count() > 1 else ocp.options.MultiprocessingOptions()
  ) as checkpointer:
    return checkpointer.restore(path / item, args=args)


def _read_meta(path: pathlib.Path) -> dict:
  meta = _read(path, 'meta', ocp.args.JsonRestore())
  if meta.pop('sha256', None) not in (None, digest(meta)):  # None: an older checkpoint
    raise ValueError('its meta is damaged (its checksum is wrong)')
  return meta


def _load(folder: str, step: int, wanted: dict[str, PyTree], *, parts: bool = False) -> tuple[dict[str, PyTree], dict]:
  """(trees, meta) of a checkpoint; with `parts` each tree is a part of the saved one, and only that is read."""
  path = pathlib.Path(os.path.abspath(folder)) / str(step)
  meta = _read_meta(path)
  _check_same_arrays(path, meta, wanted, parts)
  if parts:
    restore = lambda tree: ocp.args.PyTreeRestore(
      item=tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True
    )
  else:
    restore = ocp.args.StandardRestore
  trees = {k: _read(path, k, restore(v)) for k, v in wanted.items()}
  found = fingerprint(trees)
  wrong = [k for k, v in found.items() if meta['fingerprint'].get(k) != v]
  if wrong:
    raise ValueError(f'{len(wrong)} arrays differ from their fingerprint, first {wrong[0]}')
  return trees, meta


def _check_same_arrays(path: pathlib.Path, meta: dict, wanted: dict[str, PyTree], parts: bool) -> None:
  """Raises InputError where an intact checkpoint holds other arrays than are wanted: of another network or version."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(wanted)
  names = {jax.tree_util.keystr(key) for key, _ in leaves}
  inside = [f'[{k!r}]{f"[{part!r}]" if parts else ""}' for k, tree in wanted.items() for part in tree]
  saved = {name for name in meta['fingerprint'] if name.startswith(tuple(inside))}
  if other := sorted(names ^ saved):
    raise InputError(
      path,
      f'is of another network or version: {len(other)} arrays are only in it or only wanted, first {other[0]}',
      'Use the version and the config that it was made with, or another --workdir.',
    )


def read_meta(folder: str) -> dict | None:
  """The meta of the newest checkpoint whose meta can be read; None where there is no checkpoint at all.

  Raises:
    InputError: there are checkpoints, and the meta of none can be read.
  """
  problem = None
  for step in _steps(folder):
    try:
      return _read_meta(pathlib.Path(os.path.abspath(folder)) / str(step))
    except Exception as error:  # Orbax raises bare Exception for a torn checkpoint
      _log.warning(
        '%s/%d: its meta cannot be read (%s), the checkpoint before it is tried', folder, step, str(error)[:200]
      )
      problem = error
  if problem is not None:
    raise InputError(folder, f'no checkpoint in it can be read ({problem})', 'Copy the run again or train anew.')
  return None


def restore_state(folder: str, abstract: TrainState) -> tuple[TrainState, dict] | None:
  """The newest intact checkpoint, for training to go on from.

  A torn or altered checkpoint is renamed `<step>.corrupt` and the one before it is taken, with a warning.

  Args:
    folder: of the checkpoints.
    abstract: shapes, dtypes and shardings of the state, as the config now describes it.

  Returns:
    (state, meta), or None where there is no checkpoint.

  Raises:
    InputError: checkpoints exist but none is intact, one is of another network, or one cannot be read for a reason that
      lies in this machine (memory, file handles, permissions).
  """
  steps = runtime.gather(_steps(folder))[0]
  for step in steps:
    found, problem = None, None
    try:
      found = _load(folder, step, split(abstract))
    except InputError:
      raise  # intact, but of something else: nothing is set aside
    except Exception as error:  # Orbax raises bare Exception, ValueError, KeyError ... for a torn checkpoint
      if not _is_damage(error):
        raise _unreadable(folder, step, error) from error
      problem = str(error)
    problems = [p for p in runtime.gather(problem) if p is not None]
    if not problems:
      trees, meta = found
      return _join(**trees), meta
    broken = os.path.join(folder, str(step))
    _log.warning('%s cannot be used (%s): renamed to .corrupt, the one before it is tried', broken, problems[0][:300])
    runtime.on_process_zero(lambda: _set_aside(broken))  # noqa: B023 (called at once)
  if steps:
    raise InputError(
      folder, f'none of its {len(steps)} checkpoints is whole', 'Restore a copy, or start in a new --workdir.'
    )
  return None


def restore_variables(folder: str, abstract: PyTree) -> tuple[PyTree, dict]:
  """The network's variables in the newest checkpoint, for evaluation and prediction.

  Nothing of the loss and the optimizer is read.

  Args:
    folder: of the checkpoints.
    abstract: {'params':, 'batch_stats':} of the network: shapes, dtypes and shardings.

  Returns:
    ({'params':, 'batch_stats':}, meta).

  Raises:
    InputError: no checkpoint, or it is torn, altered or of another network.
  """
  steps = _steps(folder)
  if not steps:
    raise InputError(
      folder, 'there is no checkpoint', 'Train first: --mode=train, or give the --workdir of a finished run.'
    )
  wanted = {'net': abstract['params'], 'batch_stats': abstract.get('batch_stats', {})}
  try:
    trees, meta = _load(folder, steps[0], {'model': wanted}, parts=True)
  except InputError:
    raise
  except Exception as error:  # as above; an older checkpoint is not the one that was asked for
    if not _is_damage(error):
      raise _unreadable(folder, steps[0], error) from error
    raise InputError(
      os.path.join(folder, str(steps[0])),
      f'this checkpoint is torn, altered or of another network ({str(error)[:200]})',
      'Restore a copy of it, or train again.',
    ) from error
  return {'params': trees['model']['net'], 'batch_stats': trees['model']['batch_stats']}, meta


def _is_damage(error: Exception) -> bool:
  """Whether a read error means corruption, rather than too little memory or file handles, or missing permissions."""
  if isinstance(error, (MemoryError, jax.errors.JaxRuntimeError)):
    return False
  by_tensorstore = re.search(r"os_error_code='(\d+)'", str(error))
  code = error.errno if isinstance(error, OSError) else by_tensorstore and int(by_tensorstore[1])
  return code is None or code in _DAMAGE


def _unreadable(folder: str, step: int, error: Exception) -> InputError:
  return InputError(
    os.path.join(folder, str(step)),
    f'this checkpoint could not be read here ({str(error)[:300]})',
    'It may be whole. Free memory or file handles, or mend the permissions, then start the same command again.',
  )


def _set_aside(path: str) -> None:
  names = itertools.chain([f'{path}.corrupt'], (f'{path}.corrupt-{i}' for i in itertools.count(2)))
  os.rename(path, next(name for name in names if not os.path.exists(name)))
