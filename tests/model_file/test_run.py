"""A model file as a program: without this package and its libraries it gives the labels of `predict`."""

import os
import pathlib
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import safetensors.numpy
from tiny_dataset import scan

from afw_jax import predict
from afw_jax.data.formats import volumes
from afw_jax.data.formats.geometry import Geometry
from afw_jax.errors import InputError
from afw_jax.model_file import run

# All that a machine needs to have; jax brings what stands beside it.
INSTALLED = (
  'jax',
  'jaxlib',
  'numpy',
  'scipy',
  'ml_dtypes',
  'opt_einsum',
  'nibabel',
  'packaging',
  'typing_extensions.py',
)
DRIVER = """
import sys
model, *pairs = sys.argv[1:]
sys.path.insert(0, model)
import runner
for scan, labels in zip(pairs[::2], pairs[1::2]):
  assert runner.main([scan, labels]) == 0
assert runner.main(['--check']) == 0
import afw_jax
assert afw_jax.__file__.startswith(model), afw_jax.__file__
found = {'flax', 'optax', 'orbax', 'tqdm', 'absl', 'ml_collections', 'pydicom', 'safetensors'} & set(sys.modules)
assert not found, found
"""


def alone(tmp_path, *arguments, names=INSTALLED, **options):
  """Runs Python in a process that sees these packages alone."""
  site = tmp_path / 'site'
  site.mkdir(exist_ok=True)
  for name in names:
    if not (site / name).exists():
      where = pathlib.Path(np.__file__).parents[1]
      (site / name).symlink_to(where / name)
      for info in where.glob(f'{name.removesuffix(".py")}-*.dist-info'):
        (site / info.name).symlink_to(info)
      if (libraries := where / f'{name}.libs').exists():
        (site / libraries.name).symlink_to(libraries)
  variables = {key: value for key, value in os.environ.items() if key not in ('PYTHONPATH', 'VIRTUAL_ENV')}
  variables['PYTHONPATH'] = str(site)
  command = [sys.executable, '-S', '-P', *map(str, arguments)]
  return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300, **options)


def world(code):
  """0, 1 or 2 of a direction: right-left, anterior-posterior, superior-inferior."""
  return next(i for i, pair in enumerate(('LR', 'PA', 'IS')) if code in pair)


def turned(axes, spacing_mm, angle_deg):
  """The grid of a file whose axes run along the patient's in any order and direction, and obliquely."""
  affine = np.zeros((4, 4))
  for axis, code in enumerate(axes):
    affine[world(code), axis] = spacing_mm[2 - world(code)] * (1 if code in 'RAS' else -1)
  angle = np.deg2rad(angle_deg)
  turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
  affine[:3, :3] = turn @ affine[:3, :3]
  affine[:, 3] = (10, -20, 30, 1)
  return affine


GRIDS = {
  'oblique': ('RAS', (3.0, 1.5, 1.25), 14, (9, 40, 44)),
  'flipped': ('LPI', (5.0, 0.8, 0.8), 0, (5, 52, 48)),
  'sagittal': ('AIL', (1.0, 1.0, 4.0), -7, (20, 36, 11)),
}


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
  """NIfTI files on unusual grids; intensities with a scale factor, and padding."""
  folder, paths = tmp_path_factory.mktemp('scans'), []
  for seed, (name, (axes, spacing_mm, angle, shape)) in enumerate(GRIDS.items()):
    affine = turned(axes, spacing_mm, angle)
    native = tuple(shape[2 - world(code)] for code in axes)
    grid = Geometry(shape=native, affine=affine.tolist())
    image = nibabel.Nifti1Image(np.ascontiguousarray(grid.to_native(scan(seed, shape))), affine)
    image.header.set_slope_inter(*((0.5, -10.25) if name == 'flipped' else (1, 0)))
    paths.append(folder / f'{name}.nii.gz')
    nibabel.save(image, paths[-1])
  return paths


def test_a_model_file_predicts_alone_what_predict_gives(handed_over, scans, tmp_path):
  model, runs, _ = handed_over
  mine = [tmp_path / f'alone_{path.name}' for path in scans]
  done = alone(tmp_path, '-c', DRIVER, model, *(str(p) for pair in zip(scans, mine) for p in pair))
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.count('label map: ') == 3 and '100.0000% of the labels of the example are equal' in done.stdout
  for path, made in zip(scans, mine):
    predict.predict(runs, path, tmp_path / f'wanted_{path.name}')
    wanted, found = volumes.read_label(tmp_path / f'wanted_{path.name}'), volumes.read_label(made)
    np.testing.assert_array_equal(found.array, wanted.array)
    assert found.geometry == wanted.geometry and set(np.unique(wanted.array)) <= {0, 1, 7}
    assert len(np.unique(wanted.array)) > 1, path


def test_the_program_is_called_in_either_way(handed_over, scans, tmp_path):
  model, _, _ = handed_over
  wrong = alone(tmp_path, model, scans[0])
  assert wrong.returncode == 2 and 'python MODEL.zip SCAN.nii.gz LABELS.nii.gz' in wrong.stderr
  (tmp_path / 'runner.py').write_bytes(pathlib.Path(run.__file__).with_name('runner.py').read_bytes())
  missing = alone(tmp_path, tmp_path / 'runner.py', model, 'nowhere.nii.gz', 'x.nii.gz')
  assert missing.returncode == 2 and missing.stderr.startswith('error: nowhere.nii.gz: cannot be read')
  (tmp_path / 'empty').mkdir()
  without = alone(tmp_path / 'empty', model, scans[0], 'x.nii.gz', names=())
  assert without.returncode == 2 and without.stderr.startswith('error: jax is missing: pip install jax nibabel')


@pytest.mark.parametrize('name, said', [('scan.nii.gz', 'is there already'), ('labels.mha', 'does not end in .nii')])
def test_nothing_is_replaced_by_a_label_map(handed_over, tmp_path, name, said):
  (tmp_path / 'scan.nii.gz').write_bytes(b'scan')
  with pytest.raises(InputError, match=f'{name}: {said}'):
    run.segment(handed_over[0], str(tmp_path / 'scan.nii.gz'), str(tmp_path / name))
  assert (tmp_path / 'scan.nii.gz').read_bytes() == b'scan'


def test_a_program_of_another_version_of_jax_is_named(handed_over, monkeypatch):
  def deserialize(data):
    raise ValueError('calling convention 99')

  monkeypatch.setattr('jax.export.deserialize', deserialize)
  with pytest.raises(InputError, match=r'programs/1.jax_export: cannot be read by jax .*calling convention 99'):
    run.load(handed_over[0])


def test_a_machine_that_predicts_otherwise_is_told(handed_over, monkeypatch):
  segment = run._segmented

  def other(*networks, **options):
    made = segment(*networks, **options)
    return made._replace(labels=1 - np.minimum(made.labels, 1))

  monkeypatch.setattr(run, '_segmented', other)
  with pytest.raises(InputError, match='does not predict here as where it was exported: .*% of the labels'):
    run.check(handed_over[0])


def test_tensors_are_those_of_the_library():
  rng = np.random.default_rng(0)
  arrays = {'a/kernel': rng.normal(size=(3, 2, 1)), 'b': rng.normal(size=5), 'c': np.zeros((0, 4)), 'd': np.array(2.5)}
  arrays = {name: np.asarray(a, np.float32) for name, a in arrays.items()}
  found = run.read_tensors(safetensors.numpy.save(arrays, metadata={'format': 'np'}))
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array, strict=True)
