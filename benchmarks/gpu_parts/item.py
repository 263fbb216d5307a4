"""What is measured: items, each with one or more sides that run in processes of their own and take turns."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class Work:
  """How much is measured.

  Attributes:
    dry: tiny sizes on a CPU, to see that every path runs.
    quick: bfloat16 only, and fewer steps.
    networks: those that are measured; () = all.
  """

  dry: bool = False
  quick: bool = False
  networks: tuple[str, ...] = ()

  def chosen(self, networks: Iterable[str]) -> list[str]:
    """Those of some networks that are measured."""
    return [name for name in networks if not self.networks or name in self.networks]


class Side(NamedTuple):
  """One program of a measurement.

  Attributes:
    function: 'module:function', called with `options`; it returns a dict of facts, or a `Ready`.
    options: keyword arguments, plain JSON.
    limit_s: seconds until its facts have to be there.
  """

  function: str
  options: Mapping[str, Any]
  limit_s: float


@dataclasses.dataclass(frozen=True)
class Item:
  """One measurement, a row of the table.

  Attributes:
    part: the name of its part.
    name: unique within the part.
    sides: name of a side -> the side.
    flags: added to XLA_FLAGS.
    cache: whether compiled programs are kept in, and taken from, the cache on the disk.
    rounds: rounds in which the sides take turns; 0 where they only return facts.
    timed: whether a time matters, so that nothing may run beside it.
    least_s: seconds without which it is not worth starting.
  """

  part: str
  name: str
  sides: Mapping[str, Side]
  flags: str = ''
  cache: bool = True
  rounds: int = 0
  timed: bool = True
  least_s: float = 20

  @property
  def limit_s(self) -> float:
    return max(side.limit_s for side in self.sides.values())


class Ready(NamedTuple):
  """A side that is prepared and waits for its turns.

  Attributes:
    facts: what is known before the first round.
    round: takes its turn and returns seconds per step.
    end: returns what is known after the last round.
  """

  facts: dict
  round: Callable[[], float]
  end: Callable[[], dict]


def single(part: str, name: str, function: str, options: Mapping[str, Any], limit_s: float, **more) -> Item:
  """An item with one side."""
  return Item(part, name, {'ours': Side(function, options, limit_s)}, **more)


def successes(records: Mapping[str, dict]) -> dict[str, dict]:
  """Name of an item -> what its side 'ours' found, where that did not fail."""
  found = {name: record['sides']['ours'] for name, record in records.items()}
  return {name: facts for name, facts in found.items() if 'failed' not in facts}


def failures(records: Mapping[str, dict]) -> list[list[str]]:
  """The first cells of a row for each item whose side 'ours' failed."""
  found = {name: record['sides']['ours'].get('failed') for name, record in records.items()}
  return [[name, f'failed: {reason}'] for name, reason in found.items() if reason is not None]


def markdown(heading: list[str], rows: list[list]) -> list[str]:
  """The lines of a Markdown table; rows that are too short end in empty cells."""
  lines = ['| ' + ' | '.join(heading) + ' |', '|---' * len(heading) + '|']
  rows = [[*row, *[''] * (len(heading) - len(row))] for row in rows]
  return lines + ['| ' + ' | '.join(str(cell).replace('|', '/') for cell in row) + ' |' for row in rows]


def number(value, digits: int = 3) -> str:
  """A number with some significant digits; '' for None."""
  if value is None:
    return ''
  return f'{value:.{digits}g}' if isinstance(value, float) and abs(value) < 10**digits else f'{value:,.0f}'
