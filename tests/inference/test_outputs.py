"""Where label maps go, and the names of their files."""

import os

import pytest

from afw_jax.data.formats.scans import Scan
from afw_jax.errors import InputError
from afw_jax.inference import outputs


@pytest.mark.parametrize('name', ['a.nii.gz', 'a.nii', 'A.NII.GZ', 'new/a.b.nii.gz'])
def test_a_file_for_one_scan(tmp_path, name):
  path = str(tmp_path / name)
  assert outputs.destination(path) == (os.path.dirname(path), True)


@pytest.mark.parametrize('name', ['new', 'new/labels', 'run_1.5mm', '.hidden', 'out.v2/', 'old.v2', 'labels.nii.gz'])
def test_a_folder(tmp_path, name):
  for old in ('old.v2', 'labels.nii.gz'):
    (tmp_path / old).mkdir()
  assert outputs.destination(f'{tmp_path}/{name}') == (f'{tmp_path}/{name}', False)


@pytest.mark.parametrize('name', ['a.nrrd', 'a.nii.gzz', 'a.dcm', 'a.gz', 'a.nii.gz.tmp', 'out.v2', 'file'])
def test_another_ending_is_refused_and_nothing_is_made(tmp_path, name):
  (tmp_path / 'file').touch()
  with pytest.raises(InputError, match=name):
    outputs.destination(f'{tmp_path}/{name}')
  assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_names_of_label_maps_and_probabilities():
  assert outputs.label_path('out', Scan('p 1/ct/b.v2', '')) == 'out/p 1/ct/b.v2.nii.gz'
  assert len(os.path.basename(outputs.label_path('out', Scan('é' * 126, ''))).encode()) <= 255
  found = outputs.probability_paths('out/a.NII.gz', ['liver', 'prostate/uterus', 'x' * 300, 'Liver'])
  assert found['prostate/uterus'] == 'out/a_probability_prostate%2Futerus.nii.gz'
  assert len({path.casefold() for path in found.values()}) == 4
  long = outputs.probability_paths(f'{"s" * 240}.nii.gz', ['liver', 'spleen', 'y' * 300])
  assert len(set(long.values())) == 3 and max(len(path) for path in long.values()) <= 255
