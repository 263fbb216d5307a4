"""NIfTI files as bytes, with any header field overwritten."""

import struct

import nibabel as nib
import numpy as np
import pytest

from afw_jax.data.formats import volumes
from afw_jax.errors import InputError

SHAPE = (6, 5, 4)
AFFINE = np.array([[-0.8, 0, 0, 10], [0, 0.9, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(-1024, 2000, SHAPE).astype(np.int16)
# byte offsets of the NIfTI-1 header
DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET, SLOPE, INTER, UNITS = 40, 70, 72, 76, 108, 112, 116, 123
QFORM_CODE, SFORM_CODE, QUATERN, QOFFSET, SROW, MAGIC = 252, 254, 256, 268, 280, 344


def nifti(array=VOXELS, affine=AFFINE, qform=1):
  image = nib.Nifti1Image(array, affine)
  image.set_sform(affine, code=1)
  image.set_qform(affine, code=qform)
  return image.to_bytes()


def patched(*changes, data=None):
  data = bytearray(data or nifti())
  for offset, fmt, *values in changes:
    struct.pack_into('<' + fmt, data, offset, *values)
  return bytes(data)


def refused(path, data, match=None, read=volumes.read_image):
  path.write_bytes(data)
  with pytest.raises(InputError, match=match) as e:
    read(path)
  message = str(e.value)
  assert message.startswith(f'{path}: ')
  assert '\n' not in message
  assert e.value.cure
  return message
