"""Finding the scans below a path, and saying what is passed over."""

import os

import dicom_series
import numpy as np
import pydicom
import pytest
from nifti_bytes import nifti

from afw_jax.data.formats import scans, volumes
from afw_jax.errors import InputError


def found(root, **options):
  """(name -> path below the root, path below the root -> reason) of what is found."""
  result = scans.find_scans(root, **options)
  below = lambda path: os.path.relpath(path, root)
  return {s.name: below(s.path) for s in result.scans}, {below(p.path): p.reason for p in result.passed_over}


def touch(folder, *names, content=b'x'):
  folder.mkdir(parents=True, exist_ok=True)
  for name in names:
    (folder / name).write_bytes(content)


def test_files_and_series_at_any_depth_with_endings_in_any_case(tmp_path):
  touch(tmp_path, 'b.nii.gz', 'D.NII', 'C.Nii.Gz', 'case0001.npy.h5')
  touch(tmp_path / 'p1' / 'ct', 'b.NII.GZ')
  dicom_series.write_series(tmp_path / 'p2' / 'study' / 'DICOM')
  (tmp_path / 'empty' / 'too').mkdir(parents=True)
  wanted = {
    'C': 'C.Nii.Gz',
    'D': 'D.NII',
    'b': 'b.nii.gz',
    'case0001': 'case0001.npy.h5',
    'p1/ct/b': 'p1/ct/b.NII.GZ',
    'p2/study/DICOM': 'p2/study/DICOM',
  }
  assert found(tmp_path) == (wanted, {})


def test_one_scan_by_its_path(tmp_path):
  touch(tmp_path, 'a.nii.gz')
  dicom_series.write_series(tmp_path / 's')
  assert found(tmp_path / 'a.nii.gz')[0] == {'a': '.'} and found(tmp_path / 's')[0] == {'s': '.'}


def test_what_is_no_scan_is_no_noise(tmp_path):
  touch(tmp_path, 'a.nii.gz')
  touch(tmp_path, 'metadata.csv', 'README', 'README.md', 'x.json', '.DS_Store', '.b.nii.gz', '._a.nii.gz', 'DICOMDIR')
  touch(tmp_path / '.git', 'c.nii.gz')
  touch(tmp_path / '__MACOSX', 'd.nii.gz')
  (tmp_path / 'done').touch()
  assert found(tmp_path) == ({'a': 'a.nii.gz'}, {})


@pytest.mark.parametrize(
  'name, reason',
  [
    ('x.nhdr', 'NRRD in two files'),
    ('x.SEG.NRRD', '3D Slicer'),
    ('x.mgz', 'FreeSurfer'),
    ('x.img', 'Analyze'),
    ('x.nii.bz2', 'archive'),
    ('x.tar.gz', 'archive'),
    ('x.dat', 'neither NIfTI nor DICOM'),
    ('x', 'neither NIfTI nor DICOM'),
    ('x.dcm', 'damaged DICOM'),
  ],
)
def test_what_might_be_a_scan_is_passed_over_with_the_reason(tmp_path, name, reason):
  touch(tmp_path, 'a.nii.gz')
  touch(tmp_path / 'sub', name, content=b'\0\1\2')
  names, passed = found(tmp_path)
  assert names == {'a': 'a.nii.gz'} and list(passed) == [f'sub/{name}'] and reason in passed[f'sub/{name}']
  with pytest.raises(InputError, match=r'no scan.*' + reason):
    scans.find_scans(tmp_path / 'sub')


def without_preamble(folder):
  for path in folder.iterdir():
    path.write_bytes(path.read_bytes()[132:])


def without_meta(folder):
  """Raw elements, as old archives have them: neither a preamble nor a transfer syntax."""
  for path in folder.iterdir():
    data = pydicom.dcmread(path)
    data.file_meta, data.preamble = pydicom.dataset.FileMetaDataset(), None
    pydicom.dcmwrite(path, data, implicit_vr=True, little_endian=True, enforce_file_format=False)


@pytest.mark.parametrize('change', [without_preamble, without_meta])
def test_dicom_without_preamble_or_ending(tmp_path, change):
  whole = volumes.read_image(dicom_series.write_series(tmp_path / 'whole'))
  change(dicom_series.write_series(tmp_path / 'in' / 's', names=[f'IM{n}' for n in range(dicom_series.N)]))
  (scan,) = scans.find_scans(tmp_path / 'in').scans
  image = volumes.read_image(scan.path, scan.files)
  np.testing.assert_array_equal(image.array, whole.array)
  assert scan.name == 's' and image.geometry.affine == whole.geometry.affine


