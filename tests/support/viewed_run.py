"""An evaluated run with its store, scans and label maps, made without a training, and with names that are HTML."""

import json
import pathlib

import numpy as np
from scored_run import make_run
from tiny_dataset import describe, make, prepare_and_select

from afw_jax import workdir as run_folder
from afw_jax.config import default_config
from afw_jax.data import store
from afw_jax.data.formats import volumes
from afw_jax.data.formats.geometry import Geometry
from afw_jax.system.file_names import file_name

HOSTILE = '</script><img src=x onerror="document.title=1">'  # an organ of a user's dataset.json
ORGANS = ('liver', HOSTILE)
CASE = 'c"1\'&amp;'  # a case, by the name of its file
SHAPE = (8, 40, 48)
DSC = {'c0': (0.9, 0.7), CASE: (0.5, 0.3), 'c2': (0.6, 0.65)}  # the worst is in the middle
IDS = np.array([0, 1, 7], np.uint8)


def make_viewed(folder: pathlib.Path, *, shift: int = 3) -> pathlib.Path:
  """Makes a data set with three cases, its store and a run whose label maps are the truth, moved along x.

  Returns:
    The workdir.
  """
  root, workdir = make(folder / 'scans', n=3, shape=SHAPE), folder / 'runs' / 'viewed'
  for kind in ('images', 'labels'):
    (root / kind / 'c1.nii.gz').rename(root / kind / f'{CASE}.nii.gz')
  describe(root, labels={'background': 0, 'liver': 1, HOSTILE: 7})
  config = default_config()
  config.data.dataset, config.data.root, config.data.fit = 'folder', str(root), 'resize'
  config.data.size, config.data.spacing_mm = (32, 36), ()
  path = run_folder.store_path(config, str(workdir))
  index, _ = prepare_and_select(
    'folder', root, path, size=(32, 36), spacing_mm=(None,) * 3, fit='resize', progress=False, workers=0
  )
  make_run(workdir, DSC, config=json.loads(config.to_json_best_effort()), names=tuple(index['organs']))
  (workdir / 'predictions').mkdir()
  for case_id in DSC:
    case = store.read_case(path, case_id)
    labels = np.roll(np.asarray(case.arrays['native_label']), shift, axis=2)
    name = file_name(case_id)
    geometry = Geometry.from_json(case.meta['geometry'])
    volumes.write_label(workdir / 'predictions' / f'{name}.nii.gz', IDS[labels], geometry)
    record = json.loads((workdir / 'cases' / f'{name}.json').read_text(encoding='utf-8'))
    record['content_sha256'] = store.content_digest(case.meta)
    for c, organ in enumerate(index['organs'], 1):
      record['scores'][organ]['pred_voxels'] = int((labels == c).sum())
    (workdir / 'cases' / f'{name}.json').write_text(json.dumps(record), encoding='utf-8')
  return workdir
