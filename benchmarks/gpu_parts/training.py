"""The real training on synthetic scans: images per second and waiting for data; killed, resumed, moved from a CPU."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu_parts.compiling import FLAGS
from gpu_parts.item import Item, Work, failures, markdown, number, single, successes
from gpu_parts.worker import BENCHMARKS

PART, TITLE = 'pipeline', 'The training loop'


def items(work: Work) -> list[Item]:
  """The runs share a folder of scans; they follow one another, so that the times can be trusted."""
  found = [
    single(PART, 'killed and resumed', 'gpu_parts.training:resumed', {'dry': work.dry}, 240, cache=False, least_s=60)
  ]
  found.append(
    single(PART, 'checkpoint of a CPU', 'gpu_parts.training:moved', {'dry': work.dry}, 150, cache=False, least_s=40)
  )
  for dtype in ('bfloat16',) if work.quick or work.dry else ('bfloat16', 'float32'):
    options = {'dry': work.dry, 'dtype': dtype, 'count': 4 if work.dry else 300}
    found.append(single(PART, f'unet {dtype}', 'gpu_parts.training:speed', options, 200, cache=False, least_s=60))
  return found[::-1]


def folder(dry: bool) -> Path:
  """The folder of scans and runs, beside the cache of compiled programs."""
  return Path(os.environ.get('AFW_BENCHMARK_SCRATCH') or Path(tempfile.gettempdir()) / 'afw_gpu') / (
    'dry' if dry else 'full'
  )


def scans(dry: bool) -> Path:
  """Synthetic scans, made once."""
  where = folder(dry) / 'scans'
  if not (where / 'done').exists():
    shutil.rmtree(where, ignore_errors=True)
    more = ['--num_cases', '9', '--shape', '8', '40', '40'] if dry else []
    run([sys.executable, '-m', 'afw_jax.data.phantom', '--output', str(where), *more])
    (where / 'done').touch()
  return where


def arguments(dry: bool, workdir: Path, mode: str = 'train', **changes) -> list[str]:
  """The command line of a run on the scans; the runs share the prepared scans, which lie beside them."""
  config = {
    'data.root': scans(dry),
    'data.size': (32, 32) if dry else (224, 224),
    'model.unet.features': (4, 8, 8, 8, 8) if dry else (32, 64, 128, 256, 512),
    'augment.name': 'paper',
    'train.batch_size': 4 if dry else 24,
    'train.epochs': 1,
    'train.steps_per_epoch': 4,
    'train.log_every_steps': 1,
    'train.checkpoint_every_steps': 1000,
    'runtime.compilation_cache': folder(dry) / 'xla',
    **changes,
  }
  flags = [f'--config.{key}={value}' for key, value in config.items()]
  return [
    sys.executable,
    '-m',
    'afw_jax.main',
    '--config=configs/demo.py',
    f'--mode={mode}',
    f'--workdir={workdir}',
    *flags,
  ]


def start(command: list[str], log: Path, **environment) -> subprocess.Popen:
  variables = {**os.environ, 'PYTHONPATH': f'{BENCHMARKS.parent}:{os.environ.get("PYTHONPATH", "")}', **environment}
  log.parent.mkdir(parents=True, exist_ok=True)
  with open(log, 'ab') as file:
    return subprocess.Popen(command, cwd=BENCHMARKS.parent, env=variables, stdout=file, stderr=file)


def run(command: list[str], log: Path | None = None, **environment) -> float:
  """Runs a command to its end and returns its seconds; RuntimeError with its last line if it fails."""
  log, begun = log or Path(tempfile.gettempdir()) / f'afw_gpu_{os.getpid()}.log', time.perf_counter()
  code = start(command, log, **environment).wait()
  if code:
    lines = [line for line in log.read_text(encoding='utf-8', errors='replace').splitlines() if line.strip()]
    raise RuntimeError(f'exit code {code}: {lines[-1] if lines else ""}')
  return time.perf_counter() - begun


def prepare(dry: bool, **changes) -> None:
  """Makes the prepared scans, where they are not there yet."""
  run(
    arguments(dry, folder(dry) / 'runs' / 'prepare', 'prepare', **changes),
    folder(dry) / 'prepare.log',
    JAX_PLATFORMS='cpu',
  )


def fresh(dry: bool, name: str) -> Path:
  workdir = folder(dry) / 'runs' / name
  shutil.rmtree(workdir, ignore_errors=True)
  return workdir


def records(workdir: Path) -> list[dict]:
  """The records of metrics.jsonl; [] before it is there."""
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines() if line.endswith('}')]


def last(workdir: Path) -> dict:
  from afw_jax.training import checkpoint

  return checkpoint.read_meta(str(workdir / 'checkpoints' / 'last'))


def speed(dry: bool, dtype: str, count: int) -> dict:
  """Images per second of the training loop once compiled, and seconds per step that it waited for data."""
  workdir = fresh(dry, f'speed-{dtype}')
  prepare(dry)
  every = 2 if dry else 20
  changes = {'model.dtype': dtype, 'train.steps_per_epoch': count, 'train.log_every_steps': every}
  seconds = run(arguments(dry, workdir, **changes), folder(dry) / f'speed-{dtype}.log')
  found = [r for r in records(workdir) if 'images_per_s' in r]
  later = found[1:]  # the first includes compilation
  return {
    'images_per_s': statistics.median(r['images_per_s'] for r in later),
    'data_wait_s': statistics.median(r['data_wait_s'] for r in later),
    'batch_size': 4 if dry else 24,
    'command_s': seconds,
    'first_loss': found[0]['train/loss'],
    'last_loss': found[-1]['train/loss'],
  }


def interrupted(command: list[str], workdir: Path, log: Path, how: signal.Signals, **environment) -> None:
  """Runs a command until its first checkpoint is there, and sends it a signal."""
  process, last_dir = start(command, log, **environment), workdir / 'checkpoints' / 'last'
  while process.poll() is None and not any(path.name.isdecimal() for path in last_dir.glob('*')):
    time.sleep(0.01)
  process.send_signal(how)
  code = process.wait()
  if code not in (0, -how, 128 + how):
    raise RuntimeError(f'exit code {code} before it was interrupted')


def resumed(dry: bool) -> dict:
  """A run that is killed ends with the bits of one that is not, with runtime.deterministic."""
  changes = {'train.steps_per_epoch': 40 if dry else 300, 'train.checkpoint_every_steps': 5 if dry else 20}
  changes['runtime.deterministic'] = not dry
  flags = {'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {FLAGS["deterministic"]}'.strip()}
  metas, seconds = {}, []
  prepare(dry)
  for name in ('whole', 'killed'):
    workdir, log = fresh(dry, name), folder(dry) / f'{name}.log'
    command = arguments(dry, workdir, **changes)
    if name == 'killed':
      interrupted(command, workdir, log, signal.SIGKILL, **flags)
    seconds.append(run(command, log, **flags))
    metas[name] = last(workdir)
  return {
    'same': metas['whole']['fingerprint'] == metas['killed']['fingerprint'],
    'step': metas['killed']['step'],
    'was_resumed': 'resumed from step' in log.read_text(encoding='utf-8', errors='replace'),
    'command_s': seconds,
  }


def moved(dry: bool) -> dict:
  """A checkpoint made on the CPU is verified by its fingerprints, and trained on, on the device."""
  workdir, log = fresh(dry, 'moved'), folder(dry) / 'moved.log'
  small = {'data.size': (32, 32), 'model.unet.features': (4, 8, 8, 8, 8)}
  prepare(dry, **small)
  changes = {'train.steps_per_epoch': 40, 'train.batch_size': 4, 'train.checkpoint_every_steps': 5}
  command = arguments(dry, workdir, **changes, **small)
  interrupted(command, workdir, log, signal.SIGTERM, JAX_PLATFORMS='cpu')
  made = last(workdir)['step']
  seconds = run(command, log)
  return {'made_at_step': made, 'trained_to_step': last(workdir)['step'], 'command_s': seconds}


def table(records: dict[str, dict], facts: dict) -> list[str]:
  rows = failures(records)
  for name, found in successes(records).items():
    if 'images_per_s' in found:
      wait = found['data_wait_s'] * found['images_per_s'] / found['batch_size']
      text = (
        f'{found["images_per_s"]:.1f} images/s, waited {1e3 * found["data_wait_s"]:.2f} ms a step ({100 * wait:.0f} %)'
      )
      rows.append([name, f'{text}, loss {found["first_loss"]:.3f} -> {found["last_loss"]:.3f}'])
    elif 'same' in found:
      text = 'the same bits' if found['same'] else 'DIFFERENT BITS'
      rows.append([name, f'{text} at step {found["step"]}{"" if found["was_resumed"] else ", but NOT resumed"}'])
    else:
      rows.append([name, f'verified at step {found["made_at_step"]}, trained to {found["trained_to_step"]}'])
    if 'command_s' in found:
      taken = found['command_s'] if isinstance(found['command_s'], list) else [found['command_s']]
      rows[-1].append(', '.join(number(second) for second in taken))
  return markdown(['what', 'result', 'seconds of the commands'], rows)
