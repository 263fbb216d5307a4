"""The devices of a run: starts them, compares them with what was asked for, and describes them in one line."""

import contextlib
import glob
import importlib.metadata
import logging
import os
from collections import Counter
from collections.abc import Iterator

import jax

from afw_jax.errors import InputError, did_you_mean

PLATFORMS = ('cpu', 'gpu', 'tpu')
_CURE = (
  'Start on a machine with such a device and the packages of JAX for it (launch/gpu.sh and launch/tpu_vm.sh install '
  'them), or '
)
_USE_CPU = 'set JAX_PLATFORMS=cpu.'
_VISIBLE = ('/dev/nvidia[0-9]*', '/dev/accel[0-9]*')  # NVIDIA GPUs and TPUs whose driver is loaded


def start() -> list[str]:
  """Makes JAX look for its devices, which it does once for each process.

  Returns:
    What JAX said about plugins and devices that it could not use, in one line each instead of tracebacks.

  Raises:
    InputError: JAX has no devices: what JAX_PLATFORMS names is not there, or a plugin fails.
  """
  asked = os.environ.get('JAX_PLATFORMS')
  with _collected_warnings() as said:
    try:
      jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts where it is asked for CUDA and sees no GPU
      reason = '; '.join(filter(None, [_line(error), *said])) or 'none is visible'
      if asked:
        raise InputError(
          f'JAX_PLATFORMS={asked}', f'JAX cannot use such a device ({reason})', _CURE + _USE_CPU
        ) from error
      raise InputError('devices', f'JAX cannot use those of this machine ({reason})', _CURE + _USE_CPU) from error
  return said


def check(platform: str, said: list[str]) -> str | None:
  """Compares the devices with what was asked for.

  Args:
    platform: `runtime.platform`: one of `PLATFORMS`, or '' for any.
    said: from `start`.

  Returns:
    A warning where an accelerator is there but not used, or where JAX had trouble with one; otherwise None.

  Raises:
    InputError: the devices are of another kind than `platform`, or than the first that JAX_PLATFORMS names.
  """
  check_platform(platform)
  found, asked = jax.default_backend(), os.environ.get('JAX_PLATFORMS', '')
  reasons = f' (JAX: {"; ".join(said)})' if said else ''
  first = asked.split(',')[0]
  if platform not in ('', found):
    cure = f'{_CURE}leave this option out.' if platform != 'cpu' else 'Set JAX_PLATFORMS=cpu.'
    raise InputError(f'runtime.platform={platform}', f'JAX finds other devices, {describe()}{reasons}', cure)
  if found == 'cpu' and first not in ('', 'cpu'):
    raise InputError(f'JAX_PLATFORMS={asked}', f'JAX finds the CPU only{reasons}', _CURE + _USE_CPU)
  if found == 'cpu' and not first and (there := _accelerators()):
    return (
      f'the CPU is used, although there is {" and ".join(there)}{reasons}. '
      'JAX_PLATFORMS=cpu says that this is meant, and runtime.platform=gpu or tpu that it is not.'
    )
  return f'JAX says: {"; ".join(said)}' if said and first != 'cpu' else None


def check_platform(platform: str) -> None:
  """Raises InputError if `runtime.platform` is not one of `PLATFORMS` or ''."""
  if platform not in ('', *PLATFORMS):
    hint = f"{did_you_mean(platform, PLATFORMS)}Use one of {', '.join(PLATFORMS)}, or '' for any."
    raise InputError('runtime.platform', f'{platform!r} is unknown', hint)


def describe() -> str:
  """Platform, number and kind of the devices, memory of one where it is known, and the number of processes."""
  kinds = ' and '.join(f'{count} x {kind}' for kind, count in Counter(d.device_kind for d in jax.devices()).items())
  processes = jax.process_count()
  return f'{jax.default_backend()}: {kinds}{_memory()}, {processes} process{"es" * (processes > 1)}'


def _memory() -> str:
  with contextlib.suppress(jax.errors.JaxRuntimeError):  # not every plugin can say it
    if limit := (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit'):
      return f' with {limit / 2**30:.1f} GiB for JAX each'
  return ''


def _accelerators() -> list[str]:
  """Signs of an accelerator: devices of its driver, and the packages of JAX for it."""
  plugins = sorted({f'the plugin {entry.name}' for entry in importlib.metadata.entry_points(group='jax_plugins')})
  libtpu = ['the package libtpu'] * any(importlib.metadata.distributions(name='libtpu'))
  return [*sorted(path for pattern in _VISIBLE for path in glob.glob(pattern)), *plugins, *libtpu]


class _Lines(logging.Handler):
  """Collects the warnings of a logger, of an exception its last line."""

  def __init__(self):
    super().__init__(logging.WARNING)
    self.lines: list[str] = []

  def emit(self, record: logging.LogRecord) -> None:
    error = record.exc_info and record.exc_info[1]
    self.lines.append(_line(error or record.getMessage()))


@contextlib.contextmanager
def _collected_warnings() -> Iterator[list[str]]:
  """Collects the warnings of JAX instead of printing them."""
  log, collector = logging.getLogger('jax'), _Lines()
  handlers, propagate = log.handlers, log.propagate
  log.handlers, log.propagate = [collector], False
  try:
    yield collector.lines
  finally:
    log.handlers, log.propagate = handlers, propagate


def _line(text: object) -> str:
  """The text in one line, without the advice of JAX to uninstall something."""
  return ' '.join(str(text).split(' (set JAX_PLATFORMS=')[0].split(' (you may need to')[0].split()).rstrip('.')


def keep_compiled_programs(folder: str) -> None:
  """Compiled programs are kept on disk, so that the next start of the same run begins at once."""
  if folder and not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    jax.config.update('jax_compilation_cache_dir', os.path.expanduser(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
