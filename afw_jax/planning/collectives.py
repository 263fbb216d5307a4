"""Communication of a compiled program: the collectives in its HLO text, their sizes, and how often a run executes them."""

import math
import re


def collectives(hlo: str) -> list[tuple[str, int]]:
  """What the devices of a compiled program send each other.

  Args:
    hlo: `compiled.as_text()`.

  Returns:
    One (kind, bytes of the result on one device) per collective in the text, e.g. ('all-gather', 4096). One inside a
    loop's body counts once.
  """
  kinds = 'all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all|collective-broadcast'
  # The result of an asynchronous one stands where it is done; where it starts, its operands stand as well.
  found = re.finditer(rf'^\s*(?:ROOT )?%?\S+ = (.*?) ({kinds})(?:-done)?\(', hlo, re.MULTILINE)
  size = lambda shape: sum(
    _BYTES[dtype] * math.prod(map(int, filter(None, sides.split(','))))
    for dtype, sides in re.findall(r'\b([a-z]\w*)\[([\d,]*)\]', shape)
  )
  return [(kind, size(shape)) for shape, kind in (match.groups() for match in found)]


_BYTES = {
  'pred': 1,
  's4': 1,
  'u4': 1,
  's8': 1,
  'u8': 1,
  's16': 2,
  'u16': 2,
  'bf16': 2,
  'f16': 2,
  's32': 4,
  'u32': 4,
  'f32': 4,
  's64': 8,
  'u64': 8,
  'f64': 8,
  'c64': 8,
  'c128': 16,
}


def traffic(hlo: str) -> list[tuple[str, int, int]]:
  """What the devices of a compiled program send each other in one run of it.

  Args:
    hlo: `compiled.as_text()`.

  Returns:
    One (kind, bytes of the result on one device, times) per collective; times > 1: in a loop whose trips the compiler knows.
  """
  bodies = {}
  for block in re.split(r'^(?=(?:ENTRY )?%?[\w.\-]+ \(.*\{$)', hlo, flags=re.MULTILINE):
    head = re.match(r'(ENTRY )?%?([\w.\-]+) \(', block)
    if head:
      bodies[head[2]] = block
  times = dict.fromkeys(bodies, 0)
  for name in reversed(bodies):  # a computation is written before those that call it; the entry comes last
    if f'ENTRY %{name} ' in bodies[name] or f'ENTRY {name} ' in bodies[name]:
      times[name] = 1
    for line in bodies[name].splitlines()[1:]:
      trips = re.search(r'known_trip_count[":{\s]+n[":\s]+(\d+)', line)
      for attribute, group in re.findall(r'(\w+)=(\{[^{}]*\}|%?[\w.\-]+)', line):
        for called in re.findall(r'[\w.\-]+', group) if attribute in _CALLS else ():
          if called in times:
            times[called] += times[name] * (int(trips[1]) if trips and attribute == 'body' else 1)
  return [(kind, size, times[name]) for name, body in bodies.items() if times[name] for kind, size in collectives(body)]


_CALLS = (
  'body',
  'condition',
  'calls',
  'to_apply',
  'called_computations',
  'branch_computations',
  'true_computation',
  'false_computation',
)
