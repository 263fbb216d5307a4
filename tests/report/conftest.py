"""The figures that a test draws."""

import pytest

from afw_jax.report import figures, overlays, style


@pytest.fixture
def drawn(monkeypatch):
  """The matplotlib figures that were saved."""
  kept = []

  def keep(figure, path):
    kept.append(figure)
    return style.save(figure, path)

  monkeypatch.setattr(figures, 'save', keep)
  monkeypatch.setattr(overlays, 'save', keep)
  return kept
