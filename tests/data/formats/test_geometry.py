"""The one internal orientation: exact for every axis orientation, true to the millimetre."""

import itertools
import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from afw_jax.data import resources
from afw_jax.data.formats.geometry import Geometry, check_affine, check_memory, check_shape
from afw_jax.errors import InputError

SHAPE = (3, 4, 5)
SIZES = (0.7, 1.5, 4.0)
ALL_48 = [(axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def axis_affine(axes, signs):
  affine = np.eye(4)
  affine[:3, :3] = 0
  for native, (world, sign) in enumerate(zip(axes, signs)):
    affine[world, native] = sign * SIZES[native]
  affine[:3, 3] = (-12.5, 30.25, 700.125)
  return affine


def rotation(angles):
  a, b, c = angles
  x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
  y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
  z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
  return x @ y @ z


@pytest.mark.parametrize('axes, signs', ALL_48)
def test_48_orientations(axes, signs):
  affine = axis_affine(axes, signs)
  g = Geometry(shape=SHAPE, affine=affine)
  native = np.arange(60).reshape(SHAPE)
  internal = g.to_internal(native)
  assert internal.shape == g.internal_shape
  np.testing.assert_array_equal(g.to_native(internal), native)
  # internal axes run S, P, L with the voxel sizes of those axes, and every voxel keeps its place in the patient
  assert nib.aff2axcodes(g.internal_affine) == ('S', 'P', 'L')
  np.testing.assert_allclose(g.spacing_mm, np.linalg.norm(g.internal_affine[:3, :3], axis=0))
  assert sorted(g.spacing_mm) == pytest.approx(SIZES)
  for index in [(0, 0, 0), (2, 1, 4), (1, 3, 2)]:
    z, y, x = np.argwhere(internal == native[index])[0]
    np.testing.assert_allclose(g.internal_affine @ (z, y, x, 1), affine @ (*index, 1), atol=1e-9)


def test_superior_left_and_posterior_are_where_they_should_be():
  g = Geometry(shape=SHAPE, affine=np.diag([1.0, 1, 1, 1]))  # RAS
  native = np.zeros(SHAPE)
  native[2, 0, 4] = 1  # most right, most posterior, most superior
  assert np.argwhere(g.to_internal(native)).tolist() == [[4, 3, 0]]


@settings(max_examples=200, deadline=None)
@given(
  angles=st.tuples(*[st.floats(-np.pi, np.pi)] * 3),
  sizes=st.tuples(*[st.floats(0.3, 8)] * 3),
  array=hnp.arrays(np.int16, hnp.array_shapes(min_dims=3, max_dims=4, max_side=5)),
)
def test_oblique_grids_are_inverted_exactly(angles, sizes, array):
  affine = np.eye(4)
  affine[:3, :3] = rotation(angles) @ np.diag(sizes)
  g = Geometry(shape=array.shape[:3], affine=affine)
  check_affine('it', affine)
  internal = g.to_internal(array)
  np.testing.assert_array_equal(g.to_native(internal), array)
  assert internal.shape[:3] == g.internal_shape
  assert sorted(g.spacing_mm) == pytest.approx(sorted(sizes))
  # no two internal axes share a native one, and the z axis never points down by more than an oblique grid must
  assert abs(np.linalg.det(g.internal_affine[:3, :3])) == pytest.approx(np.prod(sizes))
  assert Geometry.from_json(json.loads(json.dumps(g.to_json()))) == g


def test_slightly_oblique_grid_takes_the_nearest_axes():
  affine = np.eye(4)
  affine[:3, :3] = rotation((0.2, -0.3, 0.25)) @ np.diag([-1, 1, 3])  # about LAS
  assert nib.aff2axcodes(affine) == ('L', 'A', 'S')
  g = Geometry(shape=SHAPE, affine=affine)
  native = np.arange(60).reshape(SHAPE)
  np.testing.assert_array_equal(g.to_internal(native), native.transpose(2, 1, 0)[:, ::-1])
  assert g.spacing_mm == pytest.approx((3, 1, 1))


def test_json_keeps_everything():
  g = Geometry(
    shape=SHAPE,
    affine=axis_affine((2, 0, 1), (1, -1, 1)),
    sform_code=0,
    qform_code=3,
    xyzt_units=10,
    qform=[0.1] * 10,
    has_mm=False,
    slice_files=('b.dcm', 'a.dcm'),
  )
  assert Geometry.from_json(json.loads(json.dumps(g.to_json()))) == g
  assert hash(g) is not None


@pytest.mark.parametrize(
  'affine, problem',
  [
    (np.full((4, 4), np.nan), 'NaN'),
    (np.diag([np.inf, 1, 1, 1]), 'NaN or inf'),
    (np.diag([0.0, 0, 0, 1]), 'singular'),
    (np.diag([1.0, 0, 1, 1]), 'singular'),
    (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), 'singular'),
    (np.array([[1, 0.01, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), 'sheared'),
    (np.array([[1, 0, 0, 0], [0, 1, 0.3, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), 'sheared'),
    (np.diag([1e-3, 1, 1, 1]), 'voxel size'),
    (np.diag([1.0, 1, 500, 1]), 'voxel size'),
  ],
)
def test_bad_affines(affine, problem):
  with pytest.raises(InputError, match=problem) as e:
    check_affine('scan.nii.gz', affine)
  assert str(e.value).startswith('scan.nii.gz: ')


def test_rounding_is_no_shear():
  affine = np.eye(4)
  affine[:3, :3] = rotation((0.3, 0.2, 0.1)) @ np.diag([0.8, 0.8, 5])
  check_affine('it', affine.astype(np.float32).astype(np.float64) + 1e-5)


@pytest.mark.parametrize('shape', [(3, 4), (3, 4, 5, 2), (0, 4, 5), (-1, 4, 5), (5000, 4, 5), (4096, 4096, 4096)])
def test_bad_shapes(shape):
  with pytest.raises(InputError):
    check_shape('it', shape)


def test_memory(monkeypatch):
  check_memory('it', 1)
  monkeypatch.setattr(resources, 'free_memory', lambda: 10)
  with pytest.raises(InputError, match='memory'):
    check_memory('it', 11)
