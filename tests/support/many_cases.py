"""A labelled data set of many tiny scans, and processes that prepare shards of it."""

import os
import subprocess
import sys

import numpy as np
from tiny_dataset import describe, geometry

from afw_jax.data.formats import volumes

CHOICES = dict(size=(8, 8), spacing_mm=(None, None, None))
ARRAY_TASK = dict(
  SLURM_ARRAY_TASK_ID='7',
  SLURM_ARRAY_TASK_COUNT='3',
  SLURM_ARRAY_TASK_MIN='5',
  SLURM_ARRAY_TASK_MAX='9',
  SLURM_ARRAY_TASK_STEP='2',
)
SCRIPT = """
import os, sys, time
from afw_jax.data.preparation import load_case, prepare
from afw_jax.data.preparation.options import StoreOptions
root, out, i, n, slow, gate = sys.argv[1:]
if float(slow):
  read = load_case.load_and_validate
  load_case.load_and_validate = lambda *a, **k: time.sleep(float(slow)) or read(*a, **k)
if gate:
  open(f'{gate}{i}', 'w').close()
while gate and not all(os.path.exists(f'{gate}{k}') for k in range(int(n))):
  time.sleep(0.001)
options = StoreOptions('folder', size=(8, 8), spacing_mm=(None, None, None))
index = prepare.prepare(options, root, out, workers=0, progress=False, shard=(int(i), int(n)))
print('published' if index else 'left to others')
"""


def make_many(root, n, shape=(4, 8, 8)):
  """n scans of noise as plain .nii, each with all of it liver but one plane of spleen."""
  for kind in ('images', 'labels'):
    (root / kind).mkdir(parents=True)
  label = np.ones(shape, np.uint8)
  label[0] = 7
  volumes.write_label(root / 'labels' / 'c0000.nii', label, geometry(shape))
  volumes.write_image(root / 'images' / 'c0000.nii', np.zeros(shape, np.int16), geometry(shape))
  header = (root / 'images' / 'c0000.nii').read_bytes()[: -2 * label.size]
  label = (root / 'labels' / 'c0000.nii').read_bytes()
  rng = np.random.default_rng(0)
  for i in range(n):
    (root / 'images' / f'c{i:04d}.nii').write_bytes(header + rng.integers(-1000, 1000, shape, np.int16).tobytes())
    (root / 'labels' / f'c{i:04d}.nii').write_bytes(label)
  describe(root)
  return root


def start_shard(tmp_path, root, out, i, n, slow=0, gate=''):
  """Starts a process that prepares one shard; with a gate, all shards start at the same time."""
  gate = str(tmp_path / gate) if gate else ''
  return subprocess.Popen(
    [sys.executable, '-c', SCRIPT, *map(str, (root, out, i, n, slow, gate))],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
  )


def ended(processes, seconds=120):
  """The output of each process; all must succeed."""
  said = []
  for process in processes:
    out, error = process.communicate(timeout=seconds)
    assert process.returncode == 0, error[-2000:]
    said.append(out.strip())
  return said
