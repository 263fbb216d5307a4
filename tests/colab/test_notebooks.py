"""The notebooks: in step with their sources, complete in what a reader needs first, and running from top to bottom."""

import base64
import io
import re

import nbformat
import pytest
from conftest import ROOT, environment
from doc_pages import anchors
from marks import SLOW
from PIL import Image

from colab import sync

QUICK = ('the_loss', 'quickstart')  # the others are run in the slow set
MIB = 2**20


def source(name: str) -> str:
  return (sync.FOLDER / f'{name}.py').read_text(encoding='utf-8')


def stored(name: str) -> nbformat.NotebookNode:
  return nbformat.read(sync.FOLDER / f'{name}.ipynb', as_version=4)


def outputs(notebook) -> list:
  return [output for cell in notebook.cells for output in cell.get('outputs', ())]


def printed(notebook) -> str:
  """All that the cells of a notebook show as text."""
  texts = [output.get('text') or output.get('data', {}).get('text/markdown', '') for output in outputs(notebook)]
  return '\n'.join(texts)


def titled(name: str, title: str) -> list[str]:
  """The cells of a notebook with a title."""
  return [cell.source for cell in sync.from_source(source(name)).cells if f'# @title {title}\n' in cell.source]


def test_outputs_are_kept_where_only_texts_change():
  made = sync.from_source(source('the_loss').replace('# Ten pixels of a CT slice', '# 10 pixels of a CT slice'))
  assert sync.take_outputs(made, stored('the_loss')) and printed(made) == printed(stored('the_loss'))
  made = sync.from_source(source('the_loss').replace('GAMMA = 1e-5, 0.25', 'GAMMA = 1e-5, 0.5'))
  assert not sync.take_outputs(made, stored('the_loss')) and not outputs(made)


def test_progress_is_kept_without_its_times():
  text = 'train: 100%|###| 8/8 [01:02<00:00,  2.0s/step]step 8: saved\n   \nrows: 3/3 [00:01<00:00, 9 row/s]\nend [1]\n'
  assert sync.without_times(text) == 'train: 100%|###| 8/8\nstep 8: saved\nrows: 3/3\nend [1]\n'


def test_every_notebook_has_a_source():
  assert {path.stem for path in sync.FOLDER.glob('*.ipynb')} == set(sync.NAMES)
  assert {path.stem for path in sync.FOLDER.glob('*.py')} == {*sync.NAMES, 'sync'}


@pytest.mark.parametrize('name', sync.NAMES)
def test_notebook_and_source_are_in_step(name):
  made, kept = sync.from_source(source(name)), stored(name)
  cells = lambda notebook: [(cell.cell_type, cell.id, cell.source) for cell in notebook.cells]
  cure = f'edit colab/{name}.py alone, then run: python colab/sync.py {name}'
  assert cells(made) == cells(kept) and made.metadata == kept.metadata, cure
  assert sync.with_address(source(name), name, sync.address()) == source(name), cure


@pytest.mark.parametrize('name', sync.NAMES)
def test_stored_outputs_are_of_one_whole_run(name):
  notebook = stored(name)
  nbformat.validate(notebook)
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
  assert not [output for output in outputs(notebook) if output.output_type == 'error']
  text = printed(notebook)
  assert 'Traceback' not in text and not re.search(r'(?<![\w.~])/(home|work|tmp|root|mnt|opt)/', text)
  assert any('image/png' in output.get('data', {}) for output in outputs(notebook))


def test_notebooks_are_small():
  sizes = {path.name: path.stat().st_size for path in sync.FOLDER.iterdir() if path.is_file()}
  assert sum(sizes.values()) < 3 * MIB and max(sizes.values()) < MIB, sizes


@pytest.mark.parametrize('name', sync.NAMES)
def test_the_first_cell_says_what_a_reader_needs(name):
  first = stored(name).cells[0].source
  assert first.startswith('# ') and sync.badge(name, sync.address()) in first
  assert re.search(r'\*\*Time:\*\* about (a minute|\d+ minutes) ', first) and '**Licence:** Apache-2.0' in first


@pytest.mark.parametrize('name', sync.NAMES)
def test_links_lead_somewhere(name):
  text = '\n'.join(cell.source for cell in stored(name).cells if cell.cell_type == 'markdown')
  for link in re.findall(r'\]\(([^)\s]+)\)', text):
    path, _, anchor = link.partition('#')
    if not link.startswith('https://'):
      page = (sync.FOLDER / path).resolve()
      assert page.exists(), f'{name}: {link}'
      assert not anchor or anchor in anchors(str(page.relative_to(ROOT))), f'{name}: {link}'


def test_the_badge_opens_the_notebook_in_its_repository():
  known = sync.badge('the_loss', 'https://github.com/somebody/afw_jax/')
  assert known.endswith('(https://colab.research.google.com/github/somebody/afw_jax/blob/main/colab/the_loss.ipynb)')
  assert sync.badge('the_loss', '').endswith('(https://colab.research.google.com/github/)')
  for repository in ('https://github.com/somebody/afw_jax', ''):
    text = sync.with_address(source('the_loss'), 'the_loss', repository)
    assert f"\nREPOSITORY = '{repository}'" in text and sync.badge('the_loss', repository) in text
    assert sync.with_address(text, 'the_loss', '') == sync.with_address(source('the_loss'), 'the_loss', '')


def test_the_first_steps_are_the_same_everywhere():
  for title in ('Install', 'Check', 'Run commands'):
    cells = [titled(name, title) for name in sync.NAMES]
    assert len({cell.replace('import shlex\n', '') for found in cells for cell in found}) == 1, title
    assert all(len(found) == 1 for name, found in zip(sync.NAMES, cells) if title != 'Run commands'), title


@pytest.mark.parametrize('name', sync.NAMES)
def test_drawn_pictures_are_kept_with_a_palette(name):
  for png in (o.data['image/png'] for o in outputs(stored(name)) if 'image/png' in o.get('data', {})):
    assert Image.open(io.BytesIO(base64.b64decode(png))).mode == 'P'


@pytest.mark.parametrize('name', [n if n in QUICK else pytest.param(n, marks=SLOW) for n in sync.NAMES])
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path):
  """With tiny sizes. The notebooks check their numbers themselves; here are those that a reader would look for."""
  notebook = sync.execute(sync.from_source(source(name)), str(tmp_path), environment(AFW_JAX_SMALL='1'), timeout=300)
  text = printed(notebook)
  if name == 'the_loss':
    by_hand, by_library = map(float, re.search(r'NumPy ([\d.]+), afw_jax ([\d.]+)', text).groups())
    assert by_hand == pytest.approx(by_library, rel=1e-5) and 'check_grads' in text
  elif name == 'quickstart':
    assert (tmp_path / 'new_labels.nii.gz').exists() and '| gallbladder |' in text
  elif name == 'your_own_scans':
    assert 'other_labels' in text and (tmp_path / 'new_labels' / 'volumes.csv').exists()
  elif name == 'networks_and_weights':
    assert '7,852,233' in text and 'largest difference' in text and 'seg_head.0.bias' in text
  elif name == 'paper_and_scale':
    values = re.findall(r'^\d x \d devices: loss ([\d.]+)', text, re.M)
    assert len(values) == 3 and float(values[0]) == pytest.approx(float(values[1]), rel=1e-5)
