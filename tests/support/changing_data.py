"""Data sets whose files change behind a store, and runs that prepare them."""

import os

from tiny_dataset import label_map, scan

from afw_jax import prepare as prepare_mode
from afw_jax import workdir
from afw_jax.config import build, default_config
from afw_jax.data import store
from afw_jax.data.formats import volumes


def config(folder, **changes):
  config = default_config()
  config.data.update({'dataset': 'folder', 'root': str(folder), 'size': (32, 32), 'spacing_mm': (1.0, 1.0), **changes})
  config.runtime.workers = 1
  return config


def prepare_run(config, folder, *, anew=False):
  store_dir = workdir.store_path(config, str(folder))
  prepare_mode.prepare(config, str(folder), store_dir, anew=anew, shard='', scheduler=None)
  return store_dir


def run_here(function, jobs, *, workers, progress):
  return [function(job) for job in jobs]


def replace_scan(root, i):
  path = root / 'images' / f'c{i}.nii.gz'
  volumes.write_image(path, scan(100 + i), volumes.read_image(path).geometry)


def correct_label(root, i):
  grid = volumes.read_image(root / 'images' / f'c{i}.nii.gz').geometry
  volumes.write_label(root / 'labels' / f'c{i}.nii.gz', label_map(i + 1), grid)


def remove(root, i):
  for kind in ('images', 'labels'):
    (root / kind / f'c{i}.nii.gz').unlink()


def touch(root, i):
  for kind in ('images', 'labels'):
    os.utime(root / kind / f'c{i}.nii.gz', (1, 1))


def contents_of(index):
  return {case_id: case['content_sha256'] for case_id, case in index['cases'].items()}


def selected(run, folder):
  index = store.read_index(prepare_run(run, folder))
  return index, build.selection(run, index)
