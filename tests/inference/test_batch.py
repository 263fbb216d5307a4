"""Many scans: broken ones, finished ones, files in the way, and a machine at its end."""

import dataclasses
import datetime
import errno
import os
import shutil

import dicom_series
import jax
import numpy as np
import pytest
from batch_jobs import IDS, SHAPE, run, tables
from tiny_dataset import geometry, scan

from afw_jax.data.formats import volumes
from afw_jax.data.formats.scans import Scan
from afw_jax.data.sets.channels import Channel
from afw_jax.errors import InputError
from afw_jax.inference import outputs, record


@pytest.fixture
def scans(tmp_path):
  for name in ('a', 'b', 'c'):
    volumes.write_image(tmp_path / 'in' / f'{name}.nii.gz', scan(ord(name), SHAPE), geometry(SHAPE))
  return tmp_path / 'in'


@pytest.fixture(autouse=True)
def folder(tmp_path):
  (tmp_path / 'in').mkdir()
  return tmp_path / 'out'


def test_the_tables_and_the_names(scans, folder):
  outcome, _ = run(scans, folder, probabilities=True)
  assert [row['scan'] for row in outcome.rows] == ['a', 'b', 'c'] and outcome.failed == []
  image = volumes.read_image(scans / 'a.nii.gz')
  ml = (image.array > 100).sum() * np.prod(image.spacing_mm) / 1000
  assert outcome.rows[0]['volume_ml'] == {'liver': pytest.approx(ml, abs=1e-3), 'prostate/uterus': 0}
  content, rows = tables(folder)
  assert content['organs'] == list(IDS) and content['scans'][0]['label_ids'] == IDS
  assert [row['prostate/uterus_ml'] for row in rows] == ['0.0'] * 3 and rows[2]['label_map'] == 'c.nii.gz'
  assert 'runs/x' in rows[0]['checkpoint']
  names = {p.name for p in folder.iterdir() if not p.name.startswith('.')} - {'volumes.csv', 'volumes.json'}
  ends = ('.nii.gz', '_probability_liver.nii.gz', '_probability_prostate%2Futerus.nii.gz')
  assert names == {f'{name}{end}' for name in 'abc' for end in ends}


def test_a_row_says_what_it_was_made_of_and_when_and_measures_the_organs(scans, folder):
  began = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
  run(scans, folder, measured=Channel(None, '', False))
  row = tables(folder)[0]['scans'][0]
  image = volumes.read_image(scans / 'a.nii.gz')
  inside = image.array[image.array > 100]
  assert row['bytes'] == (scans / 'a.nii.gz').stat().st_size and len(row['sha256']) == 64
  assert began <= datetime.datetime.fromisoformat(row['made_at']) <= datetime.datetime.now(datetime.UTC)
  assert 0 <= row['seconds'] < 60 and row['intensity_unit'] == 'raw'
  assert row['statistics']['liver']['mean'] == pytest.approx(inside.mean(), abs=1e-3)
  assert row['statistics']['liver']['voxels'] == inside.size and row['statistics']['prostate/uterus']['voxels'] == 0


def test_a_broken_scan_does_not_end_the_others_and_is_tried_again(scans, folder):
  whole = (scans / 'b.nii.gz').read_bytes()
  (scans / 'b.nii.gz').write_bytes(whole[:-20])
  outcome, segmented = run(scans, folder)
  assert segmented == ['a', 'c'] and 'b.nii.gz' in str(outcome.failed[0]) and len(outcome.failed) == 1
  content, rows = tables(folder)
  assert [row['scan'] for row in rows] == ['a', 'c'] and content['failed'][0]['scan'] == 'b'
  assert 'b.nii.gz' in content['failed'][0]['problem']
  (scans / 'b.nii.gz').write_bytes(whole)
  outcome, segmented = run(scans, folder)
  assert segmented == ['b'] and outcome.failed == [] and outcome.skipped == 2
  content, rows = tables(folder)
  assert [row['scan'] for row in rows] == ['a', 'b', 'c'] == [row['scan'] for row in outcome.rows]
  assert content['failed'] == []


