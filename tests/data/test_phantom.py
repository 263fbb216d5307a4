import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from afw_jax.data.formats import volumes
from afw_jax.data.phantom.make import AXIS_CODES, ORGANS, make_phantom, native_geometry, write_phantoms
from afw_jax.data.sets import layouts
from afw_jax.data.sets.lookup import get_spec
from afw_jax.errors import InputError

SEEDS = range(6)
SHAPE, SPACING_MM = (32, 104, 104), (7.0, 3.5, 3.5)
# plausible adult volumes in mL, cut off by the ends of the scan only for the aorta
VOLUME_ML = {
  'aorta': (45, 140),
  'gallbladder': (10, 80),
  'left_kidney': (80, 260),
  'right_kidney': (80, 260),
  'liver': (800, 2000),
  'pancreas': (40, 140),
  'spleen': (80, 400),
  'stomach': (120, 900),
}
MEDIAN_HU = {
  'aorta': 168,
  'gallbladder': 10,
  'left_kidney': 165,
  'right_kidney': 165,
  'liver': 110,
  'pancreas': 90,
  'spleen': 122,
}


@pytest.fixture(scope='module')
def phantoms():
  return [make_phantom(seed, SHAPE, SPACING_MM) for seed in SEEDS]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('phantoms')
  ids = write_phantoms(
    str(folder), num_cases=8, num_val=2, num_test=1, seed=5, shape=(14, 40, 44), matrix_jitter=4, slice_mm=(15.0, 17.0)
  )
  assert ids == [f'phantom_{i:03d}' for i in range(8)]
  return folder


def centres(label):
  return {organ: np.argwhere(label == i).mean(0) * SPACING_MM for i, organ in enumerate(ORGANS, 1)}


def test_all_organs_are_there_at_plausible_volumes(phantoms):
  for image, label in phantoms:
    assert image.shape == label.shape == SHAPE and image.dtype == np.int16 and label.dtype == np.uint8
    assert set(np.unique(label)) == set(range(9))
    for i, organ in enumerate(ORGANS, 1):
      low, high = VOLUME_ML[organ]
      assert low < (label == i).sum() * np.prod(SPACING_MM) / 1000 < high, organ


def test_rare_organs_are_rare(phantoms):
  counts = sum(np.bincount(label.ravel(), minlength=9) for _, label in phantoms)
  by_size = [ORGANS[i - 1] for i in np.argsort(counts[1:]) + 1]
  assert by_size[0] == 'gallbladder' and set(by_size[1:3]) == {'pancreas', 'aorta'} and by_size[-1] == 'liver'
  assert counts[2] / counts.sum() < 0.003


def test_organs_lie_where_they_belong(phantoms):
  for _, label in phantoms:
    at = centres(label)
    for organ in ('liver', 'gallbladder', 'right_kidney'):  # the patient's right: small x, as x runs to the Left
      assert at[organ][2] < at['aorta'][2] - 15, organ
    for organ in ('spleen', 'left_kidney', 'stomach'):
      assert at[organ][2] > at['aorta'][2] + 15, organ
    for organ in ('left_kidney', 'right_kidney'):  # behind the others
      assert at[organ][1] > max(at['pancreas'][1], at['stomach'][1], at['gallbladder'][1]) + 15
    assert at['gallbladder'][1] < at['liver'][1] + 10 and at['gallbladder'][0] < at['liver'][0] - 15  # below, in front
    assert at['spleen'][0] > at['left_kidney'][0]


def test_organs_are_whole(phantoms):
  for _, label in phantoms:
    for i, organ in enumerate(ORGANS, 1):
      parts, count = ndimage.label(label == i)
      assert np.bincount(parts.ravel())[1:].max() > 0.8 * (label == i).sum(), (organ, count)


def test_organs_lie_inside_the_body(phantoms):
  for image, label in phantoms:
    for z in range(0, SHAPE[0], 5):
      body = ndimage.binary_fill_holes(ndimage.binary_opening(image[z] > -300, iterations=2))
      assert body[label[z] > 0].all()


def test_brightness_is_that_of_a_portal_venous_scan(phantoms):
  for image, label in phantoms:
    assert image.min() >= -1024 and image.max() <= 3071
    for organ, hu in MEDIAN_HU.items():
      mask = label == ORGANS.index(organ) + 1
      deep = ndimage.binary_erosion(mask, np.ones((1, 3, 3)))
      assert abs(np.median(image[deep if deep.sum() > 20 else mask]) - hu) < 22, organ
    assert ((image[label == 8] > -10) & (image[label == 8] < 80)).mean() > 0.5  # fluid and wall
    assert (image > 300).mean() > 0.005  # bone
    assert (
      abs(np.median(image[image < -920]) + 1000) < 10 and ((image > -130) & (image < -70)).mean() > 0.05
    )  # air, fat
  gas = [np.argwhere((label == 8) & (image < -600))[:, 1] for image, label in phantoms]
  fluid = [np.argwhere((label == 8) & (abs(image - 25) < 20))[:, 1] for image, label in phantoms]
  assert sum(len(g) > 0 for g in gas) > len(gas) / 2
  assert all(g.mean() < f.mean() for g, f in zip(gas, fluid) if len(g))  # gas rises to the front of one who lies supine


