"""A page: the blocks of a report and the viewer as one HTML file, with its styles, scripts and pictures inside."""

import base64
import functools
import hashlib
import importlib.resources
from collections.abc import Callable, Sequence

from afw_jax.report.blocks import Block, Heading, Picture, Table
from afw_jax.report.page.markup import Html, element, join, rich
from afw_jax.report.page.pictures import data_uri

MAX_BYTES = 25_000_000
PICTURE_BYTES = 6_000_000  # of all pictures of a page
MARK = '<meta name="generator" content="afw_jax">'
_SORT = 'Sort the table by this column'


def page(blocks: Sequence[Block | Html], *, scripts: Sequence[str] = (), served: bool = False) -> str:
  """The whole file.

  Args:
    blocks: of the report, and parts that are HTML already; the first is the heading of level 1.
    scripts: assets that the parts need, beside that which sorts tables.
    served: whether a server of this computer hands the page out, which may then be asked for volumes.
  """
  pictures = sum(isinstance(block, Picture) for block in blocks)
  embedded = functools.partial(data_uri, limit=PICTURE_BYTES // max(1, pictures))
  (title,) = [block.text for block in blocks if isinstance(block, Heading) and block.level == 1]
  sections = [
    (f's{i}', block.text) for i, block in enumerate(blocks) if isinstance(block, Heading) and block.level == 2
  ]
  body = [_block(block, i, embedded) for i, block in enumerate(blocks)]
  links = [element('li', element('a', text, href=f'#{name}')) for name, text in sections]
  body.insert(1, element('nav', element('ul', links), aria_label='Sections') if len(links) > 1 else Html(''))
  code = [asset(name) for name in ('sort.js', *scripts)]
  head = [
    element('meta', charset='utf-8'),
    Html(MARK),
    element('meta', http_equiv='Content-Security-Policy', content=_policy(code, served=served)),
    element('meta', name='viewport', content='width=device-width, initial-scale=1'),
    element('title', title),
    Html(f'<style>{asset("page.css")}</style>'),
  ]
  tail = [Html(f'<script>{text}</script>') for text in code]
  html = element('html', element('head', head), element('body', element('main', body), tail), lang='en')
  return f'<!DOCTYPE html>\n{html}\n'


def asset(name: str) -> str:
  """The text of a file of this package."""
  return importlib.resources.files('afw_jax.report.page').joinpath('assets', name).read_text(encoding='utf-8')


def folded(title: str, block: Block) -> Html:
  """A block that is shown when its title is clicked."""
  return element('details', element('summary', title), _block(block, 0, None))


def _policy(code: Sequence[str], *, served: bool) -> str:
  """What a browser may run and load for this page: its own scripts and pictures, and nothing from a network."""
  digest = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
  scripts = ' '.join(f"'sha256-{digest(text)}'" for text in code)
  sources = "'self' data: blob:" if served else 'data: blob:'
  return (
    f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; "
    f"connect-src {sources}; base-uri 'none'; form-action 'none'"
  )


def _block(block: Block | Html, number: int, embedded: Callable[[str], str] | None) -> Html:
  match block:
    case Html():
      return block
    case Heading(text, level):
      return element(f'h{level}', text, id=f's{number}')
    case Table():
      return _table(block)
    case Picture(path, name):
      assert embedded is not None
      picture = element('img', src=embedded(path), alt=name)
      return element('figure', picture, element('figcaption', name))
  return rich(block)


def _table(table: Table) -> Html:
  """A table whose columns can be sorted by the buttons in its head; it scrolls by itself where it is too wide."""
  head = [element('th', element('button', title, type='button', title=_SORT), scope='col') for title in table.head]
  cells = lambda row: [
    element('th', row[0], scope='row'),
    *(element('td', cell) for cell in row[1:]),
  ]
  split = len(table.rows) - table.summaries
  body, foot = ([element('tr', cells(row)) for row in part] for part in (table.rows[:split], table.rows[split:]))
  content = [element('thead', element('tr', head)), element('tbody', body), element('tfoot', foot) if foot else None]
  return element('div', element('table', content), class_='scroll', tabindex=0, role='group', aria_label='table')


def wide(parts: Sequence[Html]) -> Html:
  """Parts side by side where there is room."""
  return element('div', join(parts), class_='wide')
