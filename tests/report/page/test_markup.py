import json
import re

import pytest
from page_reader import Page

from afw_jax.report.page.markup import Html, data_script, element, join, rich

NASTY = ['<img src=x onerror=alert(1)>', '"><b>', "' onclick='x", '</script><script>x</script>', '<!--', ']]>', '&lt;']


@pytest.mark.parametrize('text', NASTY)
def test_texts_and_attributes_are_escaped(text):
  made = element('p', text, element('b', text), title=text)
  (paragraph, bold), page = Page(made).elements, Page(made)
  assert paragraph == ('p', {'title': text}) and bold == ('b', {}) and page.text == text * 2


@pytest.mark.parametrize('text', [*NASTY, '\u2028 \u2029', 'é', '\udcff'])
def test_data_of_scripts_cannot_end_them_and_are_the_same(text):
  made = data_script('viewer-data', {text: [text, 1.5, None]})
  inside = re.fullmatch(r'<script [^>]*>(.*)</script>', made, re.S)[1]
  assert not set('<>&\u2028\u2029') & set(inside) and json.loads(inside) == {text: [text, 1.5, None]}


def test_what_is_no_text_of_html():
  assert element('p', 'a\udcffb') == '<p>a\\udcffb</p>' and element('p', 'a\x00\x1b') == '<p>a\ufffd\ufffd</p>'


def test_attributes_without_a_value_and_nested_parts():
  assert (
    element('input', type='checkbox', checked=True, disabled=False, value=None) == '<input type="checkbox" checked>'
  )
  assert join(['a', [Html('<b>'), None], element('i', 'x', class_='y', aria_label='z')]) == (
    'a<b><i class="y" aria-label="z">x</i>'
  )


def test_paragraphs_of_reports():
  assert rich('**Only 3.** Of `val` <b>') == '<p><strong>Only 3.</strong> Of <code>val</code> &lt;b&gt;</p>'
  assert rich('- a\n- <b>') == '<ul><li>a</li><li>&lt;b&gt;</li></ul>'
