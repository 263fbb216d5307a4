"""Surfaces are where the organs are in mm, whatever the voxels and the orientation of the file."""

import numpy as np
import pytest
from tiny_dataset import geometry

from afw_jax.data.formats import volumes
from afw_jax.report import style, surfaces

FRONT = surfaces.camera()
SIDE = 64  # mm of the cube that the scans below fill


def scan(spacing_mm):
  """Liver-like box (1) at the patient's right and in front of a ball (2), low in the scan a smaller one (3)."""
  z, y, x = (np.arange(int(SIDE / s)) * s + s / 2 for s in spacing_mm)
  z, y, x = np.meshgrid(z, y, x, indexing='ij')
  labels = np.zeros(z.shape, np.uint8)
  labels[(z - 40) ** 2 + (y - 45) ** 2 + (x - 34) ** 2 < 12**2] = 2
  labels[(z - 16) ** 2 + (y - 20) ** 2 + (x - 50) ** 2 < 6**2] = 3
  labels[(z > 30) & (z < 50) & (y > 10) & (y < 20) & (x > 5) & (x < 35)] = 1
  return labels


def shot(labels, spacing_mm, seen_by=FRONT, framed=None, classes=(1, 2, 3), pixels=128):
  """(picture, pixel_mm)"""
  framed = framed or surfaces.frame([labels], spacing_mm, seen_by, pixels=pixels)
  return surfaces.render(labels, spacing_mm, seen_by, framed, classes=classes), framed.pixel_mm


def of_class(picture, c):
  """The pixels in the colour of a class, whatever their shade."""
  hue = np.asarray(style.rgb(c))
  scale = picture @ hue / (hue @ hue)
  return (np.abs(picture - scale[..., None] * hue).max(-1) < 0.01) & (picture.min(-1) < 0.99)


def edges_mm(seen, pixel_mm):
  """(top, bottom, left, right) of pixels in mm."""
  rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
  return np.array([rows[0], rows[-1] + 1, columns[0], columns[-1] + 1]) * pixel_mm


@pytest.mark.parametrize('spacing_mm', [(1.0, 1.0, 1.0), (5.0, 1.0, 2.0), (2.0, 4.0, 1.0)])
def test_a_box_lies_where_it_is_in_mm(spacing_mm):
  labels = np.zeros([int(SIDE / s) for s in spacing_mm], np.uint8)
  inside = [slice(int(20 / s), int(40 / s)) for s in spacing_mm]  # a cube of 20 mm
  labels[tuple(inside)] = 1
  labels[-1, -1, 0] = 3  # the highest and rightmost voxel, at the back
  height = len(labels) * spacing_mm[0]
  picture, pixel_mm = shot(labels, spacing_mm)
  found = edges_mm(of_class(picture, 1), pixel_mm)
  assert found == pytest.approx([height - 40, height - 20, 20, 40], abs=2.1 * pixel_mm + 0.1)
  assert edges_mm(of_class(picture, 3), pixel_mm)[0] < 0.5 * spacing_mm[0]  # at the top, at the left


