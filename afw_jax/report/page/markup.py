"""HTML elements: every text in them is escaped, unless it is `Html` already."""

import html
import json
import re
from collections.abc import Iterable

from afw_jax.system import atomic_files

_VOID = ('img', 'input', 'meta', 'br', 'link')
# What ends or opens a script element within a script element, and line ends that only JavaScript knows.
_IN_JSON = {c: f'\\u{ord(c):04x}' for c in '<>&\u2028\u2029'}


class Html(str):
  """A text that is HTML."""


Part = str | Html | Iterable['Part'] | None


def element(tag: str, *parts: Part, **attributes: object) -> Html:
  """An element with its content.

  Args:
    tag: its name.
    *parts: texts, elements, None, or lists of these.
    **attributes: `class_` is class, an underscore a hyphen; True is an attribute without a value, None and False none.
  """
  shown = ''.join(
    f' {name.rstrip("_").replace("_", "-")}' + ('' if value is True else f'="{_escaped(value)}"')
    for name, value in attributes.items()
    if value is not None and value is not False
  )
  if tag in _VOID:
    return Html(f'<{tag}{shown}>')
  return Html(f'<{tag}{shown}>{join(parts)}</{tag}>')


def join(parts: Part) -> Html:
  """The parts one after the other."""
  if parts is None:
    return Html('')
  if isinstance(parts, Html):
    return parts
  if isinstance(parts, str):
    return Html(_escaped(parts))
  return Html(''.join(join(part) for part in parts))


def rich(text: str) -> Html:
  """A paragraph of a report: **this** is emphasised, `this` is code, and lines that begin with '- ' are a list."""
  lines = text.split('\n')
  if all(line.startswith('- ') for line in lines):
    return element('ul', [element('li', _rich(line[2:])) for line in lines])
  return element('p', _rich(text))


def _rich(text: str) -> Html:
  text = re.sub(r'\*\*(.+?)\*\*', r'<strong>\1</strong>', _escaped(text))
  return Html(re.sub(r'`(.+?)`', r'<code>\1</code>', text))


def data_script(name: str, value: object) -> Html:
  """A script element with JSON, which nothing in its texts can end."""
  text = atomic_files.to_json(value, separators=(',', ':'))
  for character, escape in _IN_JSON.items():
    text = text.replace(character, escape)
  json.loads(text)
  return Html(f'<script type="application/json" id="{_escaped(name)}">{text}</script>')


def _escaped(value: object) -> str:
  """A text for HTML; bytes of file names that are not UTF-8 become \\xNN, and what HTML forbids a question mark."""
  text = str(value).encode('utf-8', 'backslashreplace').decode()
  text = re.sub('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]', '\ufffd', text)
  return html.escape(text, quote=True)
