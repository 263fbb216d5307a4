"""NRRD and MetaImage: the same voxels and geometry as SimpleITK's own NIfTI of them, both ways; and what is refused."""

import gzip
import re
import sys

import numpy as np
import pytest
from tiny_dataset import make, prepare_and_select

from afw_jax.data.formats import itk_files, scans, volumes
from afw_jax.errors import InputError

sitk = pytest.importorskip('SimpleITK')
VOXELS = np.random.default_rng(0).integers(-1000, 2000, (5, 7, 9)).astype(np.int16)
TURN = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
DIRECTIONS = {
  'plain': np.eye(3),
  'flipped': np.diag([-1.0, 1.0, -1.0]),
  'permuted': np.eye(3)[[2, 0, 1]],
  'oblique': TURN @ np.diag([1.0, -1.0, 1.0]),
}


def itk_image(array=VOXELS, direction='oblique'):
  image = sitk.GetImageFromArray(array)
  image.SetSpacing((0.7, 0.8, 2.5))
  image.SetOrigin((-100.5, 20.25, 300))
  image.SetDirection(DIRECTIONS[direction].ravel().tolist())
  return image


@pytest.mark.parametrize('ending', ['.nrrd', '.mha', '.mhd'])
@pytest.mark.parametrize('direction', DIRECTIONS)
def test_a_scan_is_read_as_from_nifti_and_its_label_map_lies_on_it(tmp_path, direction, ending):
  image, path = itk_image(direction=direction), tmp_path / f'scan{ending}'
  sitk.WriteImage(image, str(path), useCompression=direction == 'flipped')
  sitk.WriteImage(image, str(tmp_path / 'scan.nii.gz'))
  scan, reference = volumes.read_image(path), volumes.read_image(tmp_path / 'scan.nii.gz')
  np.testing.assert_array_equal(scan.array, reference.array)
  np.testing.assert_allclose(scan.geometry.internal_affine, reference.geometry.internal_affine, atol=1e-4)
  assert scan.array.dtype == np.int16 and len(scan.sha256) == 64

  written = tmp_path / f'labels{".nrrd" if ending == ".mhd" else ending}'
  volumes.write_label(written, (scan.array > 500).astype(np.uint8) * 7, scan.geometry)
  back = sitk.ReadImage(str(written))
  np.testing.assert_array_equal(sitk.GetArrayFromImage(back), (VOXELS > 500) * 7)
  for name in ('GetSpacing', 'GetOrigin', 'GetDirection'):
    np.testing.assert_allclose(getattr(back, name)(), getattr(image, name)(), atol=1e-9)
  assert volumes.check_pair(scan, volumes.read_label(written)) == []


def refused(path, match, read=volumes.read_image):
  with pytest.raises(InputError, match=match) as raised:
    read(path)
  assert str(path) in str(raised.value) and '\n' not in str(raised.value)


@pytest.mark.parametrize('ending', ['.nrrd', '.mha'])
def test_what_cannot_be_read_rightly_is_refused(tmp_path, ending):
  path = tmp_path / f'scan{ending}'
  for compressed in (False, True):
    sitk.WriteImage(itk_image(), str(path), useCompression=compressed)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    refused(path, 'damaged')
  path.write_bytes(b'\0' * 300)
  refused(path, 'no voxel size')
  key = b'space directions' if ending == '.nrrd' else b'ElementSpacing'
  path.write_bytes(whole.replace(key, b'# ' + key if ending == '.nrrd' else b'Comment'))
  refused(path, 'no voxel size')
  sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 4, 4, 3), np.float32), isVector=True), str(path))
  refused(path, '3 value')
  sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 4), np.int16)), str(path))
  refused(path, '2 dimensions')
  sitk.WriteImage(itk_image(np.full((2, 3, 4), 0.5, np.float32)), str(path))
  refused(path, 'not all integers', volumes.read_label)
  sitk.WriteImage(itk_image(np.full((2, 3, 4), np.nan, np.float32)), str(path))
  refused(path, 'NaN')


