"""Writes small DICOM series and CHAOS masks for the tests."""

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from afw_jax.data.formats import volumes
from afw_jax.errors import InputError

N, ROWS, COLUMNS = 5, 6, 4
SERIES = '1.2.3.4'
RAW = np.random.default_rng(0).integers(0, 3000, (N, ROWS, COLUMNS)).astype(np.uint16)  # by position, lowest first
GREYS = np.array([0, 63, 126, 189, 252], np.uint8)
MASKS = GREYS[np.random.default_rng(1).integers(0, 5, (N, ROWS, COLUMNS))]


def write_slice(
  path, n, *, pixels=RAW, orientation=(1, 0, 0, 0, 1, 0), step=(0, 0, 2.5), syntax=ExplicitVRLittleEndian, **changes
):
  """The file of slice n (by position); a change to None removes the element, `_element` is added as it is."""
  meta = FileMetaDataset()
  meta.TransferSyntaxUID = syntax
  meta.MediaStorageSOPClassUID = CTImageStorage
  meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path), str(n)])
  ds = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
  array = pixels[n]
  ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CTImageStorage, meta.MediaStorageSOPInstanceUID, 'CT'
  ds.SeriesInstanceUID, ds.InstanceNumber = SERIES, n + 1
  ds.SliceThickness = 9  # not the spacing: it must not be used
  ds.Rows, ds.Columns = array.shape
  ds.PixelSpacing = [0.75, 0.5]  # between rows, between columns
  ds.ImageOrientationPatient = list(orientation)
  ds.ImagePositionPatient = [round(float(v), 6) for v in np.array([-10, -20, 100.0]) + n * np.array(step)]
  ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, 'MONOCHROME2'
  ds.BitsAllocated = ds.BitsStored = array.dtype.itemsize * 8
  ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(array.dtype.kind == 'i')
  ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
  ds.PixelData = array.tobytes()
  for name, value in changes.items():
    if name == '_element':  # of any type
      ds[value.tag] = value
    elif value is None:
      delattr(ds, name)
    else:
      setattr(ds, name, value)
  ds.save_as(path, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)


def write_series(folder, names=tuple(f'i{n:04d}.dcm' for n in range(N)), **options):
  folder.mkdir(parents=True, exist_ok=True)
  for n, name in enumerate(names):
    write_slice(folder / name, n, **options)
  return folder


def write_masks(folder, names=tuple(f'liver_GT_{n:03d}.png' for n in range(N)), masks=MASKS):
  folder.mkdir(parents=True, exist_ok=True)
  for name, mask in zip(names, masks):
    Image.fromarray(mask).save(folder / name)
  return folder


def refused(folder, match, read=volumes.read_image, **options):
  with pytest.raises(InputError, match=match) as e:
    read(folder, **options)
  assert str(folder) in str(e.value)
  assert '\n' not in str(e.value)
