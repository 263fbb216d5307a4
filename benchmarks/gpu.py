"""Checks and measures the package on a GPU, against PyTorch where it is installed: python benchmarks/gpu.py.

  python benchmarks/gpu.py --quick --minutes 8 --out results

Every measurement runs in processes of its own with a limit of time, so that one that fails is a row of the table. Each
is written to OUT/results.json as soon as it is done; the same command goes on with what is not there yet. The table is
OUT/table.md, the output of the processes OUT/log.txt. `--dry` takes tiny sizes through every path on a CPU.
"""

import argparse
import concurrent.futures
import importlib
import importlib.util
import json
import os
import threading
import time
from pathlib import Path

from gpu_parts import worker

worker.add_paths()

from gpu_parts.item import Item, Work  # noqa: E402
from gpu_parts.processes import DRY_FLAGS, Runner, measure  # noqa: E402
from gpu_parts.sizes import FULL  # noqa: E402

from afw_jax.system.atomic_files import write_json, write_text  # noqa: E402

# The most important first; each is a module of gpu_parts.
PARTS = {
  'compile': 'compiling',
  'correct': 'correct',
  'repeat': 'repeat',
  'speed': 'speed',
  'memory': 'memory',
  'pipeline': 'training',
  'predict': 'prediction',
  'profile': 'kernels',
  'variants': 'variants',
}
NEEDED = {
  'jax': 'everything',
  'flax': 'everything',
  'optax': 'everything',
  'scipy': 'everything',
  'tqdm': 'everything',
  'orbax': 'pipeline',
  'grain': 'pipeline',
  'ml_collections': 'pipeline, memory',
  'absl': 'pipeline, memory',
  'nibabel': 'pipeline',
  'pydicom': 'pipeline',
  'h5py': 'pipeline',
  'PIL': 'pipeline',
  'tensorboardX': 'pipeline',
  'safetensors': 'correct, pipeline',
  'torch': 'comparison with PyTorch',
  'monai': 'comparison of unetr, and of sliding windows',
  'dynamic_network_architectures': 'comparison of unet3d',
}


def module(part: str):
  return importlib.import_module(f'gpu_parts.{PARTS[part]}')


def missing_packages() -> dict[str, str]:
  """Packages that are not installed -> what needs them."""
  return {name: use for name, use in NEEDED.items() if importlib.util.find_spec(name) is None}


def read(path: Path) -> dict:
  return json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}


def whole(record: dict | None) -> bool:
  """Whether a record needs no other try."""
  return record is not None and not any('failed' in found for found in record['sides'].values())


class Results:
  """The records of all items, written to OUT after each."""

  def __init__(self, out: Path):
    self._out, self._lock = out, threading.Lock()
    self.records: dict[str, dict] = read(out / 'results.json')

  def get(self, item: Item) -> dict | None:
    return self.records.get(item.part, {}).get(item.name)

  def put(self, item: Item, record: dict) -> None:
    with self._lock:
      self.records.setdefault(item.part, {})[item.name] = record
      write_json(str(self._out / 'results.json'), self.records)
      write_text(str(self._out / 'table.md'), table(self.records))


def table(records: dict) -> str:
  """The Markdown of all results."""
  lines, facts = [], records.get('compile', {}).get('device', {}).get('sides', {}).get('ours', {})
  for part in PARTS:
    if part in records:
      try:
        rows = module(part).table(records[part], facts)
      except Exception as error:  # the records are written, and what is measured next is worth more than a table
        rows = [f'no table: {worker.reason(error)}']
      lines += [f'## {module(part).TITLE}', '', *rows, '']
  return '\n'.join(lines)


def say(text: str) -> None:
  print(text, flush=True)


def measured(item: Item, runner: Runner, results: Results, deadline: float) -> None:
  """Measures an item if there is time for it, and tells the outcome."""
  left = deadline - time.monotonic()
  if left < item.least_s:
    say(f'{item.part}: {item.name}: left out, {max(left, 0):.0f} s are left')
    return
  record = measure(item, runner, left)
  results.put(item, record)
  failed = [f'{name} failed: {found["failed"]}' for name, found in record['sides'].items() if 'failed' in found]
  say(f'{item.part}: {item.name}: {record["seconds"]:.1f} s{"; " if failed else ""}{"; ".join(failed)}')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='bfloat16 only, fewer steps')
  parser.add_argument('--dry', action='store_true', help='tiny sizes through every path, on a CPU')
  parser.add_argument('--inline', action='store_true', help='with --dry: in this process')
  parser.add_argument('--parts', nargs='+', default=list(PARTS), choices=list(PARTS), help='only these, in this order')
  parser.add_argument('--networks', nargs='+', default=[], choices=list(FULL), help='only these')
  parser.add_argument('--only', default='', help='only items whose name contains this')
  parser.add_argument('--minutes', type=float, default=9.0, help='what does not fit is left out')
  parser.add_argument('--together', type=int, default=max((os.cpu_count() or 1) // 2, 1), help='untimed items at once')
  parser.add_argument('--out', type=Path, default=Path('runs/gpu'), help='folder of the results')
  parser.add_argument('--cache', type=Path, help='folder of compiled programs; by default in the folder of the results')
  args = parser.parse_args()
  if args.inline and not args.dry:
    parser.error('--inline is for --dry only')

  deadline = time.monotonic() + 60 * args.minutes
  for name, use in missing_packages().items():
    say(f'not installed: {name} (needed for: {use})')
  out = args.out.resolve()
  out.mkdir(parents=True, exist_ok=True)
  cache = (args.cache or out / 'cache').resolve()
  os.environ.setdefault('AFW_BENCHMARK_SCRATCH', str(cache / 'scratch'))
  if args.inline:
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {DRY_FLAGS}'.strip()
  work, results = Work(args.dry, args.quick, tuple(args.networks)), Results(out)
  runner = Runner(work, out, cache, args.inline)

  todo = [item for part in args.parts for item in module(part).items(work)]
  todo = [item for item in todo if args.only in item.name and not whole(results.get(item))]
  with concurrent.futures.ThreadPoolExecutor(1 if args.inline else args.together) as pool:
    beside = [pool.submit(measured, item, runner, results, deadline) for item in todo if not item.timed]
    for one in beside:
      one.result()
  for item in todo:
    if item.timed:
      measured(item, runner, results, deadline)
  say('\n' + ('A dry run: the times mean nothing.\n\n' if args.dry else '') + table(results.records))


if __name__ == '__main__':
  main()
