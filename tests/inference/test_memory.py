"""Preparing and evaluating hold a few volumes in memory at a time, however many cases there are."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from marks import SLOW

from afw_jax.data import store
from afw_jax.data.formats import volumes
from afw_jax.data.formats.geometry import Geometry
from afw_jax.data.preparation import prepare
from afw_jax.data.preparation.options import StoreOptions

SHAPE, CASES = (48, 192, 192), 12
VOLUME = np.prod(SHAPE) * 2 / 2**20  # MiB of a scan as int16
PEAK = """
import sys
def peak():  # MiB; not ru_maxrss, which a new process takes over from the one that started it
  return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')) / 1024
"""
PREPARE = (
  PEAK
  + """
from afw_jax.data.preparation import prepare
from afw_jax.data.preparation.options import StoreOptions
root, out = sys.argv[1:]
start, peaks, one = peak(), [], prepare.prepare_case
prepare.prepare_case = lambda job: (one(job), peaks.append(peak()))[0]
prepare.prepare(StoreOptions('folder', size=(96, 96)), root, out, workers=0, progress=False)
print(start, *peaks)
"""
)
EVALUATE = (
  PEAK
  + """
import json, ml_collections
from afw_jax import evaluate, metrics
workdir, out = sys.argv[1:]
config = ml_collections.ConfigDict(json.load(open(f'{workdir}/config.json')))
config.eval.num_pictures = 1
start, peaks, one = peak(), [], metrics.score_case
metrics.score_case = lambda *a, **k: (one(*a, **k), peaks.append(peak()))[0]
evaluate.evaluate(config, workdir, out)
print(start, *peaks)
"""
)

pytestmark = pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='reads the peak of memory from /proc')


def peaks_of(script, *arguments):
  """Memory in MiB: at the start, and the peak after each case."""
  done = subprocess.run(
    [sys.executable, '-c', script, *map(str, arguments)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )
  assert done.returncode == 0, done.stderr[-2000:]
  start, *peaks = map(float, done.stdout.split('\n')[-2].split())
  return start, peaks


def make_large(root, description):
  """Scans of noise and one box of each organ, as plain .nii."""
  z, y, x = SHAPE
  geometry = Geometry(shape=(x, y, z), affine=((-1.0, 0, 0, 0), (0, -1.0, 0, 0), (0, 0, 2.0, 0), (0, 0, 0, 1)))
  for kind in ('images', 'labels'):
    (root / kind).mkdir(parents=True)
  (root / 'dataset.json').write_text(json.dumps(description))
  label = np.zeros(SHAPE, np.uint8)
  for organ in range(1, len(description['labels'])):
    label[10:20, 40:60, 15 * organ : 15 * organ + 10] = organ
  rng = np.random.default_rng(0)
  for i in range(CASES):
    volumes.write_image(root / 'images' / f'c{i:02d}.nii', rng.integers(-200, 300, SHAPE, np.int16), geometry)
    volumes.write_label(root / 'labels' / f'c{i:02d}.nii', label, geometry)
  return root


def test_preparing(tmp_path):
  root = make_large(
    tmp_path / 'raw', {'channel_names': {'0': 'CT'}, 'labels': {'background': 0, 'liver': 1}, 'file_ending': '.nii'}
  )
  start, peaks = peaks_of(PREPARE, root, tmp_path / 's')
  assert len(peaks) == CASES
  assert peaks[-1] - start < 8 * VOLUME
  assert peaks[-1] - peaks[1] < VOLUME  # the other ten leave nothing


@SLOW
def test_evaluating(tmp_path, trained, phantoms):
  names = json.loads((phantoms / 'dataset.json').read_text(encoding='utf-8'))
  names['name'] = 'large scans'  # not the data set of the run, whose own cases would be scored
  names['split'] = {'train': ['c00'], 'test': [f'c{i:02d}' for i in range(1, CASES)]}
  root = make_large(tmp_path / 'raw', names)
  options = store.read_index(next((trained.parent / 'stores').iterdir()))['options']
  grid = {key: options[key] for key in ('size', 'spacing_mm', 'fit')}
  prepare.prepare(StoreOptions('folder', **grid, order='linear'), root, tmp_path / 's', progress=False, workers=0)
  shutil.copytree(trained, tmp_path / 'run')  # other tests look at the scores in it
  start, peaks = peaks_of(EVALUATE, tmp_path / 'run', tmp_path / 's')
  assert len(peaks) == CASES - 1
  # On a busy machine one or two blocks of probabilities (10 MiB) are in flight: a step or two among all. Memory that
  # cases do not free would add to every step.
  assert np.median(np.diff(peaks[2:])) < VOLUME / 10
  assert peaks[-1] - peaks[1] < 8 * VOLUME  # those blocks and no more
