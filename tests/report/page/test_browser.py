"""The page in Chromium: what it shows, and what its controls do, in 3D and without WebGL2."""

import json
import threading

import numpy as np
import pytest
from chromium import NEEDED, browser, share
from viewed_run import CASE, DSC, HOSTILE, make_viewed

from afw_jax import view
from afw_jax.report import report
from afw_jax.report.blocks import Heading, Table
from afw_jax.report.page import document
from afw_jax.report.style import colour

pytestmark = NEEDED

LIVER, OTHER = colour(1), colour(2)
NO_WEBGL = """
const get = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
  return kind === 'webgl2' ? null : get.call(this, kind, ...rest);
};
"""


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return make_viewed(tmp_path_factory.mktemp('viewed'))


@pytest.fixture(scope='module')
def address(workdir):
  return (workdir / 'report' / 'index.html').as_uri() if report.report(str(workdir)) else ''


@pytest.fixture(scope='module')
def started():
  with browser() as one:
    yield one


@pytest.fixture(scope='module')
def page(started, address):
  """The page as a file, in 3D."""
  started.open(address)
  return started


def rows(page, table):
  return page.run(
    'return [...document.querySelectorAll("table")[arguments[0]].tBodies[0].rows]'
    '.map((row) => [...row.cells].map((cell) => cell.textContent))',
    table,
  )


def test_it_opens_without_a_word_on_the_console(page):
  assert page.run('return document.getElementById("viewer").dataset.renderer') == 'webgl2'
  assert page.messages() == [] and page.driver.title.startswith('unet with ce_afw')
  assert (
    page.text('viewer-status').startswith(f'{CASE}: Voxels of 1.68 x 1.89 x 3.00 mm')
    and HOSTILE in page.find('#viewer').text
  )


def test_numbers_are_those_of_the_scores(page, workdir):
  for file in (workdir / 'cases').glob('*.json'):
    record = json.loads(file.read_text(encoding='utf-8'))
    (row,) = [row for row in rows(page, 2) if row[0] == record['case']]
    assert row[1:-1] == [f'{100 * record["scores"][organ]["dsc"]:.2f}' for organ in record['organs']]


def test_tables_are_sorted_by_keyboard(page):
  from selenium.webdriver.common.keys import Keys

  before = rows(page, 1)
  assert [row[0] for row in before] == sorted(DSC, key=lambda case: sum(DSC[case]))
  target = page.driver.find_elements('css selector', 'main table')[1].find_elements('css selector', 'thead button')[1]
  for key, order in ((Keys.ENTER, 1), (Keys.SPACE, -1)):
    page.run('arguments[0].focus()', target)
    target.send_keys(key)
    assert [row[0] for row in rows(page, 1)] == [row[0] for row in before][::order]
    sorted_by = page.run('return arguments[0].parentElement.getAttribute("aria-sort")', target)
    assert sorted_by == {1: 'ascending', -1: 'descending'}[order]


def test_an_organ_is_hidden_by_a_click(page):
  page.choose('viewer-view', 'axial')
  both = page.canvas()
  assert share(both, LIVER) > 0.03 and share(both, OTHER) > 0.01
  page.click('.viewer-organ[value="1"]')
  without = page.canvas()
  assert share(without, LIVER) < 0.1 * share(both, LIVER) and share(without, OTHER) > 0.5 * share(both, OTHER)
  page.click('#viewer-none')
  assert share(page.canvas(), OTHER) < 0.1 * share(both, OTHER)
  page.click('#viewer-all')
  np.testing.assert_allclose(share(page.canvas(), LIVER), share(both, LIVER), rtol=0.05)


def test_in_3d_there_are_the_organs(page):
  page.choose('viewer-view', '3d')
  shown = page.canvas()
  assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 50
  assert share(shown, LIVER) > 0.005 and share(shown, OTHER) > 0.002
  assert (shown.max(-1) < 30).mean() > 0.5  # without the body around them
  page.click('.viewer-organ[value="1"]')
  assert share(page.canvas(), LIVER) < 0.001
  page.click('#viewer-all')


def middle(picture, tint):
  """Mean column of the pixels of a colour."""
  apart = np.array([share(picture[:, x : x + 8], tint) for x in range(0, picture.shape[1], 8)])
  return float((apart * np.arange(len(apart))).sum() / apart.sum() * 8)


