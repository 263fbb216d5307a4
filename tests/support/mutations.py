"""Damaged and hostile variants of files: bytes changed at random, and JSON values replaced by others."""

import copy
import json
import struct

import numpy as np

_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_FLOATS = (float('nan'), float('inf'), -float('inf'), 0.0, -0.0, 1e-40, 1e38, -1.0)
_VALUES = (
  None, True, False, 0, -1, 1, 255, 256, 65535, 65536, 2**63, 10**400, 0.5, 1e308, float('nan'), float('inf'), '', ' ',
  '0', 'a', 'NaN', 'mean', 'background', 'ignore', '../x', 'a\0b', 'a\nb', '\ud800', 'e\u0301', '\u202e', 'x' * 5000,
  [], [0], [[]], {}, {'': 0}, {'a': {}}, ['a', 'a'],
)  # fmt: skip
_ONE_OF_EACH = (None, -1, 'a', [], {})


def mutated_bytes(data: bytes, rng: np.random.Generator, *, head: int = 400) -> bytes:
  """A file with one to four changes, half of them among its first bytes, where headers are."""
  out = bytearray(data)
  for _ in range(rng.integers(1, 5)):
    if not out:
      return bytes(out)
    at = int(rng.integers(min(len(out), head) if rng.random() < 0.5 else len(out)))
    kind = rng.integers(8)
    if kind == 0:
      out[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
      out[at] = int(rng.integers(256))
    elif kind == 2:
      form = str(rng.choice(['<H', '>H', '<I', '>I']))
      packed = struct.pack(form, int(rng.choice(_NUMBERS)) & (0xFFFF if form[1] == 'H' else 0xFFFFFFFF))
      out[at : at + len(packed)] = packed
    elif kind == 3:
      out[at : at + 4] = struct.pack('<f', np.float32(rng.choice(_FLOATS)))
    elif kind == 4:
      del out[at : at + int(rng.integers(1, 33))]
    elif kind == 5:
      out[at:at] = rng.bytes(int(rng.integers(1, 33)))
    elif kind == 6:
      out[at:at] = out[at : at + int(rng.integers(1, 65))]
    else:
      del out[at:]
  return bytes(out)


def mutated_json(value, rng: np.random.Generator):
  """A JSON value in which one to three parts are removed, renamed, doubled or replaced."""
  out = copy.deepcopy(value)
  for _ in range(rng.integers(1, 4)):
    places = list(_places(out))
    if not places:
      return _VALUES[rng.integers(len(_VALUES))]
    holder, key = places[rng.integers(len(places))]
    kind = rng.integers(5)
    if kind == 0:
      del holder[key]
    elif kind == 1 and isinstance(holder, dict):
      holder[str(_VALUES[rng.integers(len(_VALUES))])] = holder.pop(key)
    elif kind == 2:
      other, at = places[rng.integers(len(places))]
      holder[key] = copy.deepcopy(other[at])
    else:
      holder[key] = copy.deepcopy(_VALUES[rng.integers(len(_VALUES))])
  return out


def changed_once(value):
  """(where, variant) for each part of a JSON value, removed and replaced by a value of each type."""
  for i, (_, key) in enumerate(_places(value)):
    for other in ('removed', *_ONE_OF_EACH):
      out = copy.deepcopy(value)
      holder, _ = list(_places(out))[i]
      if other == 'removed':
        del holder[key]
      else:
        holder[key] = copy.deepcopy(other)
      yield f'{key}: {other!r}', out


def json_bytes(value, rng: np.random.Generator) -> bytes:
  """Mutated JSON as a file: sometimes its bytes are changed, too."""
  data = json.dumps(mutated_json(value, rng)).encode()
  return mutated_bytes(data, rng) if rng.random() < 0.3 else data


def _places(value):
  """(holder, key or index) of every part of a JSON value."""
  entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
  for key, part in list(entries):
    yield value, key
    yield from _places(part)
