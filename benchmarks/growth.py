"""How the cost of a training step and of a prediction grows: python benchmarks/growth.py.

A training step of the UNet against batch, side of the image and number of classes; the prediction of a scan against its
slices and the number of classes, with the peak memory of its process. The exponent of each row is that of the power law
through its points (least squares of the logarithms): 1 = in proportion.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from afw_jax.distributed.xla_flags import set_cpu_flags  # noqa: E402

set_cpu_flags()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from conditions import measured  # noqa: E402
from spatial import make_step  # noqa: E402

from afw_jax import models  # noqa: E402
from afw_jax.data import resample  # noqa: E402
from afw_jax.inference import forward, segmentation  # noqa: E402

FEATURES = (16, 32, 64, 128, 256)
BASE = {'batch': 4, 'side': 128, 'classes': 9}
TRAIN = {'batch': (1, 2, 4, 8, 16), 'side': (64, 128, 256), 'classes': (2, 9, 117)}
SCAN = {'slices': 64, 'classes': 9}
PREDICT = {'slices': (32, 64, 128, 256), 'classes': (2, 9, 117)}


def train_seconds(batch: int, side: int, classes: int, rounds: int) -> float:
  """Least time of a training step with CE + AFW-Dice, after one that compiles it."""
  train_step, init = make_step('unet', classes, None, features=FEATURES)
  rng = np.random.default_rng(0)
  arrays = {
    'image': rng.random((batch, side, side, 1), np.float32),
    'label': rng.integers(0, classes, (batch, side, side), np.int32),
  }
  state, times = jax.jit(init)(jax.random.key(0), arrays['image'][:1]), []
  for _ in range(rounds + 1):
    start = time.perf_counter()
    state, aux = train_step(state, arrays, jax.random.key(1))
    aux['loss'].block_until_ready()
    times.append(time.perf_counter() - start)
  return min(times[1:])


def predict_once(slices: int, classes: int) -> dict[str, float]:
  """Seconds of a scan of 512 x 512 by slices of 224 x 224, and the peak GiB of this process."""
  model = models.build('unet', classes, features=FEATURES)
  variables = models.init(model, jax.random.key(0), (1, 224, 224, 1))
  predict_step = jax.jit(forward.make_predict_step(model))
  image = np.random.default_rng(0).integers(-200, 400, (slices, 224, 224)).astype(np.int16)
  grid = resample.make_resampling((slices, 512, 512), (3.0, 0.8, 0.8), size=(224, 224), spacing=(None,) * 3)
  options = segmentation.Options((224, 224), 8)
  times = []
  for _ in range(2):
    start = time.perf_counter()
    segmentation.segment_volume(predict_step, variables, image, (50.0, 350.0), grid, options)
    times.append(time.perf_counter() - start)
  return {'s': times[-1], 'gib': _peak_gib()}


def _peak_gib() -> float:
  """Of this program alone: `getrusage` also has the peak of the one that started it."""
  status = Path('/proc/self/status').read_text(encoding='utf-8')
  return int(status.split('VmHWM:')[1].split()[0]) / 2**20


def exponent(values, costs) -> float:
  """Slope of the logarithm of the costs over that of the values."""
  return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def _in_its_own_process(**point) -> dict[str, float]:
  done = subprocess.run([sys.executable, __file__, '--one', json.dumps(point)], capture_output=True, text=True)
  if done.returncode:
    sys.exit(done.stderr[-2000:])
  return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--one', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.one:
    print(json.dumps(predict_once(**json.loads(args.one))))
    return
  with measured('jax', 'numpy'):
    print(f'UNet with the channels {FEATURES}; where a row says nothing else: {BASE}; a scan: {SCAN}, 512 x 512\n')
    print('| what | against | values | cost | exponent |\n|---|---|---|---|---|')
    for name, values in TRAIN.items():
      costs = [train_seconds(**{**BASE, name: value}, rounds=args.rounds) for value in values]
      _row('training step, s', name, values, costs)
    for name, values in PREDICT.items():
      points = [_in_its_own_process(**{**SCAN, name: value}) for value in values]
      _row('prediction, s', name, values, [point['s'] for point in points])
      _row('prediction, peak GiB of the process', name, values, [point['gib'] for point in points])


def _row(what: str, name: str, values, costs) -> None:
  listed = lambda numbers: ', '.join(f'{n:.3g}' for n in numbers)
  print(f'| {what} | {name} | {listed(values)} | {listed(costs)} | {exponent(values, costs):.2f} |', flush=True)


if __name__ == '__main__':
  main()
