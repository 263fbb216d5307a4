"""What a run leaves behind of itself: config.json, environment.json, metrics.jsonl and TensorBoard events."""

import contextlib
import errno
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket

import jax

import afw_jax
from afw_jax.distributed import runtime
from afw_jax.errors import InputError

PACKAGES = (
  'afw_jax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'numpy',
  'scipy',
  'nibabel',
  'pydicom',
)


def write_json(path: str, value: dict) -> None:
  """Writes whole or not at all."""
  tmp = f'{path}.{socket.gethostname()}-{os.getpid()}.tmp'  # the tasks of an array job write the same file at once
  try:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(tmp, 'w') as f:
      json.dump(value, f, indent=2, sort_keys=True)
      f.flush()
      os.fsync(f.fileno())
    os.replace(tmp, path)
  except OSError as error:
    raise InputError(
      path, f'cannot be written ({error})', 'Free space or choose another place with --workdir.'
    ) from error


def environment() -> dict:
  """Versions, devices and what else decides the bits of a run."""
  installed = {d.metadata['Name']: d.version for d in importlib.metadata.distributions()}
  return {
    'python': platform.python_version(),
    'platform': platform.platform(),
    'cpu_count': os.cpu_count(),
    'packages': {name: installed.get(name, 'not installed') for name in PACKAGES} | {'afw_jax': afw_jax.__version__},
    'devices': [str(d) for d in jax.devices()],
    'processes': jax.process_count(),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'nproc': os.environ.get('NPROC', ''),
  }


def read_metrics(workdir: str) -> list[dict]:
  """The records of metrics.jsonl; a line torn by a kill ends the list."""
  records = []
  path = os.path.join(workdir, 'metrics.jsonl')
  if os.path.exists(path):
    with open(path) as f:
      for line in f:
        if not line.endswith('\n'):
          break
        records.append(json.loads(line))
  return records


class MetricWriter:
  """Appends one JSON line per record to metrics.jsonl, and scalars to TensorBoard where tensorboardX is installed.

  Opened at a step, it first drops the records of later steps, which a resumed run is about to make again. Of several
  processes only the first writes.
  """

  def __init__(self, workdir: str, *, start_step: int):
    self._file = self._tensorboard = None
    if runtime.process_index():
      return
    kept = [r for r in read_metrics(workdir) if r['step'] <= start_step]
    path = os.path.join(workdir, 'metrics.jsonl')
    try:
      with open(path + '.tmp', 'w') as f:
        f.writelines(json.dumps(r) + '\n' for r in kept)
      os.replace(path + '.tmp', path)
      self._file = open(path, 'a', buffering=1)  # noqa: SIM115 (open for the whole run)
    except OSError as error:
      raise InputError(path, f'cannot be written ({error})', 'Free space or choose another --workdir.') from error
    if importlib.util.find_spec('tensorboardX'):
      import tensorboardX

      self._tensorboard = tensorboardX.SummaryWriter(os.path.join(workdir, 'tensorboard'), purge_step=start_step + 1)

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """One record of a step."""
    if self._file is None:
      return
    with self._errors():
      self._file.write(json.dumps({'step': step, **scalars}) + '\n')
      if self._tensorboard:
        if shutil.disk_usage(self._file.name).free < 1 << 20:  # its thread would die and leave this one waiting
          raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for name, value in scalars.items():
          self._tensorboard.add_scalar(name, value, step)

  def close(self) -> None:
    """Flushes both."""
    if self._file is None:
      return
    with self._errors():
      self._file.close()
      if self._tensorboard:
        self._tensorboard.close()

  @contextlib.contextmanager
  def _errors(self):
    try:
      yield
    except OSError as error:
      raise InputError(
        self._file.name, f'cannot be written ({error})', 'Free space on the disk, then start the same command again.'
      ) from error