def test_depth_is_that_of_the_front_face_in_mm():
  labels = np.zeros((12, 16, 20), bool)
  labels[3:9, 4:10, 5:15] = True
  for spacing_mm in ((5.0, 1.5, 2.0), (1.0, 3.0, 1.0)):
    framed = surfaces.frame([labels], spacing_mm, FRONT, pixels=64)
    _, depth = surfaces.depths(labels, spacing_mm, FRONT, framed)
    middle = depth[tuple(n // 2 for n in depth.shape)]
    assert middle == pytest.approx(3.5 * spacing_mm[1], abs=1e-3)


@pytest.mark.parametrize('azimuth, nearer', [(0, 1), (180, 2)])
def test_the_nearest_organ_hides_those_behind_it(azimuth, nearer):
  labels, seen_by = scan((1, 1, 1)), surfaces.camera(azimuth)
  framed = surfaces.frame([labels], (1, 1, 1), seen_by, pixels=128)
  box, ball = (of_class(shot(labels, (1, 1, 1), seen_by, framed, classes=(c,))[0], c) for c in (1, 2))
  for order in ((1, 2, 3), (3, 2, 1)):
    both, _ = shot(labels, (1, 1, 1), seen_by, framed, classes=order)
    assert (box & ball).sum() > 500 and of_class(both, nearer)[box & ball].mean() > 0.97
    assert of_class(both, 2)[ball & ~box].mean() > 0.97


def test_left_and_up_of_the_patient():
  picture, pixel_mm = shot(scan((1, 1, 1)), (1, 1, 1))
  box, small = (edges_mm(of_class(picture, c), pixel_mm) for c in (1, 3))
  assert small[2] > box[3] and small[0] > box[1]  # towards the patient's left and feet: right and down in the picture


def test_cameras():
  for azimuth, elevation in ((0, 0), (15, -20), (90, 0), (-40, 70)):
    axes = surfaces.camera(azimuth, elevation).axes
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(np.linalg.det(FRONT.axes))  # no mirror image
  np.testing.assert_allclose(FRONT.axes, [[1, 0, 0], [0, 0, 1], [0, 1, 0]])
  np.testing.assert_allclose(surfaces.camera(90).into, [0, 0, -1], atol=1e-12)  # from the left towards the right
  np.testing.assert_allclose(surfaces.camera(90).right, [0, 1, 0], atol=1e-12)  # where the back is then
  np.testing.assert_allclose(surfaces.camera(0, 90).into, [-1, 0, 0], atol=1e-12)  # from the head to the feet


def test_the_voxels_do_not_change_the_picture():
  """The same organs in fine and in flat voxels: the same outlines, within a slice, and about the same shades."""
  seen_by = surfaces.camera(15, -20)
  fine, flat = scan((1, 1, 1)), scan((4, 1, 1))
  framed = surfaces.frame([fine], (1, 1, 1), seen_by, pixels=128)
  moved = surfaces.Frame(tuple(framed.low + seen_by.axes @ [-1.5, 0, 0]), framed.shape, framed.pixel_mm)  # 1st centres
  one, _ = shot(fine, (1, 1, 1), seen_by, framed)
  other, _ = shot(flat, (4, 1, 1), seen_by, moved)
  for c in (1, 2, 3):
    a, b = of_class(one, c), of_class(other, c)
    assert (a & b).sum() > 0.8 * (a | b).sum()
  ball = of_class(one, 2) & of_class(other, 2)
  assert np.abs(one[ball] - other[ball]).mean() < 0.06


@pytest.mark.parametrize('axes', ['RAS', 'LPS', 'LAI'])
def test_the_orientation_of_the_file_does_not_change_the_picture(tmp_path, axes):
  labels = scan((4, 2, 1))
  grid = geometry(labels.shape, (4, 2, 1), axes)
  volumes.write_label(path := str(tmp_path / 'l.nii.gz'), labels, grid)
  read = volumes.read_label(path)
  np.testing.assert_allclose(read.spacing_mm, (4, 2, 1))
  np.testing.assert_array_equal(shot(read.array, read.spacing_mm)[0], shot(labels, (4, 2, 1))[0])


def test_light_comes_from_above_and_the_left_and_a_single_voxel_is_seen():
  z, y, x = np.indices((40, 40, 40))
  ball = ((z - 20) ** 2 + (y - 20) ** 2 + (x - 20) ** 2 < 15**2).astype(np.uint8)
  ball[2, 20, 37] = 2
  picture, _ = shot(ball, (1, 1, 1), classes=(1, 2))
  assert of_class(picture, 2).any()
  bright = np.where(of_class(picture, 1), picture.sum(-1), np.nan)
  rows, columns = (int(v) for v in np.nanmean(np.argwhere(of_class(picture, 1)), axis=0))
  upper, lower = np.nanmean(bright[:rows, :columns]), np.nanmean(bright[rows:, columns:])
  assert upper > 1.2 * lower and np.nanmin(bright) > 0.4 * np.nanmax(bright)
  assert np.array_equal(picture[0, 0], [1, 1, 1]) and picture.max() <= 1


def test_an_absent_organ_and_one_outside_the_frame_are_not_drawn():
  labels = scan((2, 2, 2))
  framed = surfaces.frame([labels == 3], (2, 2, 2), FRONT, pixels=40)
  assert surfaces.depths(labels == 9, (2, 2, 2), FRONT, framed) is None
  assert surfaces.depths(labels == 1, (2, 2, 2), FRONT, framed) is None
  assert not of_class(shot(labels, (2, 2, 2), framed=framed)[0], 1).any()
