"""A data set of two channels, CT and a float32 image of the same body, made from one of CT alone."""

import json
import shutil

import numpy as np

from afw_jax.data.formats import volumes


def second(scan: np.ndarray) -> np.ndarray:
  """A second channel without HU: bright where the CT is near soft tissue, none below 0."""
  return (7.5 * np.exp(-(((scan - 60.0) / 120.0) ** 2))).astype(np.float32)


def divide(image, folder) -> None:
  """Writes NAME_0000 and NAME_0001 for a scan NAME into a folder."""
  found, name = volumes.read_image(image), image.name.removesuffix('.nii.gz')
  folder.mkdir(parents=True, exist_ok=True)
  volumes.write_image(folder / f'{name}_0000.nii.gz', found.array, found.geometry)
  volumes.write_image(folder / f'{name}_0001.nii.gz', second(found.array), found.geometry)


def make(source, root):
  """A copy of a data set whose scans have two channels; `images`, `labels` and `imagesTs`."""
  shutil.copytree(source / 'labels', root / 'labels')
  for folder in ('images', 'imagesTs'):
    for path in sorted((source / folder).glob('*.nii.gz')) if (source / folder).exists() else ():
      divide(path, root / folder)
  described = json.loads((source / 'dataset.json').read_text(encoding='utf-8'))
  described |= {'channel_names': {'0': 'CT', '1': 'PET'}}
  (root / 'dataset.json').write_text(json.dumps(described), encoding='utf-8')
  return root