def test_the_data_of_an_mhd_count(tmp_path):
  sitk.WriteImage(itk_image(), str(tmp_path / 'scan.mhd'))
  before = volumes.read_image(tmp_path / 'scan.mhd')
  raw = tmp_path / 'scan.raw'
  raw.write_bytes(raw.read_bytes()[:-2] + b'\1\1')
  assert volumes.read_image(tmp_path / 'scan.mhd').sha256 != before.sha256
  raw.rename(tmp_path / 'other.raw')
  refused(tmp_path / 'scan.mhd', 'scan.raw is not one file beside it')


def test_without_simple_itk_the_cure_is_said(tmp_path, monkeypatch):
  sitk.WriteImage(itk_image(), str(tmp_path / 'scan.nrrd'))
  monkeypatch.setitem(sys.modules, 'SimpleITK', None)
  refused(tmp_path / 'scan.nrrd', r"pip install 'afw_jax\[itk\]'")
  with pytest.raises(InputError, match=r'^--format=mha: needs SimpleITK'):
    itk_files.simple_itk('--format=mha')


def test_they_make_a_data_set_and_are_found_for_prediction(tmp_path):
  root = make(tmp_path / 'data', n=4)
  index, expected = prepare_and_select('folder', str(root), str(tmp_path / 'nifti'))
  for path in sorted(root.glob('*/*.nii.gz')):
    volume = (volumes.read_label if path.parent.name == 'labels' else volumes.read_image)(path)
    write = volumes.write_label if path.parent.name == 'labels' else volumes.write_image
    write(path.with_name(path.name.replace('.nii.gz', '.nrrd')), volume.array, volume.geometry)
    path.unlink()
  again, selected = prepare_and_select('folder', str(root), str(tmp_path / 'nrrd'))
  assert selected.contents == expected.contents and selected.splits == expected.splits
  assert [scan.name for scan in scans.find_scans(root / 'images').scans] == ['c0', 'c1', 'c2', 'c3']


# -- compressed voxels


def compressed(path):
  """(header, voxels) of a compressed file; the header of an .mhd is empty here, and the voxels are beside it."""
  sitk.WriteImage(itk_image(), str(path), useCompression=True)
  whole = voxels_of(path).read_bytes()
  end = {'.mha': b'LOCAL\n', '.nrrd': b'\n\n'}.get(path.suffix)
  start = whole.index(end) + len(end) if end else 0
  return whole[:start], whole[start:]


def voxels_of(path):
  return path.with_suffix('.zraw') if path.suffix == '.mhd' else path


@pytest.fixture
def no_itk(monkeypatch):
  """ITK, which would never return from some of these files, must not be asked."""
  monkeypatch.delattr(sitk, 'ImageFileReader')


