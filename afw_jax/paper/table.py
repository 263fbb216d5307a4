"""What a table is made of: rows, each one training apart from its seed, and what it is compared with.

A row says what it changes in the recipe of its data set. Rows with the same changes are the same run, whatever they
are called in their tables.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from afw_jax.paper.results import Published


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of a table.

  Attributes:
    label: what the table calls it.
    changes: config key -> value, on top of the recipe of the data set.
    published: the paper's numbers.
    against: label of the row that this one is compared with.
    x: its place on the axis of a figure.
  """

  label: str
  changes: Mapping[str, Any]
  published: Published = dataclasses.field(default_factory=dict)
  against: str | None = None
  x: float | None = None


@dataclasses.dataclass(frozen=True)
class Part:
  """The rows of a table on one data set.

  Attributes:
    data: name of the recipe, a section of the config.
    title: name of the data set.
    rows: with different labels.
    folds: values of data.fold; each row is a training for each of them.
  """

  data: str
  title: str
  rows: tuple[Row, ...]
  folds: tuple[str, ...] = ('',)


@dataclasses.dataclass(frozen=True)
class Table:
  """A table, or a figure that is drawn from one.

  Attributes:
    name: of its files.
    title: for its heading.
    parts: one for each data set.
    seeds: instead of those that the user asks for.
    axis: what `Row.x` is; '' for a table.
    remark: a sentence for its caption.
    picture: 'overlays' or 'surfaces' where it is a picture of scans, by the first of the user's seeds; '' for a table.
  """

  name: str
  title: str
  parts: tuple[Part, ...]
  seeds: tuple[int, ...] | None = None
  axis: str = ''
  remark: str = ''
  picture: str = ''


def split(text: str) -> tuple[str, ...]:
  """The words of a text that are separated by commas."""
  return tuple(word.strip() for word in text.split(',') if word.strip())