def test_several_series_in_one_folder_and_what_lies_beside_them(tmp_path):
  p = tmp_path / 'in' / 'p'
  write = lambda letter, **changes: dicom_series.write_series(
    p, names=[f'{letter}{n}.dcm' for n in range(5)], **changes
  )
  write('a', SeriesNumber=2, SeriesDescription='portal/venous')
  write('b', SeriesInstanceUID='1.9', SeriesNumber=3, RescaleIntercept=-1000)
  write('c', SeriesInstanceUID='1.10', SeriesNumber=3)
  dicom_series.write_slice(p / 'one.dcm', 0, SeriesInstanceUID='1.7')
  dicom_series.write_slice(p / 'scout.dcm', 1, ImageType=['ORIGINAL', 'PRIMARY', 'LOCALIZER'])
  dicom_series.write_slice(p / 'shot.dcm', 0, SOPClassUID='1.2.840.10008.5.1.4.1.1.7')
  dicom_series.write_slice(p / 'report.dcm', 0, Modality='SR')
  touch(p, 'torn.dcm')
  result = scans.find_scans(tmp_path / 'in')
  names = [s.name for s in result.scans]
  assert names == ['p/series_2_portal%2Fvenous', 'p/series_3_1.10', 'p/series_3_1.9']
  lows = [int(volumes.read_image(s.path, s.files).array.min()) for s in result.scans]
  assert lows[0] == lows[1] == lows[2] - 24
  reasons = {os.path.basename(e.path): e.reason for e in result.passed_over}
  assert set(reasons) == {'one.dcm', 'scout.dcm', 'shot.dcm', 'report.dcm', 'torn.dcm'}
  assert 'one slice' in reasons['one.dcm'] and 'localiser' in reasons['scout.dcm'] and 'SR' in reasons['report.dcm']


def short_rows(data):
  """Rows of three bytes, which pydicom decodes when they are asked for."""
  at = data.index(b'\x28\x00\x10\x00US')
  return data[:at] + b'\x28\x00\x10\x00US\x03\x00\x04\x00\x00' + data[at + 10 :]


def unknown_type(data):
  """A value representation that does not exist."""
  return data.replace(b'\x08\x00\x60\x00CS', b'\x08\x00\x60\x00ZZ')


@pytest.mark.parametrize(
  'damage', [lambda data: b'', lambda data: data[:140], lambda data: data[:-50], short_rows, unknown_type]
)
def test_a_damaged_slice_of_a_series_is_not_left_out(tmp_path, damage):
  names = [f'IM{n}' for n in range(dicom_series.N)]
  folder = dicom_series.write_series(tmp_path / 'in' / 's', names=names)
  (folder / 'IM4').write_bytes(damage((folder / 'IM4').read_bytes()))
  touch(folder, 'notes.txt', 'README')
  (scan,) = scans.find_scans(tmp_path / 'in').scans
  assert scan.files == tuple(names)
  with pytest.raises(InputError, match='IM4'):
    volumes.read_image(scan.path, scan.files)


def test_names_that_a_label_map_cannot_share_are_told_apart(tmp_path):
  touch(tmp_path, 'a.nii', 'a.nii.gz', 'B.nii', 'b.nii', 'c.nii')
  touch(tmp_path / 'x', 'a.nii')
  touch(tmp_path / 'y', 'a.nii')
  dicom_series.write_series(tmp_path / 'a')
  names, _ = found(tmp_path)
  assert len(names) == 8 and {'c', 'x/a', 'y/a'} <= set(names)
  assert len({name.casefold() for name in names}) == 8 and sum(name.startswith('a~') for name in names) == 3


def test_links_loops_and_pipes(tmp_path):
  touch(tmp_path / 'in' / 'z', 'a.nii.gz')
  touch(tmp_path / 'other', 'b.nii.gz')
  for link, target in (('in/loop', 'in'), ('in/again', 'in/z'), ('in/other', 'other'), ('in/gone.nii.gz', 'no')):
    (tmp_path / link).symlink_to(tmp_path / target)
  (tmp_path / 'in' / 'self').symlink_to('self')
  os.mkfifo(tmp_path / 'in' / 'pipe')
  names, passed = found(tmp_path / 'in')
  assert set(names) == {'z/a', 'other/b', 'gone'}  # the broken link fails when it is read
  assert set(passed) == {'loop', 'again', 'self'} and 'the same folder' in passed['again']


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
  touch(tmp_path, 'a.nii.gz')
  touch(tmp_path / 'locked', 'b.nii.gz')
  scandir = os.scandir

  def refuse(path):
    if os.fspath(path).endswith('locked'):
      raise PermissionError(13, 'Permission denied')
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  names, passed = found(tmp_path)
  assert names == {'a': 'a.nii.gz'} and 'Permission denied' in passed['locked']
  with pytest.raises(InputError, match='Permission denied'):
    scans.find_scans(tmp_path / 'locked')


def test_label_maps_of_earlier_predictions_are_no_scans(tmp_path):
  touch(tmp_path, 'a.nii', 'a.nii.gz', content=nifti())
  touch(tmp_path / 'out' / 'p', 'b.nii.gz')
  written = lambda folder: {os.path.join(folder, 'a.nii.gz'), os.path.join(folder, 'p', 'b.nii.gz')}
  assert found(tmp_path, written=written) == ({'a': 'a.nii'}, {})


@pytest.mark.parametrize('make', [lambda path: None, lambda path: path.mkdir()])
def test_no_scan_at_all(tmp_path, make):
  make(tmp_path / 'x')
  with pytest.raises(InputError, match='does not exist|no scan was found'):
    scans.find_scans(tmp_path / 'x')
