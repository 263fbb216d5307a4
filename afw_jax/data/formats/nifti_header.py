"""NIfTI headers: checked before any voxel is decoded, and written as the source header had them."""

import os

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from afw_jax.data.formats.geometry import Geometry, check_affine, check_agreement, check_shape
from afw_jax.data.formats.voxels import REWRITE
from afw_jax.errors import InputError

# NIfTI datatype codes of one real number per voxel.
DTYPES = {2: 'u1', 4: 'i2', 8: 'i4', 16: 'f4', 64: 'f8', 256: 'i1', 512: 'u2', 768: 'u4', 1024: 'i8', 1280: 'u8'}
MAX_BYTES = 540  # of a header (NIfTI-2; NIfTI-1: 348)
MAX_DEFLATE_RATIO = 1100  # deflate compresses by 1032 at most
DAMAGED = 'Copy or download it again: it is incomplete or damaged.'


def parse(path: str | os.PathLike, head: bytes) -> nib.Nifti1Header:
  """Parses a header as it is in the file, without nibabel's repairs.

  Args:
    path: of the file, for errors.
    head: its first bytes, `MAX_BYTES` of them where there are so many.

  Raises:
    InputError: not a single-file NIfTI image.
  """
  for order, name in (('<', 'little'), ('>', 'big')):
    for kind, length, magic in ((nib.Nifti1Header, 348, b'n+1\0'), (nib.Nifti2Header, 540, b'n+2\0\r\n\x1a\n')):
      if len(head) >= length and int.from_bytes(head[:4], name) == length:
        if magic not in (head[344:348], head[4:12]):
          raise InputError(
            path,
            'it is not a single-file NIfTI image (Analyze, a .hdr/.img pair, or damaged)',
            'Convert it to .nii.gz.',
          )
        return kind(head[:length], endianness=order, check=False)
  raise InputError(path, 'it is not a NIfTI file', 'Give a .nii or .nii.gz image. ' + DAMAGED)


def check_type(path: str | os.PathLike, header: nib.Nifti1Header) -> np.dtype:
  """The data type of the voxels, byte order included; InputError unless it is one real number per voxel."""
  code, bits = int(header['datatype']), int(header['bitpix'])
  if code not in DTYPES:
    raise InputError(
      path,
      f'its data type (NIfTI code {code}) is not one real number per voxel (complex and RGB images are not supported)',
      'Give a greyscale scan or a label map.',
    )
  dtype = np.dtype(DTYPES[code]).newbyteorder(header.endianness)
  if bits != 8 * dtype.itemsize:
    raise InputError(path, f'its header says {bits} bits per voxel, its data type has {8 * dtype.itemsize}', REWRITE)
  return dtype


def scaling(path: str | os.PathLike, header: nib.Nifti1Header) -> tuple[float, float]:
  """(slope, intercept) of the intensities; InputError where the header leaves them undefined."""
  slope, inter = float(header['scl_slope']), float(header['scl_inter'])
  if not (np.isfinite(slope) and np.isfinite(inter)) or (slope == 0 and inter != 0):
    raise InputError(
      path,
      f'its intensity scaling is undefined (scl_slope {slope:g}, scl_inter {inter:g})',
      REWRITE,
    )
  return (slope, inter) if slope else (1.0, 0.0)  # slope 0 means "not scaled" in the standard


def check_size(path: str | os.PathLike, header: nib.Nifti1Header, n_bytes: int, file_bytes: int, is_gz: bool) -> int:
  """Offset of the first voxel in bytes; InputError if the file is too small for the voxels that its header claims."""
  offset = float(header['vox_offset'])
  first = 352 if int(header['sizeof_hdr']) == 348 else 544
  if not (np.isfinite(offset) and offset.is_integer() and offset >= first):
    raise InputError(path, f'its vox_offset is {offset:g}; it must be {first} or more', REWRITE)
  claimed = int(offset) + n_bytes
  if claimed > file_bytes * (MAX_DEFLATE_RATIO if is_gz else 1):
    raise InputError(
      path, f'its header claims {claimed} bytes, more than a file of {file_bytes} bytes can hold', DAMAGED
    )
  return int(offset)


