"""--mode=check from the command line: the report, its numbers, and nothing else on the disk."""

import json
import os
import pathlib

import nibabel as nib
import numpy as np
import pytest
from changing_data import config
from page_reader import Page
from tiny_dataset import describe, geometry, label_map, make, scan

from afw_jax import check
from afw_jax.data.formats import volumes
from afw_jax.errors import InputError

REAL = os.environ.get('AFW_REAL_DATA', '')


def run_here(monkeypatch):
  run = lambda function, jobs, **_: [function(job) for job in jobs]
  monkeypatch.setattr('afw_jax.data.preparation.worker_pool.run_jobs', run)


def read(workdir):
  folder = pathlib.Path(workdir) / 'check'
  assert sorted(p.name for p in folder.iterdir()) == ['check.json', 'check.md', 'index.html']
  page = Page((folder / 'index.html').read_text(encoding='utf-8'))
  return json.loads((folder / 'check.json').read_text(encoding='utf-8')), page


def test_a_whole_check_writes_its_report_and_nothing_else(run_main, phantoms, tmp_path):
  before = {p: p.stat().st_mtime_ns for p in phantoms.rglob('*')}
  done = run_main('--mode=check', '--config=folder', f'--config.data.root={phantoms}', f'--workdir={tmp_path}/run/a')
  assert {p: p.stat().st_mtime_ns for p in phantoms.rglob('*')} == before
  assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob('*')) if p.is_dir()] == [
    'run',
    'run/a',
    'run/a/check',
  ]
  content, page = read(tmp_path / 'run' / 'a')
  assert content['problems'] == [] and len(content['cases']) == 7
  summary, by_case, by_organ = page.tables
  assert [row[0] for row in by_case[1:]] == list(content['cases']) and len(by_organ) == 7 + 2
  for row in by_case[1:]:
    case = content['cases'][row[0]]
    assert row[1] in ('train', 'val', 'test') and row[0] in content['splits'][row[1]]
    assert row[2] == ' x '.join(map(str, case['shape']))
    assert row[3] == ' x '.join(f'{mm:.3f}' for mm in case['spacing_mm'])
    assert list(map(float, row[5:8])) == pytest.approx(case['percentiles'], rel=5e-4)
  for row in by_organ[1:-1]:
    organs = content['cases'][row[0]]['organs']
    assert row[1:] == [f'{organs[organ]["volume_ml"]:.1f}' for organ in content['organs']]
  medians = [np.median([c['organs'][o]['volume_ml'] for c in content['cases'].values()]) for o in content['organs']]
  assert list(map(float, by_organ[-1][1:])) == pytest.approx(medians, abs=0.051)
  spacings = [c['spacing_mm'] for c in content['cases'].values()]
  assert summary[2][1] == ' x '.join(f'{mm:.3f}' for mm in np.median(spacings, axis=0))
  for option in ('--config.data.spacing_mm="(', '--config.data.size="(', '--config.train.batch_size=24'):
    assert option in done.stdout and option in page.text
  assert 'liver (mL)' in done.stdout and f'{tmp_path}/run/a/check/index.html' in done.stdout
  # what was proposed is what the command line takes
  plan = [line.strip().replace('"', '') for line in done.stdout.splitlines() if line.strip().startswith('--config.')]
  again = run_main(
    '--mode=check', '--config=folder', f'--config.data.root={phantoms}', f'--workdir={tmp_path}/b', *plan
  )
  assert [line for line in again.stdout.splitlines() if '--config.' in line] == [
    line for line in done.stdout.splitlines() if '--config.' in line
  ]


def test_problems_end_in_exit_code_2_and_are_in_the_report(run_main, tmp_path):
  root = make(tmp_path / 'raw', n=3)
  volumes.write_label(root / 'labels' / 'c1.nii.gz', label_map(1)[1:], geometry((5, 40, 48), axes='LPS'))
  arguments = ('--mode=check', '--config=folder', f'--config.data.root={root}', f'--workdir={tmp_path}/run')
  done = run_main(*arguments, check=2)
  content, page = read(tmp_path / 'run')
  (problem,) = content['problems']
  assert problem in done.stdout and problem in page.text and 'Problems' in page.headings and 'c1.nii.gz' in problem
  assert done.stderr.strip().splitlines()[-1].startswith(f'error: {root}: has 1 problem(s)')
  assert sorted(content['cases']) == ['c0', 'c2']
  volumes.write_label(root / 'labels' / 'c1.nii.gz', label_map(1), geometry(axes='LPS'))
  run_main(*arguments)
  assert read(tmp_path / 'run')[0]['problems'] == []


