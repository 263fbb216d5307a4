"""Checkpoints: saved by Orbax, verified by a fingerprint of ours, restored onto any sharding.

A checkpoint holds two trees, `model` (net, log_sigma_sq, batch_stats) and `train` (opt_state, step), and a JSON `meta`
with the config, the data's description and the fingerprint of every array. Orbax keeps no checksum of the arrays (a
flipped bit is restored silently), so each leaf is fingerprinted on the device when saved and compared when restored.
"""

import errno
import hashlib
import itertools
import json
import logging
import os
import pathlib
import re
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax import lax

from afw_jax.distributed import runtime
from afw_jax.errors import InputError
from afw_jax.training.step import TrainState

_log = logging.getLogger('afw_jax')

PyTree = Any
_WRITE_ERRORS = (OSError, ValueError, RuntimeError)  # a full disk reaches us as any of these
# A file that is missing or is none is damage; any other failure of the system (file handles, permissions, the network) says
# nothing about the checkpoint.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_UINT = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def _leaf_fingerprint(a: jax.Array) -> jax.Array:
  """A uint32 of all bits, the same whatever the sharding: a sum modulo 2^32 with odd weights that depend on the index."""
  a = a.astype(jnp.uint8) if a.dtype == jnp.bool_ else a
  bits = lax.bitcast_convert_type(a, _UINT[a.dtype.itemsize]).astype(jnp.uint32)
  weight = jnp.ones_like(bits)
  for axis in range(bits.ndim):
    odd_step = (2654435761 * 2 + 2 * axis) & 0xFFFFFFFE
    weight *= lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(odd_step) + jnp.uint32(1)
  return jnp.sum(bits * weight, dtype=jnp.uint32)


_fingerprints = jax.jit(lambda tree: jax.tree.map(_leaf_fingerprint, tree))


def fingerprint(tree: PyTree) -> dict[str, int]:
  """Path of each leaf -> its fingerprint; each process takes it of its own copy."""
  tree = jax.tree.map(lambda a: a if a.is_fully_addressable else a.addressable_data(0), tree)
  leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(_fingerprints(tree)))
  return {jax.tree_util.keystr(path): int(value) for path, value in leaves}


def _split(state: TrainState) -> dict[str, PyTree]:
  model = {**state.params, 'batch_stats': state.batch_stats}
  return {'model': model, 'train': {'opt_state': state.opt_state, 'step': state.step}}


def _join(model: PyTree, train: PyTree) -> TrainState:
  params = {k: model[k] for k in ('net', 'log_sigma_sq')}
  return TrainState(train['step'], params, model['batch_stats'], train['opt_state'])


def open_manager(folder: str, *, keep: int) -> ocp.CheckpointManager:
  """A manager of FOLDER that keeps the newest checkpoints and clears away what an interrupted save left."""
  try:
    return ocp.CheckpointManager(
      os.path.abspath(folder),
      item_names=('model', 'train', 'meta'),
      options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
    )
  except OSError as error:
    raise InputError(
      folder, f'checkpoints cannot be kept here ({error})', 'Free space or choose another --workdir.'
    ) from error


def save(manager: ocp.CheckpointManager, state: TrainState, meta: dict) -> None:
  """Starts saving (in the background) under the state's own step; call `finish` before leaving."""
  if any(saved >= int(state.step) for saved in manager.all_steps()):
    return  # a run killed between two saves comes by again with the same bits
  trees = _split(state)
  _check_space(manager.directory, sum(a.nbytes for a in jax.tree.leaves(trees)))
  meta = json.loads(json.dumps({**meta, 'step': int(state.step), 'fingerprint': fingerprint(trees)}))
  meta['sha256'] = _digest(meta)
  try:
    manager.check_for_errors()
    manager.save(
      int(state.step),
      force=True,
      args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **{k: ocp.args.StandardSave(v) for k, v in trees.items()}),
    )
  except _WRITE_ERRORS as error:
    raise _unwritable(manager, error) from error


def _check_space(folder: os.PathLike, needed: int) -> None:
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise InputError(
      folder,
      f'{free >> 20} MiB are free on this disk, a checkpoint needs {needed >> 20} MiB',
      'Free space, then start the same command again: the checkpoints before it are kept.',
    )


def finish(manager: ocp.CheckpointManager) -> None:
  """Waits for the save under way and raises what went wrong in it."""
  try:
    manager.wait_until_finished()
    manager.check_for_errors()
  except _WRITE_ERRORS as error:
    raise _unwritable(manager, error) from error