def test_a_phantom_is_a_pure_function_of_its_seed(phantoms):
  image, label = make_phantom(0, SHAPE, SPACING_MM)
  np.testing.assert_array_equal(image, phantoms[0][0])
  np.testing.assert_array_equal(label, phantoms[0][1])
  assert len({label.tobytes() for _, label in phantoms}) == len(phantoms)


def test_patients_differ_in_shape_and_pose(phantoms):
  spread = {organ: np.std([centres(label)[organ] for _, label in phantoms], 0) for organ in ORGANS}
  assert all(s.max() > 3 for s in spread.values())  # mm
  sizes = np.array([np.bincount(label.ravel(), minlength=9)[1:] for _, label in phantoms])
  assert (sizes.std(0) / sizes.mean(0))[[1, 5, 7]].min() > 0.05


def test_files_are_a_folder_data_set(folder):
  spec = get_spec('folder', str(folder))
  assert spec.organs == ORGANS and spec.modality == 'CT'
  cases = layouts.find_cases(spec, str(folder))
  assert [case.id for case in cases if not case.label] == ['new_000']
  cases = [case for case in cases if case.label]
  assert [case.split for case in sorted(cases, key=lambda c: c.id)] == ['train'] * 5 + ['val'] * 2 + ['test']
  written = json.loads((folder / 'dataset.json').read_text())
  assert written['labels'] == {'background': 0, **{organ: i for i, organ in enumerate(ORGANS, 1)}}
  for case in cases:
    volumes.check_pair(volumes.read_image(case.image), volumes.read_label(case.label))


def test_orientation_and_spacing_vary_and_world_positions_hold(folder):
  codes, spacings = set(), set()
  for path in sorted((folder / 'labels').iterdir()):
    file = nibabel.load(path)
    codes.add(''.join(nibabel.aff2axcodes(file.affine)))
    spacings.add(tuple(np.round(sorted(file.header.get_zooms()), 3)))
    label = np.asarray(file.dataobj)
    at = {
      o: nibabel.affines.apply_affine(file.affine, np.argwhere(label == i)).mean(0) for i, o in enumerate(ORGANS, 1)
    }
    right, anterior, superior = np.array(
      [at['liver'] - at['spleen'], at['stomach'] - at['left_kidney'], at['spleen'] - at['gallbladder']]
    ).diagonal()
    assert right > 80 and anterior > 30 and superior > 0  # RAS mm
  assert codes == set(AXIS_CODES) and len(spacings) == 8


def test_internal_arrays_come_back_as_drawn(folder):
  image = volumes.read_image(folder / 'images' / 'phantom_003.nii.gz')
  label = volumes.read_label(folder / 'labels' / 'phantom_003.nii.gz')
  drawn, drawn_label = make_phantom((5, 3), image.array.shape, image.spacing_mm)
  assert (label.array == drawn_label).mean() > 0.999  # the header keeps spacing in single precision
  np.testing.assert_allclose(image.array[label.array == 5].mean(), drawn[drawn_label == 5].mean(), atol=1)


@pytest.mark.parametrize('code', AXIS_CODES)
def test_native_geometry_points_where_its_code_says(code):
  geometry = native_geometry((5, 6, 7), (3.0, 2.0, 1.5), code, (10.0, -20.0, 30.0))
  affine = np.array(geometry.affine)
  assert ''.join(nibabel.aff2axcodes(affine)) == code
  assert geometry.internal_shape == (5, 6, 7)
  np.testing.assert_allclose(geometry.spacing_mm, (3.0, 2.0, 1.5))
  np.testing.assert_allclose(affine @ [*(np.array(geometry.shape) - 1) / 2, 1], [10, -20, 30, 1])


def test_the_same_seed_writes_the_same_bytes(tmp_path):
  small = dict(num_cases=2, num_val=0, num_test=1, seed=1, shape=(6, 24, 24), matrix_jitter=0)
  for name in ('one', 'two'):
    write_phantoms(str(tmp_path / name), **small)
  files = sorted(p.relative_to(tmp_path / 'one') for p in (tmp_path / 'one').rglob('*.*'))
  assert len(files) == 6  # two images, two labels, one new scan, dataset.json
  for file in files:
    assert (tmp_path / 'one' / file).read_bytes() == (tmp_path / 'two' / file).read_bytes()


def test_bad_requests_write_nothing(tmp_path):
  for options in (
    dict(num_cases=7),
    dict(num_cases=9, axis_codes=('RAR',)),
    dict(num_cases=9, axis_codes=('RAX',)),
    dict(num_cases=9, num_val=-1),
  ):
    with pytest.raises(InputError):
      write_phantoms(str(tmp_path / 'new'), **options)
  assert not (tmp_path / 'new').exists()


def test_command_line(tmp_path):
  out = subprocess.run(
    [
      sys.executable,
      '-m',
      'afw_jax.data.phantom',
      '--output',
      tmp_path,
      '--num_cases',
      '8',
      '--shape',
      '6',
      '32',
      '32',
    ],
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert out.returncode == 0, out.stderr
  assert len(list((tmp_path / 'images').iterdir())) == 8 and (tmp_path / 'imagesTs' / 'new_000.nii.gz').exists()