def geometry_of(path: str | os.PathLike, header: nib.Nifti1Header) -> Geometry:
  """The voxel grid.

  Raises:
    InputError: not one 3D volume, not in mm, without an affine, or with contradicting ones.
  """
  dim = [int(n) for n in header['dim']]
  if not 3 <= dim[0] <= 7 or any(n != 1 for n in dim[4 : dim[0] + 1]):
    raise InputError(
      path,
      f'it is not one 3D volume (dim = {dim[: max(1, min(dim[0], 7)) + 1]})',
      'Split a series into 3D files; stack 2D slices into one.',
    )
  shape = tuple(dim[1:4])  # a fourth dimension of 1 is the same single volume
  check_shape(path, shape)
  pixdim = header['pixdim'][1:4].astype(np.float64)
  if not np.all(np.isfinite(pixdim)) or pixdim.min() <= 0:
    raise InputError(path, f'its voxel size (pixdim) is {pixdim.tolist()}', REWRITE)
  units = int(header['xyzt_units'])
  if units & 7 not in (0, 2):
    raise InputError(path, 'its lengths are not in mm (xyzt_units)', 'Write its geometry in mm.')
  sform_code, qform_code = int(header['sform_code']), int(header['qform_code'])
  if not (0 <= sform_code <= 5 and 0 <= qform_code <= 5) or sform_code == qform_code == 0:
    raise InputError(
      path,
      f'it has no affine (sform_code {sform_code}, qform_code {qform_code})',
      'Write it again with a valid affine: without one, left and right cannot be told apart.',
    )
  qform = _qform(path, header) if qform_code else None
  with np.errstate(invalid='ignore'):  # NaN is refused by check_affine
    affine = header.get_sform().astype(np.float64) if sform_code else qform
  check_affine(path, affine)
  check_agreement(path, affine, pixdim, qform)
  raw = [*header['pixdim'][:4], *(header[f'quatern_{n}'] for n in 'bcd'), *(header[f'qoffset_{n}'] for n in 'xyz')]
  return Geometry(
    shape=shape,
    affine=affine.tolist(),
    sform_code=sform_code,
    qform_code=qform_code,
    xyzt_units=units,
    qform=[float(v) for v in raw] if np.all(np.isfinite(raw)) else None,
  )


def header_for(dtype: np.dtype, geometry: Geometry) -> nib.Nifti1Header:
  """The header of a file with voxels of this data type on this grid; no intensity scaling."""
  header = nib.Nifti1Header()
  header.set_data_dtype(dtype)
  header.set_data_shape(geometry.shape)
  header.set_qform(np.array(geometry.affine), code=geometry.qform_code)
  if geometry.qform is not None:  # bit for bit as in the source
    header['pixdim'][:4] = geometry.qform[:4]
    for name, value in zip(
      ('quatern_b', 'quatern_c', 'quatern_d', 'qoffset_x', 'qoffset_y', 'qoffset_z'), geometry.qform[4:]
    ):
      header[name] = value
  header.set_sform(np.array(geometry.affine), code=geometry.sform_code)
  header['xyzt_units'] = geometry.xyzt_units
  header['vox_offset'], header['scl_slope'], header['scl_inter'] = 352, 1, 0
  return header


def _qform(path: str | os.PathLike, header: nib.Nifti1Header) -> np.ndarray:
  header['pixdim'][0] = header['pixdim'][0] or 1  # the standard: 0 is to be read as 1
  try:
    with np.errstate(invalid='ignore'):  # NaN is refused below
      qform = header.get_qform()
  except (HeaderDataError, ValueError) as e:
    raise InputError(path, f'its qform is invalid ({e})', REWRITE) from e
  check_affine(path, qform)
  return qform
