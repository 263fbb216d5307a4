"""The pages of runs, comparisons and new label maps: the numbers, the order, names of users, one file."""

import json
import pathlib
import re

import numpy as np
import pytest
from page_reader import Page
from scored_run import make_run
from viewed_run import CASE, DSC, HOSTILE, ORGANS, make_viewed

from afw_jax.data.formats import volumes
from afw_jax.errors import InputError
from afw_jax.inference import statistics
from afw_jax.report import comparison, report
from afw_jax.report.page import document, pages
from afw_jax.system import atomic_files


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The workdir of a run with hostile names, its page as text."""
  workdir = make_viewed(tmp_path_factory.mktemp('viewed'))
  (workdir / 'pictures').mkdir()
  from PIL import Image

  for case in ('c0', 'c"1\'&amp;'):
    Image.new('RGB', (20, 10)).save(workdir / 'pictures' / f'{pages.file_name(case)}.png')
  records = [{'step': s, 'train/loss': 1 / s, f'weight/{HOSTILE}': 1.0, f'pull/{HOSTILE}': 0.5} for s in (1, 2, 3)]
  (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records), encoding='utf-8')
  paths = report.report(str(workdir))
  return workdir, pathlib.Path(paths['page']).read_text(encoding='utf-8')


def scores_of(workdir):
  records = [json.loads(p.read_text(encoding='utf-8')) for p in (workdir / 'cases').glob('*.json')]
  return {record['case']: record['scores'] for record in records}


def test_numbers_are_those_of_the_scores(run):
  workdir, text = run
  scores, page = scores_of(workdir), Page(text)
  organs, cases, dsc, hd95 = page.tables[:4]
  for row in organs[1:-1]:
    values = [100 * scores[case][row[0]]['dsc'] for case in DSC]
    assert row[1].startswith(f'{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} [')
  worst_first = sorted(DSC, key=lambda case: np.mean(DSC[case]))
  assert [row[0] for row in cases[1:]] == [row[0] for row in dsc[1:]] == worst_first and worst_first[0] == CASE
  assert dsc[0] == ['case', *ORGANS, 'mean'] and len(page.tables) == 2 + 6
  for table, key, factor in ((dsc, 'dsc', 100), (hd95, 'hd95_pooled_mm', 1)):
    for row in table[1:]:
      values = [factor * scores[row[0]][organ][key] for organ in ORGANS]
      assert row[1:] == [*(f'{v:.2f}' for v in values), f'{np.mean(values):.2f}']
  for row in cases[1:]:
    assert row[1] == f'{100 * np.mean(DSC[row[0]]):.2f}'


def test_the_page_and_the_markdown_file_say_the_same(run):
  workdir, text = run
  markdown = (workdir / 'report' / 'report.md').read_text(encoding='utf-8')
  page = Page(text)
  assert markdown.startswith(f'# {page.headings[0]}\n')
  for row in page.tables[0]:
    assert '| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' in markdown
  for sentence in re.findall(r'\*\*Only 3.*', markdown):
    assert sentence.replace('**', '') in page.text


def test_names_of_users_are_texts(run):
  _, text = run
  page = Page(text)
  assert not page.all('img', src='x') and not [a for _, a in page.elements if any(k.startswith('on') for k in a)]
  assert len(page.all('script')) == 1 + 1 + 3  # the data, sorting, the viewer
  assert page.text.count(HOSTILE) > 5 and f'{CASE}, lowest, mean DSC 40.00 %' in page.text
  assert page.data['organs'][1]['name'] == HOSTILE and page.data['cases'][0]['name'] == CASE


def test_one_file_within_its_budget_that_loads_nothing(run):
  _, text = run
  page = Page(text)
  sources = [a['src'] for _, a in page.elements if 'src' in a]
  assert len(sources) == 2 + 3 and all(source.startswith('data:image/') for source in sources)
  assert all(a['href'].startswith('#') for _, a in page.elements if 'href' in a)
  assert all(a['alt'] for a in page.all('img')) and len(text.encode()) < document.MAX_BYTES
  overlays = [a['alt'] for a in page.all('img')]
  assert overlays[:2] == [CASE, 'c0']  # the worst first


def test_the_viewer_has_the_worst_median_and_best_case(run):
  page = Page(run[1])
  assert [case['title'].split(', ')[1] for case in page.data['cases']] == ['lowest', 'median', 'highest']
  assert page.data['masks'] == ['truth', 'prediction'] and [o['colour'][0] for o in page.data['organs']] == ['#', '#']
  for case in page.data['cases']:
    assert set(case['details']['volumes']) == {'scan', 'truth', 'prediction'} and case['details']['has_mm']
    assert 'working grid' in case['details']['grid']
  ticks = [a for a in page.all('input', type='checkbox') if a.get('class') == 'viewer-organ']
  assert [a['value'] for a in ticks] == ['1', '2'] and all('checked' in a for a in ticks)


def test_scans_that_cannot_be_shown_are_named_with_the_reason(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(report, '_can_draw', lambda: False)
  text = lambda workdir: pathlib.Path(report.report(str(workdir))['page']).read_text(encoding='utf-8')
  page = Page(text(make_run(tmp_path / 'bare')))
  assert 'The scans cannot be shown: ' in page.text and page.data is None and len(page.all('script')) == 1
  assert 'page without scans' in caplog.text
  workdir = make_viewed(tmp_path / 'viewed')
  label = next((workdir / 'predictions').glob('c0*'))
  read = volumes.read_label(label)
  volumes.write_label(label, np.zeros_like(read.array), read.geometry)
  page = Page(text(workdir))
  assert 'c0 cannot be shown: ' in page.text and 'not the label map that was scored' in page.text
  assert [case['name'] for case in page.data['cases']] == [CASE, 'c2']


def test_a_page_too_full_for_scans_says_so(run, monkeypatch):
  workdir, _ = run
  monkeypatch.setattr(document, 'MAX_BYTES', 2_400_000)
  monkeypatch.setattr(report, '_can_draw', lambda: False)
  paths = report.report(str(workdir))
  text = pathlib.Path(paths['page']).read_text(encoding='utf-8')
  assert 'no room for scans' in text and len(text) < 400_000


def test_comparisons_are_pages_too(tmp_path):
  dsc = {'a': (0.9, 0.5), 'b': (0.8, 0.6)}
  runs = [make_run(tmp_path / name, dsc, names=ORGANS) for name in ('one', 'two')]
  blocks = comparison.collect(runs)
  pages.write_beside(str(tmp_path / 'c.md'), blocks)
  page = Page((tmp_path / 'c.html').read_text(encoding='utf-8'))
  assert (tmp_path / 'c.md').read_text(encoding='utf-8') == comparison.compare(runs)
  assert page.headings[0] == 'Comparison' and page.tables[1][1][1] == '+0.00 [+0.00, +0.00]'
  assert f'{HOSTILE} DSC (%)' in page.tables[2][0]
  pages.write_beside(str(tmp_path / 'c.html'), blocks)  # a page may be replaced
  (tmp_path / 'd.html').write_text('mine', encoding='utf-8')
  with pytest.raises(InputError, match='is not a page of this program'):
    pages.write_beside(str(tmp_path / 'd.md'), blocks)
  assert not (tmp_path / 'd.md').exists() and (tmp_path / 'd.html').read_text(encoding='utf-8') == 'mine'


def predicted(folder, workdir):
  """A folder as --mode=predict leaves it, with one scan of a case."""
  scan = volumes.read_image(workdir.parent.parent / 'scans' / 'images' / 'c0.nii.gz')
  (folder / 'p').mkdir(parents=True)
  volumes.write_label(folder / 'p' / 'c0.nii.gz', np.where(scan.array > 80, 7, 0).astype(np.uint8), scan.geometry)
  row = {
    'scan': 'p/c0',
    'output': 'p/c0.nii.gz',
    'source': scan.source,
    'stamp': [],
    'sha256': scan.sha256,
    'label_ids': {'liver': 1, HOSTILE: 7},
    'volume_ml': {'liver': 0.0, HOSTILE: 12.3456},
    'notes': ['<i>dark</i>'],
    'intensity_unit': 'HU',
    'statistics': {
      'liver': statistics.OrganStatistics().to_json(),
      HOSTILE: statistics.OrganStatistics(
        9, 12.3456, 40.5, 2.25, ((0, 3), (4, 11), (7, 7)), (-10.5, 0.0, 7.125), True, 2
      ).to_json(),
    },
    'checkpoint': {'workdir': 'w', 'step': 1},
  }
  failed = [{'scan': 'b', 'output': 'b.nii.gz', 'source': 'b.nii', 'problem': '<b>torn'}]
  passed = [{'path': '/x/<y>', 'reason': 'is NRRD'}]
  atomic_files.write_json(
    folder / 'volumes.json',
    {'unit': 'mL', 'organs': list(ORGANS), 'scans': [row], 'failed': failed, 'passed_over': passed},
  )


def test_new_label_maps(run, tmp_path):
  folder = tmp_path / 'out'
  predicted(folder, run[0])
  path = pages.write_predictions(pages.place_beside(str(folder)))
  assert path == str(folder / 'index.html')
  page = Page((folder / 'index.html').read_text(encoding='utf-8'))
  volumes_table, found = page.tables
  assert volumes_table == [['scan', *ORGANS, 'label map'], ['p/c0', '0.0', '12.3', 'p/c0.nii.gz']]
  assert found[0][:4] == ['organ', 'mL', 'mean (HU)', 'sd (HU)'] and {len(row) for row in found} == {12}
  assert found[1] == ['liver', '0.0', *'--------', 'no', '0']
  place = ['0 to 3', '4 to 11', '7 to 7', '-10.5', '0.0', '7.125']
  assert found[2] == [HOSTILE, '12.346', '40.5', '2.25', *place, 'yes', '2']
  for said in ('p/c0: <i>dark</i>', 'b: <b>torn', '/x/<y>: is NRRD', 'no truth'):
    assert said in page.text
  assert page.data['masks'] == ['prediction'] and list(page.data['cases'][0]['details']['volumes']) == [
    'scan',
    'prediction',
  ]
  assert not [a for a in page.all('input') if a.get('value') == 'truth']
  with open(folder / 'volumes.json', encoding='utf-8') as file:
    text = file.read()
  (folder / 'volumes.json').write_text(text.replace('"sha256": "', '"sha256": "0'), encoding='utf-8')
  pages.write_predictions(path)
  assert 'no longer the scan that was segmented' in Page((folder / 'index.html').read_text(encoding='utf-8')).text


def test_tables_of_very_many_cases_or_organs_are_left_to_the_files(run, tmp_path, monkeypatch):
  monkeypatch.setattr(pages, '_MOST_CELLS', 30)
  monkeypatch.setattr(report, '_can_draw', lambda: False)
  text = pathlib.Path(report.report(make_run(tmp_path / 'run'))['page']).read_text(encoding='utf-8')
  assert 'they are in scores.csv' in Page(text).text and len(Page(text).tables) == 2
  predicted(tmp_path / 'out', run[0])
  path = tmp_path / 'out' / 'volumes.json'
  content = json.loads(path.read_text(encoding='utf-8'))
  content['scans'] = [{**content['scans'][0], 'output': f'{i}.nii.gz'} for i in range(9)]
  path.write_text(json.dumps(content), encoding='utf-8')
  page = Page(pages.of_predictions(str(tmp_path / 'out'), 'no scans'))
  assert 'The first 7 label maps; all are in volumes.csv.' in page.text and '9 label map(s)' in page.text
  assert 'Those of the first 1 label maps; all are in volumes.csv.' in page.text and len(page.tables) == 2


@pytest.mark.parametrize('make', [
  lambda path: path.write_text('<html>mine', encoding='utf-8'),
  lambda path: path.mkdir(),
  lambda path: path.symlink_to('nowhere'),
])  # fmt: skip
def test_the_page_of_predictions_replaces_no_other_file(tmp_path, make):
  make(tmp_path / 'index.html')
  for output in (tmp_path, tmp_path / 'scan.nii.gz'):
    with pytest.raises(InputError, match='index.html'):
      pages.place_beside(str(output))
