"""Checkpoints: what they hold, how they are verified, and how they are restored; `checkpoint_writer` saves them.

A checkpoint holds two trees, `model` (net, log_sigma_sq, batch_stats) and `train` (opt_state, step), and a JSON `meta`
with the config, the description of the data and the fingerprint of every array. Orbax keeps no checksum of the arrays
(a flipped bit is restored without an error), so every array is fingerprinted on the device when it is saved, and
compared when it is restored, with whatever sharding. Only this module, `checkpoint_writer` and `checkpoint_disk`
use Orbax.
"""

import hashlib
import json
import logging
import os
import pathlib
import re
import time
from typing import Any

import jax
import orbax.checkpoint as ocp

from afw_jax.distributed import runtime
from afw_jax.errors import InputError
from afw_jax.training import checkpoint_damage, checkpoint_disk
from afw_jax.training.fingerprint import fingerprint
from afw_jax.training.step import TrainState

_log = logging.getLogger('afw_jax')

PyTree = Any

_MOMENT_S = 0.2


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


def steps_in(folder: str) -> list[int]:
  """Steps of the finished checkpoints in a folder, newest first (an unfinished one has a temporary name).

  Raises:
    InputError: the folder is there, but cannot be read.
  """
  try:
    names = os.listdir(folder)
  except (FileNotFoundError, NotADirectoryError):
    return []
  except OSError as error:
    raise InputError(folder, f'cannot be read ({error.strerror})', 'Check its permissions and its disk.') from error
  return sorted((int(name) for name in names if re.fullmatch('[0-9]+', name)), reverse=True)


def _path(folder: str, step: int) -> pathlib.Path:
  return checkpoint_disk.literal_path(folder) / str(step)


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


def _verify(path: pathlib.Path) -> None:
  """Reads a checkpoint as it was saved, whatever is wanted of it; raises what is wrong with it."""
  meta, device = _read_meta(path), jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  for item in ('model', 'train'):
    saved = ocp.PyTreeCheckpointHandler().metadata(path / item).tree
    restore_args = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=device), saved)
    found = fingerprint(_read(path, item, ocp.args.PyTreeRestore(restore_args=restore_args)))
    named = [value for name, value in meta['fingerprint'].items() if name.startswith(f'[{item!r}]')]
    if sorted(found.values()) != sorted(named):  # a tuple is a list here: the names differ
      raise checkpoint_damage.Damaged(f'its {item} differs from its fingerprint')


def _read_meta(path: pathlib.Path) -> dict:
  meta = _read(path, 'meta', ocp.args.JsonRestore())
  if meta.pop('sha256', None) not in (None, digest(meta)):  # None: an older checkpoint
    raise checkpoint_damage.Damaged('its meta is damaged (its checksum is wrong)')
  return meta


def _load(folder: str, step: int, wanted: dict[str, PyTree], *, parts: bool = False) -> tuple[dict[str, PyTree], dict]:
  """(trees, meta) of a checkpoint; with `parts` each tree is a part of the saved one, and only that is read."""
  path = _path(folder, step)
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
    raise checkpoint_damage.Damaged(f'{len(wrong)} arrays differ from their fingerprint, first {wrong[0]}')
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
  """The meta of the newest checkpoint whose meta is whole; None where there is no checkpoint at all.

  Raises:
    InputError: there are checkpoints, and the meta of all is damaged, or one cannot be read for a reason that lies in
      this machine.
  """
  steps, problem = steps_in(folder), None
  for step in steps:
    path = _path(folder, step)
    try:
      return _read_meta(path)
    except Exception as error:  # Orbax raises bare Exception for a torn checkpoint
      if _replaced(folder, steps):
        return read_meta(folder)
      if not checkpoint_damage.is_proven(path, error, _verify):
        raise checkpoint_damage.unreadable(path, error) from error
      _log.warning('%s: its meta is damaged (%s), the checkpoint before it is tried', path, str(error)[:200])
      problem = error
  if problem is not None:
    raise InputError(folder, f'no checkpoint in it can be read ({problem})', 'Copy the run again or train anew.')
  return None


