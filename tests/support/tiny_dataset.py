"""A small labelled data set on disk, and calls that prepare it and select its cases."""

import dataclasses
import json

import numpy as np
import scipy.ndimage

from afw_jax.data import selection
from afw_jax.data.formats import volumes
from afw_jax.data.formats.geometry import Geometry
from afw_jax.data.preparation import prepare
from afw_jax.data.preparation.options import StoreOptions
from afw_jax.data.selection import SelectionOptions

SHAPE = (6, 40, 48)  # z, y, x
DESCRIPTION = {
  'channel_names': {'0': 'CT'},
  'labels': {'background': 0, 'liver': 1, 'spleen': 7},
  'file_ending': '.nii.gz',
}
SMALL = dict(size=(32, 32), progress=False, workers=0)


def _of(kind, choices):
  return {field.name: choices[field.name] for field in dataclasses.fields(kind) if field.name in choices}


def prepare_store(dataset, root, out, **choices):
  """`prepare.prepare` with the fields of its options as keywords."""
  stored, selected = _of(StoreOptions, choices), _of(SelectionOptions, choices)
  call = {key: value for key, value in choices.items() if key not in stored | selected}
  return prepare.prepare(StoreOptions(dataset, **stored), root, out, SelectionOptions(**selected), **call)


def prepare_and_select(dataset, root, out, **choices):
  """(index, the `Selection` with the same options)."""
  index = prepare_store(dataset, root, out, **choices)
  return index, selection.select(index, SelectionOptions(**_of(SelectionOptions, choices)))


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


def add(root, *numbers):
  """Adds cases to the data set, or replaces them."""
  for i in numbers:
    volumes.write_image(root / 'images' / f'c{i}.nii.gz', scan(i), geometry())
    volumes.write_label(root / 'labels' / f'c{i}.nii.gz', label_map(i), geometry())


def damage(root):
  """Gives the cases c0 to c4 one problem each."""
  write = lambda i, array, **kw: volumes.write_label(
    root / 'labels' / f'c{i}.nii.gz', array, geometry(array.shape, **kw)
  )
  write(0, label_map(0)[1:])  # a slice is missing
  write(1, np.where(label_map(1) == 7, 9, label_map(1)), axes='LPS')  # an id nobody named
  write(2, np.zeros(SHAPE, np.uint8), axes='LAS')  # nothing in it
  write(3, label_map(3), axes='RPI', origin=(0, 0, 0))  # lies elsewhere
  packed = (root / 'images' / 'c4.nii.gz').read_bytes()
  (root / 'images' / 'c4.nii.gz').write_bytes(packed[:-50])  # cut short


def describe(root, **changes):
  (root / 'dataset.json').write_text(json.dumps({**DESCRIPTION, **changes}), encoding='utf-8')


def contents(root):
  """Every file of a store but the lock, with its bytes."""
  files = [p for p in sorted(root.rglob('*')) if p.is_file() and p.name not in ('.lock', '.publishing')]
  return {str(p.relative_to(root)): p.read_bytes() for p in files}
