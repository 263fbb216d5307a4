"""The records of metrics.jsonl to Weights & Biases or MLflow as well; nothing that fails there stops or slows a run."""

import functools
import importlib.util
import logging
import math
import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from afw_jax.errors import InputError, did_you_mean
from afw_jax.system import atomic_files

TRACKERS = ('wandb', 'mlflow')
_PATIENCE_S = 60.0  # at the end of a run, for what is not sent yet
_log = logging.getLogger('afw_jax')


def check(name: str) -> None:
  """Raises InputError if a tracker is unknown or its package is not installed; '' is none."""
  if name and name not in TRACKERS:
    hint = f"{did_you_mean(name, TRACKERS)}Use one of {', '.join(TRACKERS)}, or '' for none."
    raise InputError('tracker', f'{name!r} is unknown', hint)
  found = importlib.util.find_spec(name) if name else None
  if name and (found is None or found.origin is None):  # the latter for a folder of this name, as trackers leave behind
    raise InputError('tracker', f'{name} is not installed', f"Run pip install 'afw_jax[{name}]'.")


class Tracker:
  """Sends records from a thread of its own, so that training never waits for a server.

  The service decides where they go, by its own variables and settings: WANDB_PROJECT, WANDB_MODE=offline,
  MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME ... A run that goes on goes on there as well: WORKDIR/tracker.json has the
  id of its run. After the first failure, which is a warning in the log, nothing more is sent.

  Args:
    name: one of `TRACKERS`.
    workdir: of the run.
    config: of the run, as JSON values.
  """

  def __init__(self, name: str, workdir: str, config: dict):
    self._name, self._records = name, queue.SimpleQueue()
    self._thread = threading.Thread(target=self._send_all, args=(workdir, config), daemon=True)
    self._thread.start()

  def write(self, record: dict) -> None:
    """Sends a record of metrics.jsonl: 'step' and scalars by name. Those that are not finite are left out."""
    step = record['step']
    self._records.put((step, {k: v for k, v in record.items() if k != 'step' and v is not None and math.isfinite(v)}))

  def close(self, *, finished: bool) -> None:
    """Waits a minute at most for what is still to be sent, and ends the run there.

    Args:
      finished: the training is complete; False says that it was interrupted.
    """
    self._records.put(finished)
    self._thread.join(_PATIENCE_S)
    if self._thread.is_alive():
      _log.warning('%s did not answer in time: what it has of this run may be incomplete', self._name)

  def _send_all(self, workdir: str, config: dict) -> None:
    try:
      send, end = {'wandb': _open_wandb, 'mlflow': _open_mlflow}[self._name](workdir, config)
      while not isinstance(record := self._records.get(), bool):
        send(*record)
      end(record)
    except Exception as error:  # whatever it is, the run goes on
      _log.warning(
        'nothing more is sent to %s, the run and its metrics.jsonl go on: %s', self._name, ' '.join(f'{error}'.split())
      )


_Opened = tuple[Callable[[int, dict[str, float]], Any], Callable[[bool], Any]]  # send(step, scalars), end(finished)


def _open_wandb(workdir: str, config: dict) -> _Opened:
  import wandb

  recorded = _recorded(workdir, 'wandb') or uuid.uuid4().hex[:12]
  run = wandb.init(
    project=os.environ.get('WANDB_PROJECT') or 'afw_jax',
    name=_name(workdir),
    id=recorded,
    resume='allow',
    dir=workdir,
    config=config,
    # Output stays with the terminal; nobody is asked for a key in the middle of a run.
    settings=wandb.Settings(console='off', quiet=True, login_timeout=1, finish_timeout=_PATIENCE_S - 5),
  )
  _record(workdir, 'wandb', recorded)
  return lambda step, scalars: run.log(scalars, step=step), lambda finished: run.finish(exit_code=int(not finished))


def _open_mlflow(workdir: str, config: dict) -> _Opened:
  import mlflow
  from mlflow.entities import Metric, Param

  client = mlflow.MlflowClient()
  recorded = _recorded(workdir, 'mlflow')
  if recorded:
    run_id = recorded
    client.update_run(run_id, status='RUNNING')
  else:
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME') or 'afw_jax'
    experiment = client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
    run_id = client.create_run(experiment_id, run_name=_name(workdir)).info.run_id
    _record(workdir, 'mlflow', run_id)
    params = [Param(key, str(value)[:500]) for key, value in _flat(config)]
    for first in range(0, len(params), 100):  # the most that a server takes at once
      client.log_batch(run_id, params=params[first : first + 100])

  @functools.cache
  def sent(key: str) -> int:
    """The last step sent before this start: what a run makes again after it was killed is not sent twice."""
    return max((metric.step for metric in client.get_metric_history(run_id, key)), default=-1) if recorded else -1

  def send(step: int, scalars: dict[str, float]) -> None:
    now = time.time_ns() // 1_000_000
    allowed = {re.sub(r'[^\w\-./: ]', '_', key): value for key, value in scalars.items()}
    metrics = [Metric(key, value, now, step) for key, value in allowed.items() if step > sent(key)]
    for first in range(0, len(metrics), 500):
      client.log_batch(run_id, metrics=metrics[first : first + 500])

  return send, lambda finished: client.set_terminated(run_id, 'FINISHED' if finished else 'KILLED')


def _flat(config: dict, prefix: str = '') -> Iterator[tuple[str, Any]]:
  for key, value in config.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def _name(workdir: str) -> str:
  return os.path.basename(os.path.abspath(workdir))


def _recorded(workdir: str, name: str) -> str | None:
  return _all_recorded(workdir).get(name)


def _record(workdir: str, name: str, run_id: str) -> None:
  atomic_files.write_json(os.path.join(workdir, 'tracker.json'), {**_all_recorded(workdir), name: run_id})


def _all_recorded(workdir: str) -> dict[str, str]:
  """Tracker -> the id that the run of this workdir has there."""
  path = os.path.join(workdir, 'tracker.json')
  if not os.path.exists(path):
    return {}
  return atomic_files.read_json(path, cure='Remove it: the curves then begin anew.')
