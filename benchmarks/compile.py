"""Compiles the training and prediction step of every network for accelerators that need not be there, as a table.

    PYTHONPATH=.:compilers python benchmarks/compile.py --targets h100 v5e --dtypes bfloat16

Needs the compilers that `afw-jax --mode=plan` names. A line for each step: CPU seconds to compile (of all cores and of
the assemblers that the compiler starts; other work on the machine hardly changes them) and GiB on the device, or why it
does not compile. Each step is compiled in a process of its own. With --out, what is done is not done again.
"""

import argparse
import json
import os
import resource
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402

from afw_jax import models  # noqa: E402
from afw_jax.config import build, shipped  # noqa: E402
from afw_jax.distributed import sharding  # noqa: E402
from afw_jax.inference import forward  # noqa: E402
from afw_jax.models.layers import attention  # noqa: E402
from afw_jax.planning import accelerators, measure  # noqa: E402

HEADING = '| network | input | batch | step | dtype | target | CPU seconds | GiB |\n|---|---|---|---|---|---|---:|---:|'
GIB = 1 << 30
VOLUMES = ('unetr', 'unetrpp', 'unet3d')


def config_of(network: str, dtype: str):
  """The shipped config that trains a network: slices of the paper, or crops of the size of the network's authors."""
  name, variant = ('abdomenct1k_3d', [f'{network}_patch']) if network in VOLUMES else ('synapse', [])
  config = runpy.run_path(shipped.find_config(name))['get_config'](*variant)
  config.model.name, config.model.dtype = network, dtype
  config.train.steps_per_epoch = 1
  return config


def compile_step(network: str, step: str, dtype: str, name: str) -> dict:
  """Compiles one step in this process, which has the environment of the target."""
  target, config = accelerators.get(name), config_of(network, dtype)
  mesh = sharding.make_mesh(1, 1, accelerators.devices(name, target, 1))
  program, arguments = measure.program(
    config, mesh, micro_batches=1, unroll=target.platform == 'cpu', attend=attention.plain_attend
  )
  if step == 'predict':
    program, arguments = predict_program(config, mesh, *arguments[:2])
  start = cpu_seconds()
  try:
    compiled = program.lower(*arguments).compile()
  except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
    needed = accelerators.exhausted(str(error))
    return {'refused': accelerators.reason(str(error)) if needed is None else f'needs {needed:.2f} GiB'}
  return {'cpu_seconds': cpu_seconds() - start, 'gib': accelerators.memory(compiled)['total'] / GIB}


def cpu_seconds() -> float:
  """CPU seconds of this process and of those that it has started."""
  used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(one.ru_utime + one.ru_stime for one in used)


def predict_program(config, mesh, state, batch):
  """The prediction step of a config on a batch of the size of its evaluation, not yet compiled, and its arguments."""
  attend = {'attend': attention.plain_attend} if models.takes(config.model.name, 'attend') else {}
  classes = state.params['log_sigma_sq'].shape[0]
  model, _ = build.network(config, classes, constrain=sharding.make_constrain(mesh), **attend)
  placed = lambda a: jax.ShapeDtypeStruct((config.eval.batch_size, *a.shape[1:]), a.dtype, sharding=a.sharding)
  variables = {'params': state.params['net'], 'batch_stats': state.batch_stats}
  step = sharding.jit_over_mesh(mesh, forward.make_predict_step(model))
  return step, (variables, placed(batch['image']), placed(batch['window']))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--networks', nargs='+', default=list(models.MODELS))
  parser.add_argument('--targets', nargs='+', default=['h100', 'v5e'], choices=accelerators.TARGETS)
  parser.add_argument('--dtypes', nargs='+', default=['bfloat16', 'float32'])
  parser.add_argument('--steps', nargs='+', default=['train', 'predict'])
  parser.add_argument('--out', type=Path, help='a JSON file of the results')
  parser.add_argument('--one', action='store_true', help=argparse.SUPPRESS)
  args = parser.parse_args()
  jobs = [(n, s, d, t) for t in args.targets for d in args.dtypes for n in args.networks for s in args.steps]
  if args.one:
    return print(json.dumps(compile_step(*jobs[0])))
  known = json.loads(args.out.read_text(encoding='utf-8')) if args.out and args.out.exists() else {}
  print(HEADING)
  for job in jobs:
    key = ' '.join(job)
    if 'gib' not in known.get(key, {}) or 'cpu_seconds' not in known[key]:
      known[key] = run(job)
      if args.out:
        args.out.write_text(json.dumps(known, indent=1), encoding='utf-8')
    print(row(job, known[key]), flush=True)


def run(job: tuple[str, str, str, str]) -> dict:
  """Compiles one step in a process with the environment of the target."""
  network, step, dtype, name = job
  accelerators.check(name, accelerators.get(name), 1)
  environment = accelerators.environment(accelerators.get(name), 1, os.environ)
  command = [sys.executable, __file__, '--one', '--networks', network, '--steps', step, '--dtypes', dtype]
  done = subprocess.run([*command, '--targets', name], env=environment, capture_output=True, text=True)
  if done.returncode:
    return {'refused': f'exit code {done.returncode}: {done.stderr.strip().splitlines()[-1][:200]}'}
  return json.loads(done.stdout.splitlines()[-1])


def row(job: tuple[str, str, str, str], result: dict) -> str:
  network, step, dtype, name = job
  config = config_of(network, dtype)
  size = config.train.patch_size or config.data.size
  found = result.get('refused') or f'{result["cpu_seconds"]:.0f} | {result["gib"]:.2f}'
  batch = config.train.batch_size if step == 'train' else config.eval.batch_size
  return f'| {network} | {" x ".join(map(str, size))} | {batch} | {step} | {dtype} | {name} | {found} |'


if __name__ == '__main__':
  main()
