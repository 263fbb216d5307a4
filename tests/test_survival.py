"""kill -9 at any moment loses nothing and changes no bit; a checkpoint with a flipped bit is never loaded unnoticed."""

import os
import pathlib
import random
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import SLOW
from test_resume import fingerprints, losses, start, text

from afw_jax.errors import InputError
from afw_jax.training import checkpoint, checkpoint_writer
from afw_jax.training.step import TrainState

KILLS = int(os.environ.get('AFW_KILLS', 3))  # 20 take minutes


def unfinished(workdir):
  """Checkpoints being written, or left so; by inode, for one written again has the same name."""
  found = set()
  for path in pathlib.Path(workdir).glob('checkpoints/*/*'):
    if not path.name.isdigit() and path.exists():
      found.add((path.name, path.lstat().st_ino))
  return found


def records(workdir):
  """(inode, lines) of metrics.jsonl; every start writes the file anew."""
  path = pathlib.Path(workdir, 'metrics.jsonl')
  return (path.stat().st_ino, path.read_bytes().count(b'\n')) if path.exists() else (0, 0)


def kill(process, workdir, rng):
  """kill -9 at a random moment of the run: at any, some steps on, or in a save. False if the run ended before."""
  moment, steps = rng.choice(('any', 'steps on', 'saving')), rng.randint(1, 4)
  before, old, lines = records(workdir)[0], unfinished(workdir), {}

  def steps_on():
    inode, n = records(workdir)
    return inode != before and n >= lines.setdefault(inode, n) + steps

  ready = {'any': lambda: True, 'steps on': steps_on, 'saving': lambda: unfinished(workdir) - old}[moment]
  delay = rng.uniform(0, {'any': 8, 'steps on': 0.1, 'saving': 0.02}[moment])
  limit = time.monotonic() + 120
  while process.poll() is None and not ready():
    time.sleep(0.001)
    assert time.monotonic() < limit, text(workdir)[-2000:]
  time.sleep(delay)
  if process.poll() is None:
    os.killpg(process.pid, signal.SIGKILL)
  return process.wait(60) == -signal.SIGKILL


@SLOW
def test_kill_minus_9_at_random_moments(trained, demo, tmp_path):
  arguments = (*demo, f'--config.data.store={next((trained.parent / "stores").iterdir())}')
  rng, kills, torn, run = random.Random(4), 0, set(), 0
  while kills < KILLS:
    every = 1 + run % 3
    workdir = str(tmp_path / f'run{run}-{every}')
    while True:
      process = start((*arguments, f'--config.train.checkpoint_every_steps={every}'), workdir)
      if kills >= min(KILLS, 7 * run + 7) or not kill(process, workdir, rng):
        break
      kills += 1
      torn |= unfinished(workdir)
    assert process.wait(120) == 0, text(workdir)[-3000:]
    assert fingerprints(workdir) == fingerprints(trained)
    assert fingerprints(workdir, 'best') == fingerprints(trained, 'best')
    assert losses(workdir) == losses(trained)
    run += 1
  print(f'{kills} kills in {run} runs, {len(torn)} unfinished checkpoints')


def make_state(step):
  rng = np.random.default_rng(step)
  params = {
    'net': {'conv': {'kernel': jnp.asarray(rng.normal(size=(3, 3, 8, 8)), jnp.float32)}},
    'log_sigma_sq': jnp.asarray(rng.normal(size=(5,)), jnp.float32),
  }
  tx = optax.sgd(0.1, momentum=0.9)
  return TrainState(jnp.asarray(step, jnp.int32), params, {'bn': {'mean': jnp.ones(8)}}, tx.init(params))


def equal(a, b):
  return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope='module')
def two_checkpoints(tmp_path_factory):
  folder = tmp_path_factory.mktemp('checkpoints')
  with checkpoint_writer.opened(str(folder), keep=2) as manager:
    for step in (3, 6):
      meta = {'best_dsc': step / 7, 'config': {'seed': 17}, 'data': {'organs': ['liver']}}
      checkpoint_writer.save(manager, make_state(step), meta)
      checkpoint_writer.finish(manager)
  return folder


@pytest.mark.parametrize('files', ['**/*', 'meta/metadata'])
@pytest.mark.parametrize('seed', range(20))
def test_a_flipped_bit_anywhere_is_never_loaded(two_checkpoints, tmp_path, files, seed):
  folder, rng = str(tmp_path / 'last'), random.Random(seed)
  shutil.copytree(two_checkpoints, folder)
  metas = {
    step: {'best_dsc': step / 7, 'config': {'seed': 17}, 'data': {'organs': ['liver']}, 'step': step} for step in (3, 6)
  }
  path = rng.choice(sorted(p for p in (tmp_path / 'last' / '6').glob(files) if p.is_file() and p.stat().st_size))
  data = bytearray(path.read_bytes())
  at = rng.randrange(len(data))
  data[at] ^= 1 << rng.randrange(8)
  path.write_bytes(data)
  where = f'{path.relative_to(folder)}, byte {at}'

  abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), make_state(0))
  model = {'params': abstract.params['net'], 'batch_stats': abstract.batch_stats}
  try:
    variables, meta = checkpoint.restore_variables(folder, model)
    assert equal(variables['params'], make_state(6).params['net']), where
    assert {key: meta[key] for key in metas[6]} == metas[6], where
  except InputError:
    pass
  try:
    meta = checkpoint.read_meta(folder)
    assert {key: meta[key] for key in metas[6]} in metas.values(), where
    state, meta = checkpoint.restore_state(folder, abstract)
  except InputError:
    return
  step = int(state.step)
  assert step in (3, 6) and equal(state, make_state(step)), where
  assert {key: meta[key] for key in metas[step]} == metas[step], where
