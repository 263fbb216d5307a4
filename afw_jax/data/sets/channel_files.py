"""The files of cases with several channels: NAME_0000, NAME_0001, ... in one folder, as nnU-Net names them."""

import pathlib
import re
from collections.abc import Iterable, Sequence

from afw_jax.errors import InputError

Path = pathlib.Path


def split_name(name: str) -> tuple[str, int] | None:
  """(NAME, 1) of NAME_0001; None of a name without the number of a channel."""
  match = re.fullmatch(r'(.+)_(\d{4})', name, re.ASCII)
  return (match[1], int(match[2])) if match else None


def group(
  found: Iterable[tuple[str, Path]], channels: Sequence[str], problems: list[InputError]
) -> dict[str, list[Path]]:
  """The files of each case in the order of the channels.

  Args:
    found: (name without ending, path) of each file.
    channels: their names.
    problems: files that are missing, surplus, twice there or not numbered are added here; their cases are left out
      only where no file of the first channel is there.
  """
  cases: dict[str, dict[int, Path]] = {}
  for name, path in found:
    numbered = split_name(name)
    if numbered is None:
      cure = f'Name it {name}_0000, {name}_0001, ... by its channel, or move it away'
      problems.append(InputError(path, 'does not say which channel it is', cure))
    elif numbered[1] >= len(channels):
      named = ', '.join(f'{i} ({channel})' for i, channel in enumerate(channels))
      what = f'is channel {numbered[1]} of case {numbered[0]}, and the channels are {named}'
      problems.append(
        InputError(path, what, 'Move it away, or train with it: "channel_names" in dataset.json names it')
      )
    elif other := cases.setdefault(numbered[0], {}).get(numbered[1]):
      what = f'channel {numbered[1]} of case {numbered[0]} exists twice, also as {other}'
      problems.append(InputError(path, what, 'Remove one of them'))
    else:
      cases[numbered[0]][numbered[1]] = path
  for name, files in cases.items():
    there = next(iter(files.values()))
    for i in sorted(set(range(len(channels))) - files.keys()):
      what = f'has no channel {i} ({channels[i]}): there is no {name}_{i:04d} beside it'
      problems.append(InputError(there, what, 'Add the file, or move the other channels of this case away'))
  return {name: [files[i] for i in sorted(files)] for name, files in cases.items()}
