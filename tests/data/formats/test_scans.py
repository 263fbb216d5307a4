"""Finding the scans below a path."""

import pytest

from afw_jax.data.formats import scans
from afw_jax.errors import InputError


def series(folder):
  folder.mkdir(parents=True)
  (folder / 'notes.txt').write_text('short')
  (folder / 'IM0001').write_bytes(bytes(128) + b'DICM' + bytes(10))


def test_nifti_files_and_dicom_folders_side_by_side(tmp_path):
  for name in ('b.nii.gz', 'd.nii', 'volumes.csv', '.hidden.nii'):
    (tmp_path / name).touch()
  for name in ('a', 'c'):
    series(tmp_path / name)
  (tmp_path / 'results').mkdir()
  (tmp_path / 'results' / 'b.nii.gz').write_bytes(bytes(200))
  assert scans.find_scans(str(tmp_path)) == {
    'a': f'{tmp_path}/a',
    'b': f'{tmp_path}/b.nii.gz',
    'c': f'{tmp_path}/c',
    'd': f'{tmp_path}/d.nii',
  }


def test_one_scan_and_folders_of_one_kind(tmp_path):
  series(tmp_path / 'both' / 'one')
  series(tmp_path / 'both' / 'two')
  assert list(scans.find_scans(str(tmp_path / 'both'))) == ['one', 'two']
  assert scans.find_scans(str(tmp_path / 'both' / 'one')) == {'one': f'{tmp_path}/both/one'}


def test_two_scans_of_one_name(tmp_path):
  series(tmp_path / 'a')
  (tmp_path / 'a.nii').touch()
  with pytest.raises(InputError, match='two scans are named a'):
    scans.find_scans(str(tmp_path))
