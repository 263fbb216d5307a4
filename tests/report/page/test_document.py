import base64
import hashlib
import io
import re

import numpy as np
import pytest
from page_reader import Page
from PIL import Image

from afw_jax.errors import InputError
from afw_jax.report.blocks import Heading, Picture, Table
from afw_jax.report.page import document, viewer
from afw_jax.report.page.pictures import data_uri

TABLE = Table(['organ', 'DSC (%)'], [['<b>', '1.00'], ['b', '-'], ['mean', '1.00']], summaries=1)
BLOCKS = [Heading('Title <1>', 1), 'A **note**.', Heading('One'), TABLE, Heading('Two'), 'Text.']


def test_blocks_of_a_page():
  text = document.page(BLOCKS)
  page = Page(text)
  assert page.headings == ['Title <1>', 'One', 'Two'] and page.tables == [[TABLE.head, *TABLE.rows]]
  assert text.index('<tbody>') < text.index('<tfoot>') and len(re.findall('<tr>', text.split('<tfoot>')[1])) == 1
  assert [a['href'][1:] for a in page.all('a')] == [a['id'] for a in page.all('h2')]
  assert page.all('html', lang='en') and page.all('meta', name='viewport')
  assert all('scope' in th for th in page.all('th')) and text.startswith('<!DOCTYPE html>')


@pytest.mark.parametrize('scripts, served', [((), False), (viewer.SCRIPTS, False), (viewer.SCRIPTS, True)])
def test_a_page_runs_its_own_scripts_and_loads_nothing(scripts, served):
  text = document.page(BLOCKS, scripts=scripts, served=served)
  page = Page(text)
  (policy,) = [a['content'] for a in page.all('meta') if a.get('http-equiv') == 'Content-Security-Policy']
  code = re.findall(r'<script>(.*?)</script>', text, re.S)
  assert len(code) == 1 + len(scripts)
  digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in code]
  assert re.search('script-src ([^;]*);', policy)[1].split() == [f"'sha256-{digest}'" for digest in digests]
  assert policy.startswith("default-src 'none'") and ("connect-src 'self'" in policy) == served
  assert not page.all('link') and not [a for _, a in page.elements if a.get('src') or 'srcset' in a]
  assert not re.search(r'url\(|@import', document.asset('page.css'))


@pytest.mark.parametrize('name', ['sort.js', *viewer.SCRIPTS])
def test_scripts_cannot_end_their_element(name):
  text = document.asset(name).lower()
  assert '</script' not in text and '<!--' not in text and '\r' not in text


def test_only_the_bundled_library_knows_addresses():
  for name in ('page.css', 'sort.js', 'slices.js', 'viewer.js'):
    assert not re.search('https?:', document.asset(name)), name
  assert 'Copyright (c) 2021, Niivue' in document.asset('niivue.LICENSE.txt')


def picture(path, size=(900, 700)):
  pixels = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)
  Image.fromarray(pixels).save(path)
  return str(path)


def test_pictures_are_inside_and_large_ones_are_reduced(tmp_path):
  path = picture(tmp_path / 'a.png')
  (image,) = Page(document.page([Heading('T', 1), Picture(path, 'a "case"')])).all('img')
  assert (
    image['alt'] == 'a "case"' and base64.b64decode(image['src'].split(',')[1]) == (tmp_path / 'a.png').read_bytes()
  )
  small = data_uri(path, 60_000)
  with Image.open(io.BytesIO(base64.b64decode(small.split(',')[1]))) as made:
    assert made.format == 'JPEG' and made.width < 900 and abs(made.width / made.height - 9 / 7) < 0.02
  assert len(small) < 61_000
  (tmp_path / 'a.svg').write_text('<svg/>')
  assert data_uri(path, 60_000) == 'data:image/svg+xml;base64,' + base64.b64encode(b'<svg/>').decode()
  (tmp_path / 'b.png').write_bytes(b'torn')
  with pytest.raises(InputError, match='b.png'):
    data_uri(str(tmp_path / 'b.png'), 0)


def test_many_pictures_stay_within_the_budget(tmp_path, monkeypatch):
  monkeypatch.setattr(document, 'PICTURE_BYTES', 400_000)
  path = picture(tmp_path / 'a.png', (500, 400))
  assert len(document.page([Heading('T', 1), *[Picture(path, 'a')] * 10])) < 430_000