def test_what_a_library_raises_on_one_scan_is_a_failure_of_that_scan(scans, folder, monkeypatch):
  read = volumes.read_image
  broken = lambda path, *a, **k: [][1] if path.endswith('b.nii.gz') else read(path, *a, **k)
  monkeypatch.setattr(volumes, 'read_image', broken)
  outcome, segmented = run(scans, folder)
  assert segmented == ['a', 'c'] and 'IndexError' in str(outcome.failed[0])


@pytest.mark.parametrize(
  'change', ['nothing', 'touched', 'moved', 'scan', 'checkpoint', 'options', 'files', 'overwrite']
)
def test_what_is_made_again(scans, folder, change):
  run(scans, folder)
  options, expected = {}, []
  if change == 'touched':  # another time, the same content
    os.utime(scans / 'b.nii.gz', (1, 1))
  elif change == 'moved':
    scans = scans.rename(scans.with_name('moved'))
  elif change == 'scan':
    volumes.write_image(scans / 'b.nii.gz', scan(77, SHAPE), geometry(SHAPE))
    expected = ['b']
  elif change == 'checkpoint':
    options, expected = {'sha256': 'y'}, ['a', 'b', 'c']
  elif change == 'options':
    options, expected = {'overlap': 0.7}, ['a', 'b', 'c']
  elif change == 'files':
    options, expected = {'probabilities': True}, ['a', 'b', 'c']
  elif change == 'overwrite':
    options, expected = {'overwrite': True}, ['a', 'b', 'c']
  outcome, segmented = run(scans, folder, **options)
  assert segmented == expected and outcome.skipped == 3 - len(expected) and outcome.failed == []
  assert [row['scan'] for row in tables(folder)[1]] == ['a', 'b', 'c']


def test_a_missing_or_torn_label_map_is_made_again_and_a_corrected_one_is_kept(scans, folder):
  run(scans, folder)
  before = {name: (folder / f'{name}.nii.gz').read_bytes() for name in 'abc'}
  (folder / 'a.nii.gz').unlink()
  (folder / 'b.nii.gz').write_bytes(before['b'][:-9])
  volumes.write_label(folder / 'c.nii.gz', np.full(SHAPE, 4, np.uint8), geometry(SHAPE))
  _, segmented = run(scans, folder)
  assert segmented == ['a', 'b']
  assert (folder / 'a.nii.gz').read_bytes() == before['a'] and (folder / 'b.nii.gz').read_bytes() == before['b']
  assert (volumes.read_label(folder / 'c.nii.gz').array == 4).all()


def test_what_was_corrected_by_hand_is_not_replaced_by_other_options_either(scans, folder):
  run(scans, folder, probabilities=True)
  volumes.write_label(folder / 'a.nii.gz', np.full(SHAPE, 4, np.uint8), geometry(SHAPE))
  beside = folder / 'b_probability_liver.nii.gz'
  volumes.write_image(beside, np.zeros(SHAPE, np.float32), geometry(SHAPE))
  kept = {path: path.read_bytes() for path in (folder / 'a.nii.gz', beside)}
  outcome, _ = run(scans, folder, probabilities=True, sha256='y')
  assert [row['scan'] for row in outcome.rows] == ['c']
  assert all('was changed after it was made' in error.problem for error in outcome.failed)
  assert {path: path.read_bytes() for path in kept} == kept
  outcome, _ = run(scans, folder, probabilities=True, sha256='y', overwrite=True)
  assert len(outcome.rows) == 3 and (volumes.read_label(folder / 'a.nii.gz').array != 4).any()


