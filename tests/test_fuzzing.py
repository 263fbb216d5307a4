"""Files changed at random: every one is read as something that makes sense, or refused in one line."""

import gzip
import json
import os
import shutil
import warnings

import numpy as np
import pytest
from dicom_series import write_slice
from mutations import changed_once, json_bytes, mutated_bytes, mutated_json
from nifti_bytes import nifti
from scored_run import make_run

from afw_jax import workdir as run_folder
from afw_jax.data.formats import volumes
from afw_jax.data.sets import given_folds
from afw_jax.data.sets.lookup import get_spec
from afw_jax.errors import InputError, InputErrors
from afw_jax.model_file import archive, content
from afw_jax.report import runs

COUNT = 100_000 if 'AFW_SLOW' in os.environ else 150
DESCRIPTION = {
  'name': 'abdomens',
  'channel_names': {'0': 'CT'},
  'labels': {'background': 0, 'liver': 1, 'kidneys': [2, 3], 'left_kidney': 2, 'ignore': 9},
  'regions_class_order': [1, 2, 3],
  'file_ending': '.nii.gz',
  'split': {'train': ['a', 'b'], 'val': ['c'], 'test': ['d']},
  'numTraining': 4,
  'licence': 'CC BY',
  'other_labels': 'background',
}
FOLDS = [{'train': ['a', 'b'], 'val': ['c']}, {'train': ['c', 'a'], 'val': ['b']}]


def check(read, judge, make, where: str, count: int = COUNT) -> None:
  """Reads `count` variants; each is judged, or refused in one line that names the file and says what to do.

  Args:
    read: without arguments; reads the variant that was made last.
    judge: is given what was read, and asserts that it makes sense.
    make: random generator -> writes a variant.
    where: what every error must name.
    count: of variants.
  """
  accepted = refused = 0
  for seed in range(count):
    make(np.random.default_rng(seed))
    try:
      with warnings.catch_warnings():
        warnings.simplefilter('error', RuntimeWarning)
        found = read()
    except InputErrors as errors:
      for error in errors.errors:
        _is_clear(error, where, seed)
      refused += 1
    except InputError as error:
      _is_clear(error, where, seed)
      refused += 1
    except Exception as error:
      raise AssertionError(f'variant {seed} raised {error!r}') from error
    else:
      judge(found)
      accepted += 1
  assert refused > count / 20 and accepted > count / 200, (accepted, refused)


def _is_clear(error: InputError, where: str, seed: int) -> None:
  text = str(error)
  assert where in text and error.cure and '\n' not in text and len(text) < 3000, (seed, text)


def is_a_scan(scan) -> None:
  assert scan.array.ndim == 3 and scan.array.size and np.isfinite(scan.array).all()
  assert all(np.isfinite(s) and s > 0 for s in scan.spacing_mm) and np.isfinite(scan.geometry.affine).all()


def is_a_label_map(labels) -> None:
  is_a_scan(labels)
  assert labels.array.dtype.kind == 'u' and labels.array.max() <= 65535


@pytest.mark.parametrize('read, judge', [(volumes.read_image, is_a_scan), (volumes.read_label, is_a_label_map)])
@pytest.mark.parametrize('name', ['scan.nii', 'scan.nii.gz', 'inside.nii.gz'])
def test_nifti(tmp_path, read, judge, name):
  """In 'inside' the file is damaged before it is compressed, so that the header is reached."""
  path = tmp_path / name
  data = nifti(np.random.default_rng(0).integers(0, 4, (6, 5, 4)).astype(np.int16))
  packed = gzip.compress(data, mtime=0)

  def make(rng):
    if name == 'scan.nii.gz':
      path.write_bytes(mutated_bytes(packed, rng, head=20))
    else:
      variant = mutated_bytes(data, rng)
      path.write_bytes(gzip.compress(variant, 1, mtime=0) if name.endswith('gz') else variant)

  check(lambda: read(path), judge, make, str(path))


@pytest.mark.parametrize('ending', ['.nrrd', '.mha'])
def test_files_of_itk(tmp_path, ending):
  pytest.importorskip('SimpleITK')
  (tmp_path / 'scan.nii').write_bytes(nifti())
  scan, path = volumes.read_image(tmp_path / 'scan.nii'), tmp_path / f'scan{ending}'
  volumes.write_image(path, scan.array, scan.geometry)
  data = path.read_bytes()
  check(lambda: volumes.read_image(path), is_a_scan, lambda rng: path.write_bytes(mutated_bytes(data, rng)), str(path))


