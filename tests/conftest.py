"""Fixtures that several tests share: the command line on a small synthetic data set, and a finished run."""

import os

# Programs are compiled with little optimisation, before jax reads this: for a few steps that takes a third less time in
# all. With XLA_FLAGS='' they are compiled as for users.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

import pathlib
import resource
import subprocess
import sys

import pytest

from afw_jax.data import phantom
from afw_jax.data.preparation import load_case

ROOT = pathlib.Path(__file__).parent.parent
SMALL = (
  '--config.data.size=(32, 32)',
  '--config.model.unet.features=(4, 8, 8, 8, 8)',
  # A small rate: at the demo's own, this tiny network makes rounding grow to 0.3 % of the loss within 24 steps.
  '--config.optimizer.learning_rate=0.002',
  '--config.train.batch_size=8',
  '--config.train.epochs=3',
  '--config.train.steps_per_epoch=8',
  '--config.train.checkpoint_every_steps=5',
  '--config.train.validate_every_epochs=1',
  '--config.train.log_every_steps=1',
)


def command(*arguments: str) -> list[str]:
  """The command line, as a user calls it."""
  return [sys.executable, '-m', 'afw_jax.main', *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
  """This environment with the package on the path, from wherever the tests are run."""
  return {**os.environ, 'PYTHONPATH': str(ROOT), **extra}


@pytest.fixture(scope='module')
def float32_products():
  """Products in float32, for comparisons with references on any device: accelerators round the factors otherwise.

  Of the module, so that it holds for fixtures of the module, too.
  """
  import jax

  with jax.default_matmul_precision('highest'):
    yield


@pytest.fixture(scope='session')
def phantoms(tmp_path_factory):
  """Seven tiny abdomens: four to train, one to validate, two to test; one new scan."""
  folder = tmp_path_factory.mktemp('phantoms')
  phantom.write_phantoms(
    str(folder),
    num_cases=7,
    num_val=1,
    num_test=2,
    num_new=1,
    shape=(10, 40, 40),
    matrix_jitter=2,
    slice_mm=(20.0, 22.0),
  )
  return folder


@pytest.fixture(scope='session')
def run_main():
  """Runs the command line to its end and returns the finished process.

  Commands with an environment of their own start a new Python; the others are forked from one that has imported the
  program already.
  """
  from fork_server import ForkServer

  server = ForkServer(ROOT, environment())

  def run(*arguments, check=0, largest_file=None, **extra):
    if largest_file or extra:
      limit = largest_file and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file)))
      done = subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limit,
      )
    else:
      done = server.run(*map(str, arguments), timeout=300)
    if check is not None:
      assert done.returncode == check, done.stderr[-3000:]
    return done

  yield run
  server.close()


@pytest.fixture(scope='session')
def demo(phantoms):
  """Arguments of a small training on the phantoms."""
  return ('--config=configs/demo.py', f'--config.data.root={phantoms}', *SMALL)


@pytest.fixture(scope='session')
def trained(tmp_path_factory, demo, run_main):
  """The workdir of a small finished run."""
  workdir = tmp_path_factory.mktemp('runs') / 'small'
  run_main(*demo, f'--workdir={workdir}')
  return workdir


@pytest.fixture(scope='session')
def stored(trained, demo):
  """Arguments of the run `trained`, with its store."""
  return (*demo, f'--config.data.store={next((trained.parent / "stores").iterdir())}')


@pytest.fixture
def loaded(monkeypatch):
  """Ids of the cases whose files were decoded."""
  load, ids = load_case.load_and_validate, []
  monkeypatch.setattr(load_case, 'load_and_validate', lambda case, *a, **k: ids.append(case.id) or load(case, *a, **k))
  monkeypatch.setattr(
    'afw_jax.data.preparation.worker_pool.run_jobs', lambda function, jobs, **_: [function(job) for job in jobs]
  )
  return ids


@pytest.fixture(scope='session')
def handed_over(tmp_path_factory):
  """(model file, the workdirs in it, folder of their data set): a 2D and a 3D network, whose organs differ in order."""
  from initial_run import make_run, small_run
  from tiny_dataset import make

  from afw_jax import export_model

  folder = tmp_path_factory.mktemp('handed_over')
  root = make(folder / 'data', n=3)
  turned = make(folder / 'turned', n=3, labels={'background': 0, 'spleen': 1, 'liver': 7}, licence='CC BY 4.0')
  three_d = {'model.name': 'unet3d', 'model.size': 'testing', 'data.size': (), 'data.spacing_mm': (3.0, 2.0, 2.0)}
  runs = [
    make_run(small_run(root, **{'data.fit': 'crop_pad', 'data.window': 'percentile'}), folder / 'a'),
    make_run(small_run(turned, **three_d, **{'train.patch_size': (8, 16, 16)}), folder / 'b'),
  ]
  path, _ = export_model.export_model(runs, str(folder / 'model.zip'))
  return path, runs, root
