"""The scans of several channels among files that were found: NAME_0000, NAME_0001, ... in one folder."""

import os
import pathlib
from collections.abc import Sequence

from afw_jax.data.formats.scans import ENDINGS, Scan
from afw_jax.data.sets import channel_files
from afw_jax.data.sets.case_files import stem
from afw_jax.data.sets.channels import Channel
from afw_jax.errors import InputError, InputErrors


def grouped(scans: Sequence[Scan], channels: Sequence[Channel], source: str) -> list[Scan]:
  """The scans that a network takes.

  Args:
    scans: that were found, a file each.
    channels: of the network; of one, the scans are returned as they are.
    source: the folder, or the file of one channel, whose others are looked for beside it.

  Returns:
    One `Scan` for each NAME, with `others`, sorted.

  Raises:
    InputError, InputErrors: DICOM series; or files of channels that are missing, surplus or not numbered, all of them.
  """
  if len(channels) == 1:
    return list(scans)
  series = next((scan for scan in scans if scan.files), None)
  if series:
    what = f'is a DICOM series, and the network takes {len(channels)} channels'
    cure = 'Convert each channel to NIfTI, on one grid: NAME_0000.nii.gz, NAME_0001.nii.gz, ...'
    raise InputError(series.path, what, cure)
  found = [(_name(scan), pathlib.Path(scan.path)) for scan in scans]
  if not os.path.isdir(source):
    found = _beside(found[0])
  problems: list[InputError] = []
  cases = channel_files.group(found, [channel.name for channel in channels], problems)
  if problems:
    raise InputErrors(problems) if len(problems) > 1 else problems[0]
  return [Scan(name, str(first), (), tuple(map(str, others))) for name, (first, *others) in sorted(cases.items())]


def _name(scan: Scan) -> str:
  """The name of a scan by its path, also where two that differ in their ending were given other names."""
  folder, _, name = scan.name.rpartition('/')
  return '/'.join([*([folder] if folder else []), stem(pathlib.Path(scan.path)) or name])


def _beside(given: tuple[str, pathlib.Path]) -> list[tuple[str, pathlib.Path]]:
  """A file of one channel with those of the same case beside it."""
  name, path = given
  numbered = channel_files.split_name(name)
  if numbered is None:
    return [given]
  files = sorted(p for p in path.absolute().parent.iterdir() if p.name.lower().endswith(ENDINGS))
  named = [(stem(p) or '', p) for p in files]
  return [(n, p) for n, p in named if (channel_files.split_name(n) or ('',))[0] == numbered[0]]