def test_dicom(tmp_path):
  for n in range(3):
    write_slice(tmp_path / f'{n}.dcm', n)
  data = (tmp_path / '1.dcm').read_bytes()
  make = lambda rng: (tmp_path / '1.dcm').write_bytes(mutated_bytes(data, rng, head=len(data)))
  check(lambda: volumes.read_image(tmp_path), is_a_scan, make, str(tmp_path), COUNT // 3)


def test_description_of_a_data_set(tmp_path):
  def judge(spec):
    ids = [i for ids in spec.raw_ids.values() for i in ids]
    assert spec.organs and len(set(ids)) == len(ids) and 0 not in ids and spec.unlabelled_id not in ids
    assert set(spec.output_ids) == set(spec.organs) and all(set(r) <= set(spec.organs) for r in spec.regions.values())
    assert spec.modality in ('CT', 'MR') and isinstance(spec.name, str) and isinstance(spec.licence, str)

  make = lambda rng: (tmp_path / 'dataset.json').write_bytes(json_bytes(DESCRIPTION, rng))
  check(lambda: get_spec('folder', str(tmp_path)), judge, make, 'dataset.json')


def test_given_folds(tmp_path):
  def judge(folds):
    assert all({'train', 'val'} == set(fold) and not set(fold['train']) & set(fold['val']) for fold in folds)

  make = lambda rng: (tmp_path / given_folds.FILE).write_bytes(json_bytes(FOLDS, rng))
  check(lambda: given_folds.read_folds(str(tmp_path)), judge, make, given_folds.FILE)


def test_a_model_file(handed_over, tmp_path):
  path = str(tmp_path / 'model.zip')
  data = open(handed_over[0], 'rb').read()

  def make(rng):
    variant = mutated_bytes(data[-4000:], rng, head=4000)  # names and sizes are at the end of a zip
    open(path, 'wb').write(data[:-4000] + variant)

  def judge(meta):
    for name in meta['members']:
      archive.read(path, meta, name)

  def read():
    meta = archive.read_meta(path)
    judge(meta)
    return meta

  check(read, lambda meta: None, make, path, COUNT // 3)


def test_the_description_of_a_model(handed_over):
  """What is refused is what could harm; the rest was shown to be handled in the tests of the modes.

  All parts are removed and replaced in turn, too: at random one that nothing checks is met once in a thousand variants.
  """
  path = handed_over[0]
  meta = archive.read_meta(path)
  changed = [variant for _, variant in changed_once(meta['networks'])]
  variant = {}

  def make(rng):
    variant.clear()
    variant.update(meta, networks=changed.pop() if changed else mutated_json(meta['networks'], rng))

  def judge(networks):
    for network in networks:
      data = network['meta']['data']
      assert len(data['organs']) + 1 == network['meta']['model']['num_classes'] <= 255
      assert network['weights'] in meta['members'] and network['program'] in meta['members']

  check(lambda: content.networks_of(path, variant), judge, make, path, len(changed) + COUNT)


@pytest.fixture(scope='module')
def scored(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp('runs') / 'run', {'a': (0.9, 0.8), 'b': (0.7, 0.6)})


def test_the_scores_of_a_case(scored, tmp_path):
  shutil.copytree(scored, tmp_path / 'run')
  path = sorted((tmp_path / 'run' / 'cases').iterdir())[0]
  record = json.loads(path.read_text(encoding='utf-8'))

  def judge(run):
    assert len(run.cases) == 2 and all(table.shape == (2, len(run.organs)) for table in run.scores.values())

  make = lambda rng: path.write_bytes(json_bytes(record, rng))
  check(lambda: runs.read_run(str(tmp_path / 'run')), judge, make, str(tmp_path / 'run'))


def test_the_config_of_a_run(scored, tmp_path):
  shutil.copytree(scored, tmp_path / 'run')
  path = tmp_path / 'run' / 'config.json'
  config = json.loads(path.read_text(encoding='utf-8'))
  make = lambda rng: path.write_bytes(json_bytes(config, rng))
  check(lambda: run_folder.read_config(str(tmp_path / 'run')), lambda found: None, make, str(path))
