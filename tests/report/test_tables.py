"""Texts as LaTeX shows them."""

import pytest

from afw_jax.report.tables import tex_text


@pytest.mark.parametrize('text, shown', [
  ('p < 0.001', r'p \textless{} 0.001'), ('a>b', r'a\textgreater{}b'), ('a|b', r'a\textbar{}b'),
  ('left_kidney & 5 %', r'left\_kidney \& 5 \%'), ('\\~^', r'\textbackslash{}\textasciitilde{}\textasciicircum{}'),
  (' two\n lines ', 'two lines'),
])  # fmt: skip
def test_signs_that_mean_something_else_to_latex(text, shown):
  assert tex_text(text) == shown
