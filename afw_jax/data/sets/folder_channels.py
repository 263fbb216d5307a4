"""The key "channel_names" of a dataset.json ("modality" in version 1 of nnU-Net): how many channels, and of what."""

import pathlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

from afw_jax.data.sets.modality import modality_of
from afw_jax.errors import InputError

_UNKNOWN = (
  'the channel name {!r} in dataset.json is neither of CT nor of MR: the scans are treated as MR, with a window from '
  'the percentiles of each (write "CT" if their intensities are HU)'
)


class Channels(NamedTuple):
  """What the scans of a folder show.

  Attributes:
    modality: 'CT' if a channel is one, else 'MR'.
    several: (name, modality) of each channel where there are several, else ().
    notes: on names that say neither CT nor MR.
  """

  modality: Literal['CT', 'MR']
  several: tuple[tuple[str, Literal['CT', 'MR']], ...]
  notes: tuple[str, ...]


def read_channels(path: pathlib.Path, description: Mapping) -> Channels:
  """Reads the channels of a data set.

  Args:
    path: of the file, for errors.
    description: its content.

  Raises:
    InputError: there are none, they are not numbered 0, 1, ..., or the name of one is of several modalities.
  """
  named = description.get('channel_names', description.get('modality'))
  if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
    raise InputError(path, 'has no "channel_names"', 'Write "channel_names": {"0": "CT"}, or another name for MR')
  if len(named) > 1 and set(named) != {str(i) for i in range(len(named))}:
    raise InputError(
      path,
      f'numbers its channels {", ".join(named)}',
      'Number them "0", "1", ... as the files are: NAME_0000, NAME_0001',
    )
  names = (
    [named[key].strip() for key in sorted(named, key=int)] if len(named) > 1 else [*map(str.strip, named.values())]
  )
  found = [_modality(path, name) for name in names]
  kinds = ['CT' if kind == 'CT' else 'MR' for kind in found]
  notes = tuple(_UNKNOWN.format(name) for name, kind in zip(names, found) if kind is None)
  return Channels('CT' if 'CT' in kinds else 'MR', tuple(zip(names, kinds)) if len(names) > 1 else (), notes)


def _modality(path: pathlib.Path, name: str) -> Literal['CT', 'MR'] | None:
  try:
    return modality_of(name)
  except ValueError as error:
    cure = 'Write "CT" if the intensities of the scans are HU, else "MR"'
    raise InputError(path, f'the channel name {error}', cure) from error