@pytest.mark.parametrize('ending', ['.mha', '.mhd', '.nrrd'])
@pytest.mark.parametrize(
  'damage, said',
  [
    (lambda data: b'x}' + data[2:], 'compressed voxels are damaged'),  # "needs a dictionary": ITK asks for it for ever
    (lambda data: data[:30] + b'\xff' * 40 + data[70:], 'compressed voxels are damaged'),
    (lambda data: data[: len(data) // 2], 'they end early'),
    (lambda data: b'', 'they end early'),
  ],
)
def test_damaged_compressed_voxels_are_refused_before_itk_reads_them(tmp_path, no_itk, ending, damage, said):
  path = tmp_path / f'scan{ending}'
  head, data = compressed(path)
  voxels_of(path).write_bytes(head + damage(data))
  refused(path, said)


SPELLINGS = {
  'colons': lambda head: head.replace(b' = ', b': '),
  'one colon': lambda head: head.replace(b'CompressedData =', b'CompressedData :'),
  'indented': lambda head: head.replace(b'\n', b'\n \t'),
  'no spaces': lambda head: head.replace(b' = ', b'='),
  'of Windows': lambda head: head.replace(b'\n', b'\r\n'),
  'small letters': lambda head: head.replace(b'CompressedData = True', b'CompressedData = true'),
  'a number': lambda head: head.replace(b'CompressedData = True', b'CompressedData = 1'),
  'another line': lambda head: b'0008|0005 = ISO_IR 100\n' + head,
}


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_headers_of_any_spelling_that_itk_reads(tmp_path, spelling, monkeypatch):
  path = tmp_path / 'scan.mha'
  head, data = compressed(path)
  head = SPELLINGS[spelling](head).rstrip(b' \t')
  path.write_bytes(head + data)
  np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), VOXELS)
  assert volumes.read_image(path).array.size == VOXELS.size
  path.write_bytes(head + b'x}' + data[2:])
  monkeypatch.delattr(sitk, 'ImageFileReader')
  refused(path, 'compressed voxels are damaged')


@pytest.mark.parametrize(
  'change',
  [
    lambda head: re.sub(rb'CompressedDataSize = .*\n', b'', head),
    lambda head: head.replace(b'CompressedData =', b'HeaderSize = -1\nCompressedData ='),
    lambda head: head.replace(b'DimSize = 9 7 5', b'DimSize = 9 7 4'),
  ],
)
def test_voxels_that_are_not_in_the_file_are_refused(tmp_path, change):
  """Of such files ITK returns what was in its memory, or a part."""
  path = tmp_path / 'scan.mha'
  head, data = compressed(path)
  assert change(head) != head
  path.write_bytes(change(head) + data)
  refused(path, 'ITK reads other voxels')


def test_a_field_twice_is_refused(tmp_path, no_itk):
  path = tmp_path / 'scan.mha'
  head, data = compressed(path)
  path.write_bytes(head.replace(b'CompressedData =', b'CompressedData = False\nCompressedData =') + data)
  refused(path, "'CompressedData' twice")


@pytest.mark.parametrize('ending', ['.mha', '.nrrd'])
def test_damage_anywhere_is_noticed(tmp_path, ending):
  """Also that which ITK does not see, since it stops reading before the checksum."""
  path = tmp_path / f'scan{ending}'
  head, data = compressed(path)
  expected, wrong = volumes.read_image(path).array.copy(), 0
  for seed in range(120):
    rng = np.random.default_rng(seed)
    changed, at = bytearray(data), int(rng.integers(len(data)))
    if seed % 3 == 0:
      changed[at] ^= 1 << int(rng.integers(8))
    elif seed % 3 == 1:
      changed[at:at] = rng.bytes(3)
    else:
      del changed[at]
    path.write_bytes(head + changed)
    try:
      np.testing.assert_array_equal(volumes.read_image(path).array, expected)
    except InputError:
      wrong += 1
  assert wrong > 110


def test_gzip_members_skipped_bytes_and_long_headers_of_nrrd(tmp_path):
  path = tmp_path / 'scan.nrrd'
  head, data = compressed(path)
  expected = volumes.read_image(path)
  raw = gzip.decompress(data)
  long = b''.join(b'Segment%d_Name:=organ %d of a long list\n' % (i, i) for i in range(3000))
  for change, voxels in (
    (head, gzip.compress(raw[:100]) + gzip.compress(raw[100:])),
    (head, data + b'more'),
    (head.replace(b'encoding:', b'byte skip: 70000\nencoding:'), gzip.compress(b'a' * 70000 + raw)),
    (head.replace(b'encoding:', long + b'encoding:'), data),
  ):
    path.write_bytes(change + voxels)
    found = volumes.read_image(path)
    np.testing.assert_array_equal(found.array, expected.array)
    np.testing.assert_array_equal(found.geometry.affine, expected.geometry.affine)
