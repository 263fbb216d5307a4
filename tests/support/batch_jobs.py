"""Jobs of scans whose network is a threshold, and the tables that they leave."""

import csv
import json
import os

import numpy as np

from afw_jax.data.formats.scans import Scan
from afw_jax.inference import batch, outputs

SHAPE = (2, 8, 8)
IDS = {'liver': 1, 'prostate/uterus': 4}


def job(source, folder, seen, *, names=None, fails=lambda name: None, sha256='x', ids=None, overlap=0.5, **options):
  """A job whose network marks voxels above 100; the names of these scans are added to `seen`."""
  ids = ids or IDS
  paths = sorted(source.glob('*.nii*'))
  found = [Scan(p.name.split('.')[0], str(p)) for p in paths if not names or p.name.split('.')[0] in names]

  def segment(image):
    seen.append(os.path.basename(image.source).split('.')[0])
    if error := fails(seen[-1]):
      raise error
    labels = (image.array > 100).astype(np.uint8)
    shares = np.stack([labels] * (1 + len(ids)), -1).astype(np.float16) if options.get('probabilities') else None
    return batch.Segmented(labels, shares, [f'of {seen[-1]}'] if seen[-1] == 'b' else [])

  table = np.array([0, *ids.values()], np.uint8)
  made_by = {'checkpoint': {'workdir': 'runs/x', 'step': 3, 'sha256': sha256}, 'options': {'overlap': overlap}}
  labels = {s.name: outputs.label_path(str(folder), s) for s in found}
  return batch.Job(
    str(source), str(folder), found, labels, made_by, ids, lambda labels: table[labels], segment, **options
  )


def run(*arguments, **options):
  """(outcome, names of the scans that went through the network)."""
  segmented = []
  return batch.run(job(*arguments, segmented, **options)), segmented


def tables(folder):
  with open(folder / 'volumes.csv', encoding='utf-8') as file:
    return json.loads((folder / 'volumes.json').read_text(encoding='utf-8')), list(csv.DictReader(file))