def restore_state(folder: str, abstract: TrainState) -> tuple[TrainState, dict] | None:
  """The newest intact checkpoint, for training to go on from.

  A checkpoint that is proven to be torn or altered is renamed `<step>.corrupt` and the one before it is taken, with a
  warning.

  Args:
    folder: of the checkpoints.
    abstract: shapes, dtypes and shardings of the state, as the config now describes it.

  Returns:
    (state, meta), or None where there is no checkpoint.

  Raises:
    InputError: checkpoints exist but none is intact, one is of another network, or one cannot be read for a reason that
      lies in this machine (memory, file handles, permissions) or in the program.
  """
  steps = runtime.gather(steps_in(folder))[0]
  for step in steps:
    found, problem = None, None
    try:
      found = _load(folder, step, split(abstract))
    except InputError:
      raise  # intact, but of something else: nothing is set aside
    except Exception as error:  # Orbax raises bare Exception, ValueError, KeyError ... for a torn checkpoint
      path = _path(folder, step)
      if not checkpoint_damage.is_proven(path, error, _verify):
        raise checkpoint_damage.unreadable(path, error) from error
      problem = str(error)
    problems = [p for p in runtime.gather(problem) if p is not None]
    if not problems:
      trees, meta = found
      return _join(**trees), meta
    broken = os.path.join(folder, str(step))
    _log.warning('%s cannot be used (%s): renamed to .corrupt, the one before it is tried', broken, problems[0][:300])
    runtime.on_process_zero(lambda: checkpoint_damage.set_aside(broken))  # noqa: B023 (called at once)
  if steps:
    raise InputError(
      folder, f'none of its {len(steps)} checkpoints is whole', 'Restore a copy, or start in a new --workdir.'
    )
  return None


def restore_variables(folder: str, abstract: PyTree) -> tuple[PyTree, dict]:
  """The network's variables in the newest checkpoint, for evaluation and prediction.

  Of the loss and the optimizer nothing is read but what is asked for.

  Args:
    folder: of the checkpoints.
    abstract: {'params':, 'batch_stats':} of the network, and 'log_sigma_sq' of the loss where it is wanted: shapes,
      dtypes and shardings.

  Returns:
    ({'params':, 'batch_stats':}, with 'log_sigma_sq' where it is wanted, meta).

  Raises:
    InputError: no checkpoint, or it is torn, altered or of another network.
  """
  steps = steps_in(folder)
  if not steps:
    raise InputError(
      folder, 'there is no checkpoint', 'Train first: --mode=train, or give the --workdir of a finished run.'
    )
  wanted = {'net': abstract['params'], 'batch_stats': abstract.get('batch_stats', {})}
  wanted |= {key: abstract[key] for key in ('log_sigma_sq',) if key in abstract}
  try:
    trees, meta = _load(folder, steps[0], {'model': wanted}, parts=True)
  except InputError:
    raise
  except Exception as error:  # as above; an older checkpoint is not the one that was asked for
    if _replaced(folder, steps):
      return restore_variables(folder, abstract)
    path = _path(folder, steps[0])
    other_arrays = isinstance(error, ValueError) and not checkpoint_damage.lies_in_machine(error)
    if not (other_arrays or checkpoint_damage.is_proven(path, error, _verify)):
      raise checkpoint_damage.unreadable(path, error) from error
    raise InputError(
      path,
      f'this checkpoint is torn, altered or of another network ({str(error)[:200]})',
      'Restore a copy of it, or train again.',
    ) from error
  model = trees['model']
  return {'params': model.pop('net'), **model}, meta


def _replaced(folder: str, steps: list[int]) -> bool:
  """Whether another process, which is training, has replaced checkpoints since their steps were listed."""
  time.sleep(_MOMENT_S)
  return steps_in(folder) != steps
