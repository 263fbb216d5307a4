"""Whether the files of a case are still the same: single files, folders of slices, and patterns of names."""

import os
import shutil

import pytest

from afw_jax.data.preparation import sources
from afw_jax.data.sets.case_files import CaseFiles
from afw_jax.errors import InputError


def case(folder, image='scan.nii', label='label.nii'):
  return CaseFiles('c', str(folder / image), str(folder / label))


def put(path, content, when=1_000_000_000):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)
  os.utime(path, ns=(when, when))


@pytest.fixture(params=['files', 'folder', 'pattern', 'pattern in a folder [1]'])
def files(request, tmp_path):
  """(the case, the file that is changed, and the folder of both)."""
  folder = tmp_path / (request.param if '[' in request.param else 'raw')
  put(folder / 'label.nii', b'label')
  if request.param == 'files':
    put(folder / 'scan.nii', b'scan')
    return case(folder), folder / 'scan.nii', folder
  for i in range(3):
    put(folder / 'slices' / f's_{i}.dcm', f'slice {i}'.encode())
  name = 'slices' if request.param == 'folder' else 'slices/s_*.dcm'
  return case(folder, name), folder / 'slices' / 's_1.dcm', folder


def described(one):
  return sources.stamps(one)['image'], sources.digests(one)['image']


def test_what_changes_stamps_and_digests(files):
  one, path, folder = files
  content, label = path.read_bytes(), (sources.stamps(one)['label'], sources.digests(one)['label'])
  stamp, digest = described(one)
  assert described(one) == (stamp, digest)
  put(path, content, when=2_000_000_000)  # touched
  assert described(one)[0] != stamp and described(one)[1] == digest
  put(path, content[::-1], when=2_000_000_000)  # as long as before
  assert described(one)[1] != digest
  put(path, content[::-1])
  assert described(one)[0] == stamp  # only the content tells: --mode=prepare reads it
  put(path, content + b'more')
  assert described(one)[0] != stamp and described(one)[1] != digest
  put(path, content)
  assert described(one) == (stamp, digest)
  shutil.copytree(folder, folder.parent / 'moved')  # which keeps the times
  moved = CaseFiles('c', one.image.replace(str(folder), str(folder.parent / 'moved')), one.label)
  assert described(moved) == (stamp, digest)
  assert (sources.stamps(one)['label'], sources.digests(one)['label']) == label


def test_a_slice_more_or_less_or_renamed(tmp_path):
  for i in range(3):
    put(tmp_path / 'slices' / f'{i}.dcm', b'same')
  put(tmp_path / 'label.nii', b'label')
  one, seen = case(tmp_path, 'slices'), []
  seen.append(described(one))
  (tmp_path / 'slices' / '2.dcm').rename(tmp_path / 'slices' / '3.dcm')
  seen.append(described(one))
  (tmp_path / 'slices' / '3.dcm').unlink()
  seen.append(described(one))
  assert len({stamp for stamp, _ in seen}) == len({digest for _, digest in seen}) == 3


def test_a_missing_file(tmp_path):
  put(tmp_path / 'scan.nii', b'scan')
  for call in (sources.stamps, sources.digests):
    with pytest.raises(InputError, match='label.nii: no such file'):
      call(case(tmp_path))