def check_sides(page):
  """Truth and prediction, and the side, on an axial slice. The prediction is the truth moved to the left."""
  page.choose('viewer-view', 'axial')
  predicted = page.canvas()
  page.click('.viewer-mask[value="truth"]')
  truth = page.canvas()
  assert middle(predicted, LIVER) > middle(truth, LIVER) + 10  # towards the left of the patient: to the right
  page.click('#viewer-side')
  turned = page.canvas()
  assert 'left of the patient is at the left' in page.text('viewer-side-text')
  assert abs(middle(turned, LIVER) + middle(truth, LIVER) - truth.shape[1]) < 12
  page.click('#viewer-side')
  assert 'radiological' in page.text('viewer-side-text')


def test_controls(page):
  check_sides(page)
  page.choose('viewer-opacity', '0')
  grey = page.canvas()
  assert share(grey, LIVER) < 0.001
  page.choose('viewer-window', '1')
  assert np.abs(page.canvas() - grey).mean() > 2
  page.choose('viewer-slice', '0.95')
  assert np.abs(page.canvas() - grey).mean() > 2
  page.choose('viewer-opacity', '0.5')
  page.click('.viewer-mask[value="prediction"]')
  page.choose('viewer-case', '2')
  page.until()
  assert page.text('viewer-status').startswith('c0: ')
  assert page.messages() == []


@pytest.mark.parametrize('width', [390, 1280])
def test_it_fits_phones_and_screens(page, width):
  page.driver.execute_cdp_cmd(
    'Emulation.setDeviceMetricsOverride', {'width': width, 'height': 800, 'deviceScaleFactor': 1, 'mobile': width < 500}
  )
  page.drawn()
  assert page.run('return document.documentElement.scrollWidth') <= width
  small = page.run(
    'return [...document.querySelectorAll("button, select, input, .tick")].filter((e) => e.offsetParent && '
    'e.getBoundingClientRect().right > document.documentElement.clientWidth + 1 && !e.closest(".scroll")).length'
  )
  assert small == 0
  page.driver.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


def test_the_server_shows_every_scan_whole(started, workdir):
  with view.make_server(str(workdir)) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
      started.open(f'http://127.0.0.1:{server.server_port}/')
      assert started.text('viewer-status') == f'{CASE}: Voxels of 1.25 x 1.50 x 3.00 mm.'
      assert share(started.canvas(), LIVER) > 0.01
      (workdir / 'predictions' / 'c0.nii.gz').rename(workdir / 'c0.nii.gz')
      started.choose('viewer-case', '2')
      started.until('failed')
      assert 'c0 cannot be shown: ' in started.text('viewer-status')
      (workdir / 'c0.nii.gz').rename(workdir / 'predictions' / 'c0.nii.gz')
    finally:
      server.shutdown()
      thread.join()
  assert all('500' in message for message in started.messages())


def test_without_webgl2_there_are_slices(started, address):
  script = started.driver.execute_cdp_cmd('Page.addScriptToEvaluateOnNewDocument', {'source': NO_WEBGL})
  try:
    started.open(address)
    assert started.run('return document.getElementById("viewer").dataset.renderer') == 'canvas'
    assert 'no WebGL2' in started.text('viewer-status') and started.messages() == []
    shown = started.canvas()
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 50 and share(shown, LIVER) > 0.01
    started.click('.viewer-organ[value="1"]')
    assert share(started.canvas(), LIVER) < 0.001 < share(started.canvas(), OTHER)
    started.click('.viewer-organ[value="1"]')
    check_sides(started)
    before = started.canvas()
    started.choose('viewer-slice', '0.95')
    assert np.abs(started.canvas() - before).mean() > 2
    for name in ('coronal', 'sagittal'):
      started.choose('viewer-view', name)
      assert len(np.unique(started.canvas().reshape(-1, 3), axis=0)) > 20
  finally:
    started.driver.execute_cdp_cmd('Page.removeScriptToEvaluateOnNewDocument', script)


def test_numbers_of_every_form_are_sorted_as_numbers(started, tmp_path):
  wanted = ['-0.3', '1e-05', '0.15', '9 to 3', '10.25', '10.5', '1e+16', 'inf', '-']
  table = Table(['case', 'HD'], [['', text] for text in sorted(wanted)])
  (tmp_path / 'page.html').write_text(document.page([Heading('t', 1), table]), encoding='utf-8')
  started.driver.get((tmp_path / 'page.html').as_uri())
  started.find('thead th:nth-child(2) button').click()
  column = 'return [...document.querySelectorAll("tbody tr")].map((row) => row.cells[1].textContent)'
  assert started.run(column) == wanted