def _unwritable(manager, error) -> InputError:
  return InputError(
    manager.directory,
    f'the checkpoint could not be written (... {str(error)[-120:]})',
    'Free space on the disk or fix the permissions, then start the same command again.',
  )


def _steps(folder: str) -> list[int]:
  """Finished checkpoints, newest first (an unfinished one carries a temporary name)."""
  if not os.path.isdir(folder):
    return []
  return sorted((int(name) for name in os.listdir(folder) if name.isdigit()), reverse=True)


def _read(path: pathlib.Path, item: str, args) -> Any:
  handler = ocp.JsonCheckpointHandler() if item == 'meta' else ocp.StandardCheckpointHandler()
  me = jax.process_index()  # each reads for itself: where one fails, none waits for it
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me, active_processes={me}, barrier_sync_key_prefix=f'alone{me}'
  )
  with ocp.Checkpointer(
    handler, multiprocessing_options=alone if jax.process_count() > 1 else ocp.options.MultiprocessingOptions()
  ) as checkpointer:
    return checkpointer.restore(path / item, args=args)


def _digest(meta: dict) -> str:
  return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _read_meta(path: pathlib.Path) -> dict:
  meta = _read(path, 'meta', ocp.args.JsonRestore())
  if meta.pop('sha256', None) not in (None, _digest(meta)):  # None: an older checkpoint
    raise ValueError('its meta is damaged (its checksum is wrong)')
  return meta


def _load(folder: str, step: int, wanted: dict[str, PyTree]) -> tuple[dict[str, PyTree], dict]:
  path = pathlib.Path(os.path.abspath(folder)) / str(step)
  meta = _read_meta(path)
  _check_same_arrays(path, meta, wanted)
  trees = {k: _read(path, k, ocp.args.StandardRestore(v)) for k, v in wanted.items()}
  found = fingerprint(trees)
  wrong = [k for k, v in found.items() if meta['fingerprint'].get(k) != v]
  if wrong:
    raise ValueError(f'{len(wrong)} arrays differ from their fingerprint, first {wrong[0]}')
  return trees, meta


def _check_same_arrays(path: pathlib.Path, meta: dict, wanted: dict[str, PyTree]) -> None:
  """Raises InputError where a whole checkpoint holds other arrays than are wanted: of another network or version."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(wanted)
  names = {jax.tree_util.keystr(key) for key, _ in leaves}
  saved = {name for name in meta['fingerprint'] if name.startswith(tuple(f'[{part!r}]' for part in wanted))}
  if other := sorted(names ^ saved):
    raise InputError(
      path,
      f'is of another network or version: {len(other)} arrays are only in it or only wanted, first {other[0]}',
      'Use the version and the config that it was made with, or another --workdir.',
    )


def read_meta(folder: str) -> dict | None:
  """The meta of the newest checkpoint whose meta can be read; None where there is no checkpoint at all."""
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
  """The newest whole checkpoint, for training to go on from.

  A torn or altered checkpoint is renamed `<step>.corrupt` and the one before it is taken, with a warning.

  Args:
    folder: of the checkpoints.
    abstract: shapes, dtypes and shardings of the state, as the config now describes it.

  Returns:
    (state, meta), or None where there is no checkpoint.

  Raises:
    InputError: checkpoints exist but none is whole, or one cannot be read for a reason that is not its own.
  """
  steps = runtime.gather(_steps(folder))[0]
  for step in steps:
    found, problem = None, None
    try:
      found = _load(folder, step, _split(abstract))
    except InputError:
      raise  # whole, but of something else: nothing is set aside
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


def _is_damage(error: Exception) -> bool:
  """Whether an error of reading comes from the files, and not from this machine's memory, file handles or permissions."""
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


def restore_variables(folder: str, abstract: PyTree) -> tuple[PyTree, dict]:
  """The network's variables of the newest checkpoint, for evaluation and prediction.

  Args:
    folder: of the checkpoints.
    abstract: {'net':, 'log_sigma_sq':, 'batch_stats':} of shapes.

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
  try:
    trees, meta = _load(folder, steps[0], {'model': abstract})
  except InputError:
    raise
  except Exception as error:  # as above; here nothing older is the model that was asked for
    if not _is_damage(error):
      raise _unreadable(folder, steps[0], error) from error
    raise InputError(
      os.path.join(folder, str(steps[0])),
      f'this checkpoint is torn, altered or of another network ({str(error)[:200]})',
      'Restore a copy of it, or train again.',
    ) from error
  return {'params': trees['model']['net'], 'batch_stats': trees['model']['batch_stats']}, meta
