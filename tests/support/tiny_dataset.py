"""A small labelled data set on disk, made afresh for each test."""

import json

import numpy as np
import scipy.ndimage

from afw_jax.data.formats import volumes
from afw_jax.data.formats.geometry import Geometry

SHAPE = (6, 40, 48)  # z, y, x
DESCRIPTION = {
  'channel_names': {'0': 'CT'},
  'labels': {'background': 0, 'liver': 1, 'spleen': 7},
  'file_ending': '.nii.gz',
}
SMALL = dict(size=(32, 32), progress=False, workers=0)


def geometry(shape=SHAPE, spacing_mm=(3.0, 1.5, 1.25), axes='RAS', origin=(-20, 30, 5)):
  """Native axes R/L, A/P, S/I in this order."""
  z, y, x = spacing_mm
  signs = [1 if a in 'RAS' else -1 for a in axes]
  affine = np.eye(4)
  affine[:3, :3] = np.diag(np.array([x, y, z]) * signs)
  affine[:3, 3] = origin
  return Geometry(shape=shape[::-1], affine=tuple(map(tuple, affine)))


def scan(seed, shape=SHAPE):
  noise = np.random.default_rng(seed).normal(size=shape)
  return np.rint(60 + 900 * scipy.ndimage.gaussian_filter(noise, (0, 2, 2))).astype(np.int16)


def label_map(seed, shape=SHAPE):
  z, y, x = np.indices(shape)
  label = np.zeros(shape, np.uint8)
  label[(y - 15 - seed % 5) ** 2 + (x - 14) ** 2 < 90] = 1
  label[(y - 25) ** 2 + (x - 34) ** 2 < 40 + z] = 7
  return label


def make(root, n=4, shape=SHAPE, **changes):
  for k in ('images', 'labels'):
    (root / k).mkdir(parents=True, exist_ok=True)
  for i in range(n):
    g = geometry(shape, axes=('RAS', 'LPS', 'LAS', 'RPI')[i % 4])
    volumes.write_image(root / 'images' / f'c{i}.nii.gz', scan(i, shape), g)
    volumes.write_label(root / 'labels' / f'c{i}.nii.gz', label_map(i, shape), g)
  describe(root, **changes)
  return root


def describe(root, **changes):
  (root / 'dataset.json').write_text(json.dumps({**DESCRIPTION, **changes}))


def contents(root):
  """Every file of a store but the lock, with its bytes."""
  files = [p for p in sorted(root.rglob('*')) if p.is_file() and p.name != '.lock']
  return {str(p.relative_to(root)): p.read_bytes() for p in files}