def test_probabilities_take_the_place_of_no_scan_and_no_file_of_others(scans, folder):
  (scans / 'b.nii.gz').rename(scans / 'a_probability_liver.nii.gz')
  before = (scans / 'a_probability_liver.nii.gz').read_bytes()
  outcome, _ = run(scans, scans, probabilities=True, overwrite=True, names=('a', 'a_probability_liver'))
  assert outcome.rows == [] and len(outcome.failed) == 2
  assert (scans / 'a_probability_liver.nii.gz').read_bytes() == before
  folder.mkdir()
  volumes.write_image(folder / 'c_probability_liver.nii.gz', np.zeros(SHAPE, np.float32), geometry(SHAPE))
  outcome, _ = run(scans, folder, probabilities=True, names=('c',))
  assert 'is there already' in outcome.failed[0].problem


def test_a_series_of_another_patient_with_equal_names_sizes_and_times(tmp_path, folder):
  found = []
  for n, patient in enumerate(('p1', 'p2')):
    where = dicom_series.write_series(tmp_path / patient, pixels=dicom_series.RAW + np.uint16(n))
    for path in where.iterdir():
      os.utime(path, (1, 1))
    found.append(Scan('ct', str(where), tuple(sorted(p.name for p in where.iterdir()))))
  assert outputs.stamp(found[0]) == outputs.stamp(found[1])
  row = {'checkpoint': {}, 'stamp': outputs.stamp(found[0]), 'source': found[0].path}
  row['sha256'] = volumes.read_image(found[0].path, found[0].files).sha256
  moved = dataclasses.replace(found[0], path=str((tmp_path / 'p1').rename(tmp_path / 'moved')))
  assert outputs._made_from(row, moved) and not outputs._made_from(row, found[1])


def test_a_full_disk_while_the_record_is_written_keeps_the_label_maps_of_before(scans, folder, monkeypatch):
  run(scans, folder)
  before = {p.name: p.read_bytes() for p in folder.glob('[abc].nii.gz')}

  def full(*arguments):
    raise InputError('volumes.json', 'cannot be written', 'Free space') from OSError(errno.ENOSPC, 'full')

  monkeypatch.setattr(record, 'add', full)
  with pytest.raises(InputError, match='volumes.json'):
    run(scans, folder, sha256='y')
  assert {p.name: p.read_bytes() for p in folder.glob('[abc].nii.gz')} == before
  assert not list(folder.glob('.*.old')) and not list(folder.glob('.*.part*'))


def test_a_label_map_of_another_scan_or_program_is_not_overwritten(scans, folder, tmp_path):
  run(scans, folder)
  volumes.write_label(folder / 'd.nii.gz', np.full(SHAPE, 4, np.uint8), geometry(SHAPE))
  (folder / 'e.nii.gz').write_bytes(b'half')
  other = tmp_path / 'other'
  other.mkdir()
  for name in 'ade':
    volumes.write_image(other / f'{name}.nii.gz', scan(9, SHAPE), geometry(SHAPE))
  before = {p.name: p.read_bytes() for p in folder.glob('[abcd].nii.gz')}
  outcome, segmented = run(other, folder)
  assert segmented == ['e'] and [os.path.basename(e.where) for e in outcome.failed] == ['a.nii.gz', 'd.nii.gz']
  assert str(scans / 'a.nii.gz') in str(outcome.failed[0]) and all('--overwrite' in e.cure for e in outcome.failed)
  assert {p.name: p.read_bytes() for p in folder.glob('[abcd].nii.gz')} == before
  outcome, segmented = run(other, folder, overwrite=True)
  assert segmented == ['a', 'd', 'e'] and outcome.failed == []
  assert [row['source'] for row in tables(folder)[0]['scans']][:2] == [str(other / 'a.nii.gz'), str(scans / 'b.nii.gz')]


