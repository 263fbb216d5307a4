"""Communication of a compiled program: the collectives in its HLO text, their sizes, and how often each is executed."""

import math
import re
from collections.abc import Iterator

_BYTES = {  # of one number of each of XLA's types
  **dict.fromkeys(('pred', 's4', 'u4', 's8', 'u8'), 1),
  **dict.fromkeys(('s16', 'u16', 'bf16', 'f16'), 2),
  **dict.fromkeys(('s32', 'u32', 'f32'), 4),
  **dict.fromkeys(('s64', 'u64', 'f64', 'c64'), 8),
  'c128': 16,
}
# Attributes of an instruction that name the computations it calls.
_CALLS = (
  *('body', 'condition', 'calls', 'to_apply', 'called_computations'),
  *('branch_computations', 'true_computation', 'false_computation'),
)


def collectives(hlo: str) -> list[tuple[str, int]]:
  """Lists the collectives in the text of a compiled program.

  Args:
    hlo: `compiled.as_text()`.

  Returns:
    (kind, bytes of the result on one device) for each, e.g. ('all-gather', 4096); one in the body of a loop is listed
    once.
  """
  kinds = 'all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all|collective-broadcast'
  # Of an asynchronous collective the `-done` instruction is read: the result of `-start` includes the operands.
  found = re.finditer(rf'^\s*(?:ROOT )?%?\S+ = (.*?) ({kinds})(?:-done)?\(', hlo, re.MULTILINE)
  size = lambda shape: sum(
    _BYTES[dtype] * math.prod(map(int, filter(None, sides.split(','))))
    for dtype, sides in re.findall(r'\b([a-z]\w*)\[([\d,]*)\]', shape)
  )
  return [(kind, size(shape)) for shape, kind in (match.groups() for match in found)]


def traffic(hlo: str) -> list[tuple[str, int, int]]:
  """Lists the collectives that one run of a compiled program executes.

  Args:
    hlo: `compiled.as_text()`.

  Returns:
    (kind, bytes of the result on one device, times) for each; times is more than 1 in a loop whose number of trips the
    compiler knows.
  """
  computations = _computations(hlo)
  times = dict.fromkeys(computations, 0)
  for name in reversed(computations):  # callers come after what they call, the entry last
    text = computations[name]
    if text.startswith('ENTRY '):
      times[name] = 1
    for called, trips in _calls(text):
      if called in times:
        times[called] += times[name] * trips
  return [
    (kind, size, times[name]) for name, text in computations.items() if times[name] for kind, size in collectives(text)
  ]


def _computations(hlo: str) -> dict[str, str]:
  """Name -> text of the computations of a program, in the order of the text."""
  blocks = re.split(r'^(?=(?:ENTRY )?%?[\w.\-]+ \(.*\{$)', hlo, flags=re.MULTILINE)
  heads = [re.match(r'(?:ENTRY )?%?([\w.\-]+) \(', block) for block in blocks]
  return {head[1]: block for head, block in zip(heads, blocks) if head}


def _calls(text: str) -> Iterator[tuple[str, int]]:
  """(name, times) of the computations that a computation calls; times is 1 where the compiler does not know it."""
  for line in text.splitlines()[1:]:
    trips = re.search(r'known_trip_count[":{\s]+n[":\s]+(\d+)', line)
    for attribute, group in re.findall(r'(\w+)=(\{[^{}]*\}|%?[\w.\-]+)', line):
      if attribute in _CALLS:
        for called in re.findall(r'[\w.\-]+', group):
          yield called, int(trips[1]) if trips and attribute == 'body' else 1
