"""Reads a page as a browser does: its elements, tables and data."""

import html.parser
import json


class Page(html.parser.HTMLParser):
  """The parsed page.

  Attributes:
    elements: (tag, attributes) in their order.
    tables: of each table, its rows as lists of texts; the first is the head.
    headings: texts of h1 and h2.
    text: of everything but scripts and styles.
    data: the JSON of the viewer; None without one.
  """

  def __init__(self, text: str):
    super().__init__(convert_charrefs=True)
    self.elements, self.tables, self.headings, self.text, self.data = [], [], [], '', None
    self._open: list[str] = []
    self._json: str | None = None
    self.feed(text)
    self.close()
    if self._json is not None:
      self.data = json.loads(self._json)

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in ('img', 'input', 'meta', 'br', 'link'):
      self._open.append(tag)
    if tag == 'table':
      self.tables.append([])
    elif tag == 'tr':
      self.tables[-1].append([])
    elif tag in ('th', 'td'):
      self.tables[-1][-1].append('')
    elif tag in ('h1', 'h2'):
      self.headings.append('')
    elif tag == 'script' and dict(attrs).get('id') == 'viewer-data':
      self._json = ''

  def handle_endtag(self, tag):
    assert self._open.pop() == tag, f'{tag} closes another element'

  def handle_data(self, data):
    if 'script' in self._open:
      if self._json is not None and self.elements[-1] == ('script', {'type': 'application/json', 'id': 'viewer-data'}):
        self._json += data
      return
    if 'style' in self._open:
      return
    self.text += data
    if 'table' in self._open and {'th', 'td'} & set(self._open):
      self.tables[-1][-1][-1] += data
    if {'h1', 'h2'} & set(self._open):
      self.headings[-1] += data

  def all(self, tag: str, **attributes: str) -> list[dict]:
    """The attributes of all elements of a kind with these attributes."""
    return [a for t, a in self.elements if t == tag and attributes.items() <= a.items()]
