"""The pages of the documentation, read as Markdown: fenced blocks, headings, links, tables."""

import dataclasses
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
PAGES = tuple(
  sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob('*.md'), *ROOT.glob('docs/*.md')))
) + ('benchmarks/README.md',)  # fmt: skip
_FENCE = re.compile(r'(?:<!-- (?P<mark>[^>]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$', re.M | re.S)


@dataclasses.dataclass(frozen=True)
class Block:
  """A fenced block: the page and line it starts at, its language, its text, and the comment right above it."""

  page: str
  line: int
  language: str
  text: str
  mark: str

  def __str__(self):
    return f'{self.page}:{self.line}'


def read(page: str) -> str:
  return (ROOT / page).read_text(encoding='utf-8')


def blocks(page: str, *languages: str) -> list[Block]:
  """The fenced blocks of a page in these languages, in order."""
  text = read(page)
  found = [
    Block(page, text.count('\n', 0, m.start('language')) + 1, m['language'], m['text'], m['mark'] or '')
    for m in _FENCE.finditer(text)
  ]
  assert len(found) * 2 == len(re.findall(r'^```', text, re.M)), f'{page}: a fenced block is not closed'
  return [block for block in found if block.language in languages]


def prose(page: str) -> str:
  """The text of a page without its fenced blocks."""
  return _FENCE.sub('', read(page))


def anchors(page: str) -> set[str]:
  """The anchors of its headings, as GitHub makes them."""
  titles = re.findall(r'^#+ (.*)$', prose(page), re.M)
  return {re.sub(r'[^\w\- ]', '', re.sub(r'\[(.*?)\]\(.*?\)', r'\1', t)).lower().replace(' ', '-') for t in titles}


def links(page: str) -> list[str]:
  """The targets of its links and images."""
  return re.findall(r'\]\(([^)\s]+)\)', prose(page))


def table(page: str, heading: str) -> list[list[str]]:
  """The rows of the first table whose first column has this heading, cells as text without the Markdown of code."""
  rows = []
  for line in prose(page).splitlines():
    cells = [cell.strip() for cell in re.split(r'(?<!\\)\|', line.strip())[1:-1]]
    if rows and not cells:
      break
    if rows or (cells and cells[0] == heading):
      rows.append(cells)
  assert len(rows) > 2, f'{page} has no table with the heading {heading!r}'
  return rows[2:]


def codes(cell: str) -> list[str]:
  """The texts in backticks of a cell."""
  return re.findall(r'`([^`]+)`', cell)