def test_no_scan_is_overwritten_whatever_is_asked_for(scans):
  before = {p.name: p.read_bytes() for p in scans.iterdir()}
  shutil.move(scans / 'a.nii.gz', scans / 'a.NII.gz')
  outcome, segmented = run(scans, scans, overwrite=True, names=('b', 'c'))
  assert not segmented and len(outcome.failed) == 2
  assert all((scans / name).read_bytes() == before[name] for name in ('b.nii.gz', 'c.nii.gz'))


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EMFILE])
def test_a_machine_at_its_end_ends_everything_and_keeps_what_is_done(scans, folder, code):
  error = InputError('b', 'cannot be read', 'Check')
  error.__cause__ = OSError(code, 'at its end')
  with pytest.raises(InputError):
    run(scans, folder, fails=lambda name: error if name == 'b' else None)
  assert [row['scan'] for row in tables(folder)[1]] == ['a']
  assert run(scans, folder)[1] == ['b', 'c']


@pytest.mark.parametrize('wrapped', [False, True])
@pytest.mark.parametrize('kind', [MemoryError, jax.errors.JaxRuntimeError])
def test_a_scan_too_large_for_the_memory_does_not_end_the_others(scans, folder, kind, wrapped):
  error = kind('RESOURCE_EXHAUSTED: Out of memory')
  if wrapped:
    inner, error = error, InputError('b', 'the memory was used up', 'Lower eval.batch_size')
    error.__cause__ = inner
  outcome, _ = run(scans, folder, fails=lambda name: error if name == 'b' else None)
  assert [row['scan'] for row in outcome.rows] == ['a', 'c'] and 'memory was used up' in str(outcome.failed[0])
  assert 'eval.batch_size' in outcome.failed[0].cure
  with pytest.raises(jax.errors.JaxRuntimeError):  # not of the scan
    run(scans, folder, fails=lambda name: jax.errors.JaxRuntimeError('INTERNAL'), sha256='y')


@pytest.mark.parametrize('code, goes_on', [(errno.ENOSPC, False), (errno.EIO, False), (errno.ENAMETOOLONG, True)])
def test_errors_of_the_output(scans, folder, monkeypatch, code, goes_on):
  write = volumes.write_label

  def failing(path, array, grid):
    if len(os.listdir(folder)) > 3:
      error = InputError(path, 'cannot be written', 'Free space')
      error.__cause__ = OSError(code, 'no')
      raise error
    write(path, array, grid)

  monkeypatch.setattr(volumes, 'write_label', failing)
  if goes_on:
    outcome, _ = run(scans, folder)
    assert [row['scan'] for row in outcome.rows] == ['a'] and len(outcome.failed) == 2
  else:
    with pytest.raises(InputError):
      run(scans, folder)
  assert [row['scan'] for row in tables(folder)[1]] == ['a'] and not list(folder.glob('.*.part*'))


def test_scans_on_a_disk_that_vanishes(scans, folder):
  def pull(name):
    shutil.rmtree(scans)
    return InputError(name, 'no such file', 'Check')

  with pytest.raises(InputError, match='no longer there'):
    run(scans, folder, fails=pull)


@pytest.mark.parametrize('moment', ['volumes.json', 'volumes.csv', 'a.nii.gz'])
@pytest.mark.parametrize('before', [False, True])
def test_a_kill_while_files_take_their_places_is_mended(scans, folder, monkeypatch, moment, before):
  if before:  # the label maps of another checkpoint are there: they must not pass for those of this one
    run(scans, folder, sha256='old', ids={'liver': 2, 'prostate/uterus': 3})
  replace = os.replace

  def killed(part, path):
    if os.path.basename(path) == moment:
      raise KeyboardInterrupt
    replace(part, path)

  monkeypatch.setattr(os, 'replace', killed)
  with pytest.raises(KeyboardInterrupt):
    run(scans, folder)
  monkeypatch.undo()
  assert run(scans, folder)[1] == ['a', 'b', 'c']
  assert set(np.unique(volumes.read_label(folder / 'a.nii.gz').array)) == {0, 1}
