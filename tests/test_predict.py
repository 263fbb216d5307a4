"""--mode=predict and its Python call: which scans, where to, and what it says about the rest."""

import csv
import json
import pathlib
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, command, environment

from afw_jax import predict
from afw_jax.errors import InputError, InputErrors


@pytest.fixture
def scans(phantoms, tmp_path):
  """Two scans, one of them deeper, a broken one, and what is not a scan."""
  folder = tmp_path / 'scans [1]'
  (folder / 'p1' / 'ct').mkdir(parents=True)
  shutil.copy(phantoms / 'imagesTs' / 'new_000.nii.gz', folder / 'A.NII.GZ')
  shutil.copy(phantoms / 'imagesTs' / 'new_000.nii.gz', folder / 'p1' / 'ct' / 'a.nii.gz')
  (folder / 'b.nii.gz').write_bytes((folder / 'A.NII.GZ').read_bytes()[:-30])
  (folder / 'c.nhdr').write_bytes(b'NRRD')
  (folder / 'metadata.csv').write_text('patient,age\n', encoding='utf-8')
  return folder


def test_a_folder_with_all_sorts_of_things(run_main, trained, scans, tmp_path):
  arguments = ('--mode=predict', f'--workdir={trained}', f'--input={scans}', f'--output={tmp_path}/out')
  done = run_main(*arguments, check=2)
  assert 'b.nii.gz' in done.stderr.splitlines()[-1] and 'c.nhdr' in done.stdout and 'metadata' not in done.stdout
  content = json.loads((tmp_path / 'out' / 'volumes.json').read_text(encoding='utf-8'))
  assert [row['output'] for row in content['scans']] == ['A.nii.gz', 'p1/ct/a.nii.gz']
  assert [f['scan'] for f in content['failed']] == ['b'] and 'NRRD' in content['passed_over'][0]['reason']
  (scans / 'b.nii.gz').unlink()
  done = run_main(*arguments)
  assert '2 of 2 scans have their label map already' in done.stderr
  done = run_main(*arguments, '--strict', check=2)
  assert '--strict' in done.stderr.splitlines()[-1]


def test_outputs_that_are_no_label_maps_are_refused_first(run_main, tmp_path):
  done = run_main('--mode=predict', '--workdir=none', '--input=none', f'--output={tmp_path}/x.mha', check=2)
  assert '.mha' in done.stderr and not list(tmp_path.iterdir())


def test_paths_of_pathlib_and_errors_of_single_scans(trained, scans, tmp_path):
  shutil.copy(scans / 'b.nii.gz', scans / 'bb.nii.gz')
  with pytest.raises(InputErrors, match=r'bb\.nii\.gz'):
    predict.predict(trained, scans, tmp_path / 'out')
  (scans / 'bb.nii.gz').unlink()
  with pytest.raises(InputError, match=r'b\.nii\.gz'):
    predict.predict(trained, scans, tmp_path / 'out')
  outcome = predict.predict_all(trained, scans, tmp_path / 'out')
  assert [row['scan'] for row in outcome.rows] == ['A', 'p1/ct/a'] and outcome.skipped == 2
  assert len(outcome.failed) == len(outcome.passed_over) == 1
  (row,) = predict.predict(pathlib.Path(trained), scans / 'A.NII.GZ', tmp_path / 'one' / 'l.nii', which='last')
  assert row['output'] == str(tmp_path / 'one' / 'l.nii') and nib.load(row['output']).shape


def test_a_loop_over_scans_keeps_all_rows(trained, phantoms, tmp_path):
  paths = sorted((phantoms / 'images').glob('*.nii.gz'))[:3]
  for path in paths:
    (row,) = predict.predict(trained, path, tmp_path / 'out' / f'label_{path.name}')
  with open(tmp_path / 'out' / 'volumes.csv', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  assert [r['scan'] for r in rows] == [path.name.removesuffix('.nii.gz') for path in paths]
  assert float(rows[-1]['liver_ml']) == row['volume_ml']['liver']


def test_relative_paths(trained, phantoms, tmp_path, monkeypatch):
  shutil.copy(phantoms / 'imagesTs' / 'new_000.nii.gz', tmp_path / 'a.nii.gz')
  monkeypatch.chdir(tmp_path)
  for output in ('label.nii.gz', 'label.nii.gz', 'L.NII.GZ', 'out/'):
    (row,) = predict.predict(trained, 'a.nii.gz', output)
    assert row['output'] == ('out/a.nii.gz' if output == 'out/' else output) and pathlib.Path(row['output']).exists()


def test_the_output_in_the_folder_of_the_scans(trained, phantoms, tmp_path):
  scan = nib.load(phantoms / 'imagesTs' / 'new_000.nii.gz')
  nib.save(nib.Nifti1Image(np.asarray(scan.dataobj), scan.affine, scan.header), tmp_path / 'a.nii')
  for _ in range(2):  # the label map of the first time is not a scan
    assert [row['scan'] for row in predict.predict(trained, tmp_path, tmp_path)] == ['a']
  assert {p.name for p in tmp_path.glob('*.nii*')} == {'a.nii', 'a.nii.gz'}


@pytest.mark.parametrize('closed', ['2>&-', '<&- >&- 2>&-'])
def test_without_standard_streams(trained, phantoms, tmp_path, closed):
  arguments = command(
    '--mode=predict', f'--workdir={trained}', f'--input={phantoms}/imagesTs', f'--output={tmp_path}/o'
  )
  subprocess.run(
    ['bash', '-c', f'exec "$@" {closed}', 'bash', *arguments], cwd=ROOT, env=environment(), check=True, timeout=300
  )
  assert (tmp_path / 'o' / 'new_000.nii.gz').exists()
