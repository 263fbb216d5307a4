"""Writes DICOM slices at any positions, of an intensity that is a linear function of the place in the patient."""

import numpy as np
from dicom_series import write_slice

SHAPE = (14, 12)  # rows, columns
SPACING = (0.75, 0.5)  # between rows, between columns
SLOPE = 1e-5  # of the rescaling: intensities have this precision
AXIAL = (1, 0, 0, 0, 1, 0)
OBLIQUE = (0.8, 0.6, 0, -0.48, 0.64, 0.6)
GRADIENT, OFFSET = np.array([0.7, -1.3, 0.9]), 20.0


def linear(lps):
  """The intensity at LPS coordinates (..., 3)."""
  return lps @ GRADIENT + OFFSET


def positions(distances, orientation=AXIAL, tilt_deg=(0, 0)):
  """Positions of slices at distances along their normal, which move down and right as a tilted gantry does."""
  row, column = np.reshape(orientation, (2, 3))
  down, right = np.tan(np.radians(tilt_deg))
  step = np.cross(row, column) + down * column + right * row
  return np.array([-10, -20, 100]) + np.outer(distances, step)


def plane(position, orientation=AXIAL):
  """LPS coordinates (rows, columns, 3) of the pixels of a slice."""
  row, column = np.reshape(orientation, (2, 3))
  j, i = np.indices(SHAPE)[..., None]
  return position + i * SPACING[1] * row + j * SPACING[0] * column


def write_linear(folder, places, orientation=AXIAL, **changes):
  """A series of the linear function, with slices at these positions; returns the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  for n, place in enumerate(places):
    pixels = np.rint(linear(plane(place, orientation)) / SLOPE).astype(np.int32)
    place = [f'{v:.9f}' for v in place]
    about = {'RescaleSlope': SLOPE, 'RescaleIntercept': 0, 'ImagePositionPatient': place} | changes
    write_slice(folder / f'i{n:04d}.dcm', 0, pixels=pixels[None], orientation=orientation, **about)
  return folder
