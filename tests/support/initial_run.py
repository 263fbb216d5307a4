"""Runs whose checkpoint holds their initial weights: all of a run but its training, made in a moment."""

import os

import jax
import pytest
from changing_data import config as small_data
from changing_data import prepare_run, run_here

from afw_jax import train
from afw_jax import workdir as run_folder
from afw_jax.config import build
from afw_jax.config.program import make_program
from afw_jax.data.sets import channels
from afw_jax.training import checkpoint_writer


def small_run(root, **changes):
  """A config for a tiny network on the data set at `root`; keyword arguments override keys, as {'data.fold': '1/2'}."""
  config = small_data(root)
  config.model.unet.features = (4, 4, 4, 4, 4)
  config.train.batch_size, config.eval.num_pictures = 2, 1
  config.update_from_flattened_dict(changes)
  return config


def make_run(config, workdir, *, total_steps=0, change=lambda state: state):
  """Prepares the scans of a run, in this process, and saves its initial state, changed by a function of it.

  Returns:
    The workdir as text.
  """
  workdir = str(workdir)
  with pytest.MonkeyPatch.context() as patch, run_folder.claimed(workdir, config):
    patch.setattr('afw_jax.data.preparation.worker_pool.run_jobs', run_here)
    store_dir = prepare_run(config, workdir)
    last = os.path.join(workdir, 'checkpoints', 'last')
    data = train._read_data(config, store_dir, last)
    several = channels.count(data.description['options'])
    program = make_program(config, build.mesh(config), data.class_names, data.steps_per_epoch, channels=several)
    state = change(program.initial_state(jax.random.key(config.seed)))
    meta = {**train._meta(config, data, program), 'best_dsc': None, 'total_steps': total_steps}
    with checkpoint_writer.opened(last, keep=2) as manager:
      checkpoint_writer.save(manager, state, meta)
  return workdir
