"""The figures of docs/the-loss.md are those that its script draws, from the losses as they are."""

import importlib.util
import re

import numpy as np
import pytest
from doc_pages import ROOT, read
from figure_checks import png
from marks import SLOW

FOLDER = ROOT / 'docs' / 'figures'


@pytest.fixture(scope='module')
def script():
  spec = importlib.util.spec_from_file_location('the_loss', FOLDER / 'the_loss.py')
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@SLOW
def test_the_page_shows_what_the_script_draws(script, tmp_path):
  shown = re.findall(r'\(figures/([\w.]+)\)', read('docs/the-loss.md'))
  paths = {path.rsplit('/')[-1]: path for path in script.draw(tmp_path)}
  assert sorted(shown) == sorted(paths) == sorted(path.name for path in FOLDER.glob('*.png'))
  for name, path in paths.items():
    new, old = (png(file).astype(float) for file in (path, FOLDER / name))
    assert (FOLDER / name).stat().st_size < 130 * 1024
    assert new.shape == old.shape and np.abs(new - old).mean() < 0.5, f'run python docs/figures/the_loss.py: {name}'


def test_the_pulls_are_the_closed_forms(script):
  dice = np.array(script.CLASSES)
  gamma = np.array([1, *[0.25] * 8])
  pulls = {label: np.asarray(script.pull(g, options)) for label, _, g, options in script.LOSSES}
  paper, eq2, *_, entropic = pulls.values()
  lam = paper * dice / gamma  # the same for every class
  np.testing.assert_allclose(lam, lam[0], rtol=1e-5)
  weight = (np.sqrt(1 + 4 / dice**gamma) - 1) / 2
  np.testing.assert_allclose(eq2, weight * gamma * dice ** (gamma - 1), rtol=1e-5)
  np.testing.assert_allclose(entropic, 9 * np.exp(dice / 0.25) / np.exp(dice / 0.25).sum(), rtol=1e-5)
  assert paper.argmin() == entropic.argmax() == 8  # the organ that is not found
