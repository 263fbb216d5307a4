"""Scans unlike those of the training: on the terminal, in volumes.json, in the scores and in the report."""

import json
import logging
import shutil

import ml_collections
import nibabel as nib
import numpy as np

from afw_jax import evaluate, predict
from afw_jax.data.formats import volumes
from afw_jax.report import report


def test_predicting_names_what_is_unusual(trained, phantoms, run_main, tmp_path):
  source = nib.load(next((phantoms / 'imagesTs').iterdir()))
  hu = np.asarray(source.dataobj)
  (tmp_path / 'scans').mkdir()
  for name, array in {'as_it_is': hu, 'raised': hu + 1024, 'constant': np.full_like(hu, 50)}.items():
    nib.save(nib.Nifti1Image(array.astype(np.int16), source.affine), tmp_path / 'scans' / f'{name}.nii.gz')
  done = run_main(
    '--mode=predict', f'--workdir={trained}', f'--input={tmp_path / "scans"}', f'--output={tmp_path / "out"}'
  )
  scans = json.loads((tmp_path / 'out' / 'volumes.json').read_text(encoding='utf-8'))['scans']
  notes = {row['scan']: row['notes'] for row in scans}
  assert notes['as_it_is'] == [] and notes['constant'] == ['every voxel of the scan has the value 50']
  assert 'no value below 0' in notes['raised'][0] and any('unlike' in note for note in notes['raised'])
  assert all(f'{name}: {note}' in done.stderr for name, found in notes.items() for note in found)
  assert 'as_it_is:' not in done.stderr


def test_a_checkpoint_without_the_record_still_predicts(trained, phantoms):
  network = predict.load(str(trained))
  assert network.meta['data']['usual']['intensities']['percentiles']
  network.meta['data'].pop('usual')
  scan = volumes.read_image(next((phantoms / 'imagesTs').iterdir()))
  assert predict.scan_notes(network, scan) == []
  assert predict.predict_volume(network, scan)[0].shape == scan.array.shape


def test_evaluating_and_reporting_name_what_is_unusual(trained, tmp_path, monkeypatch, caplog):
  before = [json.loads(path.read_text(encoding='utf-8')) for path in (trained / 'cases').glob('*.json')]
  assert [record['notes'] for record in before] == [[], []]
  assert 'Unusual' not in (trained / 'report' / 'report.md').read_text(encoding='utf-8')
  workdir = tmp_path / 'run'
  shutil.copytree(trained, workdir)
  network = predict.load(str(workdir))
  network.meta['data']['usual']['intensities']['minimum'] = [-3000, -2000]  # as if trained on other scans
  monkeypatch.setattr(predict, 'load', lambda *_, **__: network)
  config = ml_collections.ConfigDict(json.loads((workdir / 'config.json').read_text(encoding='utf-8')))
  config.eval.num_pictures = 0
  with caplog.at_level(logging.WARNING, 'afw_jax'):
    evaluate.evaluate(config, str(workdir), str(next((trained.parent / 'stores').iterdir())))
  report.report(str(workdir))
  text = (workdir / 'report' / 'report.md').read_text(encoding='utf-8')
  for record in before:
    scored = json.loads((workdir / 'cases' / f'{record["case"]}.json').read_text(encoding='utf-8'))
    assert scored['scores'] == record['scores'] and 'its lowest intensity is -1024' in scored['notes'][0]
    assert f'- {record["case"]}: {scored["notes"][0]}' in text and f'{record["case"]}: its lowest' in caplog.text
