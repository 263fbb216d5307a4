"""Which files of a folder are the channels of a scan to predict."""

import pytest

from afw_jax.data.formats.scans import Scan, find_scans
from afw_jax.data.sets.channels import Channel
from afw_jax.errors import InputError, InputErrors
from afw_jax.inference import outputs
from afw_jax.inference.channel_input import grouped

TWO = (Channel(0, 'CT', True), Channel(1, 'PET', False))


def put(folder, *names):
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(name.encode())


def found(source, channels=TWO):
  return grouped(find_scans(source).scans, channels, str(source))


def test_scans_at_any_depth_are_named_without_their_channel(tmp_path):
  put(tmp_path, 'b_0001.nii', 'p/a_0001.nii.gz', 'p/a_0000.nii.gz', 'b_0000.nii.gz', 'q/a_0000.mha', 'q/a_0001.mha')
  scans = found(tmp_path)
  assert [scan.name for scan in scans] == ['b', 'p/a', 'q/a']
  assert scans[0] == Scan('b', f'{tmp_path}/b_0000.nii.gz', (), (f'{tmp_path}/b_0001.nii',))
  one = found(tmp_path, TWO[:1])
  assert len(one) == 6 and not any(scan.others for scan in one)  # a network of one channel takes each file for a scan


@pytest.mark.parametrize('given', ['a_0000.nii.gz', 'a_0001.nii'])
def test_a_file_brings_the_other_channels_beside_it(tmp_path, given):
  put(tmp_path, 'a_0000.nii.gz', 'a_0001.nii', 'b_0000.nii.gz', 'a_0002.txt')
  (scan,) = found(tmp_path / given)
  assert scan == Scan('a', f'{tmp_path}/a_0000.nii.gz', (), (f'{tmp_path}/a_0001.nii',))


@pytest.mark.parametrize(
  'names, said',
  [
    (['a_0000.nii'], r'a_0000.nii: has no channel 1 \(PET\): there is no a_0001 beside it'),
    (['p/a_0001.nii', 'a_0000.nii'], r'(?s)has no channel 1 .*p/a_0001.nii: has no channel 0'),
    (['a_0000.nii', 'a_0001.nii', 'a_0002.nii'], r'a_0002.nii: is channel 2 of case a'),
    (['a_0000.nii', 'a_0000.nii.gz', 'a_0001.nii'], r'channel 0 of case a exists twice'),
    (['a.nii'], r'a.nii: does not say which channel it is. Name it a_0000, a_0001'),
  ],
)
def test_missing_surplus_and_other_files_are_named(tmp_path, names, said):
  put(tmp_path, *names)
  with pytest.raises((InputError, InputErrors), match=said):
    found(tmp_path)
  if len(names) == 1:
    with pytest.raises(InputError, match=said):
      found(tmp_path / names[0])


def test_dicom_is_refused_with_a_cure():
  with pytest.raises(InputError, match='ct: is a DICOM series, and the network takes 2 channels. Convert each channel'):
    grouped([Scan('a', 'ct', ('1.dcm', '2.dcm'))], TWO, 'ct')


def test_a_change_of_any_channel_makes_the_label_map_again(tmp_path):
  put(tmp_path, 'a_0000.nii', 'a_0001.nii')
  (scan,) = found(tmp_path)
  before = outputs.stamp(scan), outputs.size(scan), outputs._digest(scan)
  (tmp_path / 'a_0001.nii').write_bytes(b'other')
  after = outputs.stamp(scan), outputs.size(scan), outputs._digest(scan)
  assert all(a != b for a, b in zip(before, after)) and before[1] == 2 * len('a_0000.nii')
