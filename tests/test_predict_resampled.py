"""--resample_dicom as a whole: uneven slices are refused without it, and predicted on an even grid with it."""

import json

import numpy as np
import pytest
from dicom_series import write_series
from uneven_dicom import positions, write_linear

from afw_jax import predict
from afw_jax.data.formats import volumes
from afw_jax.report.page import sources


@pytest.fixture
def scans(tmp_path):
  """A tilted series and an even one."""
  write_linear(tmp_path / 'in' / 'tilted', positions(np.arange(6) * 2.5, tilt_deg=(15, 0)))
  write_series(tmp_path / 'in' / 'even')
  return tmp_path / 'in'


def test_on_the_command_line(run_main, trained, scans, tmp_path):
  arguments = ('--mode=predict', f'--workdir={trained}', f'--input={scans}', f'--output={tmp_path}/out')
  done = run_main(*arguments, check=2)
  assert '--resample_dicom interpolates it to an even grid' in done.stderr.splitlines()[-1]
  done = run_main(*arguments, '--resample_dicom', '--page')
  assert 'tilted: its slices, 2.5 mm apart and stacked 15.0 degrees off their normal, were interpolated' in done.stderr
  content = json.loads((tmp_path / 'out' / 'volumes.json').read_text(encoding='utf-8'))
  notes = {row['scan']: ' '.join(row['notes']) for row in content['scans']}
  assert 'interpolated' in notes['tilted'] and 'interpolated' not in notes['even']
  labels = volumes.read_label(tmp_path / 'out' / 'tilted.nii.gz')
  scan = volumes.read_image(scans / 'tilted', resample_dicom=True)
  assert volumes.check_pair(scan, labels) == []
  # What is there is known again, though no slice has changed but its time.
  next((scans / 'tilted').iterdir()).touch()
  assert '2 of 2 scans have their label map already' in run_main(*arguments).stderr
  done = run_main(*arguments, '--resample_dicom', '--format=dicom_seg', check=2)
  assert 'was resampled to an even grid (--resample_dicom)' in done.stderr


def test_the_page_shows_the_grid_of_the_label_map(trained, scans, tmp_path):
  predict.predict_all(trained, scans, tmp_path / 'out', resample_dicom=True)
  source = sources.of_predictions(str(tmp_path / 'out'))
  scan = volumes.read_image(scans / 'tilted', resample_dicom=True)
  np.testing.assert_array_equal(source.load(source.names.index('tilted'), True).image, scan.array)


def test_other_modes_do_not_take_it(run_main, tmp_path):
  done = run_main('--mode=train', '--config=demo', '--resample_dicom', f'--workdir={tmp_path}/run', check=2)
  assert '--resample_dicom: is an option of --mode=predict, check and prepare' in done.stderr
