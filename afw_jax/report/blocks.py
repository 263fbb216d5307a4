"""A report as a list of blocks, of which the Markdown file and the page are two forms."""

import os
import urllib.parse
from collections.abc import Sequence
from typing import NamedTuple


class Heading(NamedTuple):
  """A heading; level 1 is the title."""

  text: str
  level: int = 2


class Table(NamedTuple):
  """A table of texts.

  Attributes:
    head: titles of the columns.
    rows: one text for each column.
    summaries: number of rows at the end that summarise the others, and stay there however the table is sorted.
  """

  head: list[str]
  rows: list[list[str]]
  summaries: int = 0


class Picture(NamedTuple):
  """A PNG file and the name of what it shows."""

  path: str
  name: str


# A text is a paragraph, in which **this** is emphasised and `this` is code; lines that begin with '- ' are a list.
Block = str | Heading | Table | Picture


def markdown(blocks: Sequence[Block], folder: str = '.') -> str:
  """The blocks as Markdown.

  Args:
    blocks: of the report.
    folder: of the file, which links to pictures start from.
  """
  return '\n\n'.join(_markdown(block, folder) for block in blocks) + '\n'


def _markdown(block: Block, folder: str) -> str:
  match block:
    case Heading():
      return f'{"#" * block.level} {block.text}'
    case Table():
      return table_markdown(block.head, block.rows)
    case Picture():
      link = urllib.parse.quote(os.path.relpath(block.path, folder), errors='surrogateescape')
      return f'![{block.name}]({link})'
  return block


def table_markdown(head: list[str], rows: list[list[str]]) -> str:
  """A Markdown table, first column left, the others right."""
  lines = [head, ['---'] + ['---:'] * (len(head) - 1), *rows]
  return '\n'.join(
    '| ' + ' | '.join(' '.join(str(v).split()).replace('|', '\\|') for v in line) + ' |' for line in lines
  )