def test_no_case_without_problems(tmp_path, monkeypatch):
  run_here(monkeypatch)
  root = make(tmp_path / 'raw', n=2)
  describe(root, labels={'background': 0, 'liver': 1})
  with pytest.raises(InputError, match='has 2 problem'):
    check.check(config(root), str(tmp_path / 'run'), 'cpu')
  content, page = read(tmp_path / 'run')
  assert content['cases'] == {} and content['summary'] is content['proposal'] is None and page.tables == []


def test_hostile_file_names(tmp_path, monkeypatch):
  run_here(monkeypatch)
  names = ['<img src=x onerror=alert(1)>', '"&\'|`**x**', 'a\nb', os.fsdecode(b'latin\xe9'), '- [x](y)']
  root = make(tmp_path / 'raw', n=0)
  for i, name in enumerate(names):
    volumes.write_image(root / 'images' / f'{name}.nii.gz', scan(i), geometry())
    label = label_map(0) if i < 2 else label_map(i)  # a note on the second
    volumes.write_label(root / 'labels' / f'{name}.nii.gz', label, geometry())
  volumes.write_label(root / 'labels' / f'{names[4]}.nii.gz', label_map(4)[1:], geometry((5, 40, 48)))
  with pytest.raises(InputError, match='has 1 problem'):
    check.check(config(root), str(tmp_path / 'run'), 'cpu')
  content, page = read(tmp_path / 'run')
  assert sorted(content['cases']) == sorted(names[:4]) and len(content['standing_out']) == 1
  assert not page.all('img') and len(page.all('script')) == 1
  assert {row[0] for row in page.tables[1][1:]} == {names[0], names[1], 'a b', 'latin\\udce9'}
  assert len(page.tables[1]) == 5 and names[4] in page.text
  lines = (tmp_path / 'run' / 'check' / 'check.md').read_text(encoding='utf-8', errors='replace').splitlines()
  assert not [line for line in lines if line.startswith('b')]  # a line end in a name ends no row


def test_wrong_options_are_refused_before_any_scan_is_read(tmp_path, monkeypatch):
  monkeypatch.setattr(check, 'survey', None)
  for changes, target, memory, said in (
    ({}, 'h10', None, 'not a known device'),
    ({}, 'cpu', -1.0, 'is not positive'),
    ({'model.name': 'unett'}, 'cpu', None, "'unet'"),
  ):
    run = config(tmp_path)
    run.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=said):
      check.check(run, str(tmp_path / 'run'), target, memory)
  (tmp_path / 'run' / 'check').mkdir(parents=True)
  (tmp_path / 'run' / 'check' / 'index.html').write_text('mine')
  with pytest.raises(InputError, match='is there already'):
    check.check(config(tmp_path), str(tmp_path / 'run'), 'cpu')
  assert (tmp_path / 'run' / 'check' / 'index.html').read_text() == 'mine'


@pytest.mark.skipif(not REAL, reason='AFW_REAL_DATA is not set')
def test_real_scans_equal_nibabel(tmp_path, monkeypatch):
  run_here(monkeypatch)
  root = tmp_path / 'raw'
  for kind in ('images', 'labels'):
    (root / kind).mkdir(parents=True)
    for source in sorted(pathlib.Path(REAL, 'chaos_mr_t2', kind).iterdir())[:2]:
      (root / kind / source.name).symlink_to(source)
  labels = {'background': 0, 'liver': 1, 'right_kidney': 2, 'left_kidney': 3, 'spleen': 4}
  describe(root, channel_names={'0': 'T2'}, labels=labels)
  check.check(config(root), str(tmp_path / 'run'), 'cpu')
  content, _ = read(tmp_path / 'run')
  assert not [note for note in content['standing_out'] if 'swapped' in note]
  for case_id, case in content['cases'].items():
    image, label = (nib.load(root / kind / f'{case_id}.nii.gz') for kind in ('images', 'labels'))
    values, ids = np.asarray(image.dataobj), np.asarray(label.dataobj).astype(int)
    zooms = np.array(image.header.get_zooms()[:3], np.float64)
    assert case['shape'] == list(ids.shape[::-1])
    assert case['spacing_mm'] == pytest.approx(zooms[::-1].tolist(), rel=1e-5)
    assert case['extent_mm'] == pytest.approx((zooms * ids.shape)[::-1].tolist(), rel=1e-5)
    assert case['percentiles'] == pytest.approx(np.percentile(values[ids > 0], [0.5, 50, 99.5]).tolist())
    for organ, i in list(labels.items())[1:]:
      assert case['organs'][organ]['volume_ml'] == pytest.approx((ids == i).sum() * zooms.prod() / 1000, abs=0.002)
