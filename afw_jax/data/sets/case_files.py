"""The files of one case, and how a finder of a layout pairs scans with label maps."""

import dataclasses
import pathlib
import unicodedata
from collections.abc import Iterable, Sequence

from afw_jax.data.sets.spec import DatasetSpec
from afw_jax.errors import InputError

ENDINGS = ('.nii.gz', '.nii', '.nrrd', '.mha', '.mhd')


@dataclasses.dataclass(frozen=True)
class CaseFiles:
  """One scan and its label map.

  Attributes:
    id: unique in the data set; also the name of the case in a store.
    image: path for `volumes.read_image`.
    label: path for `volumes.read_label`; None for a scan without labels.
    split: 'train', 'val' or 'test' where that is published or given, else None.
    subject: the patient; the scans of one subject stay in one part.
    others: paths of the second and further channels, where a scan has several.
  """

  id: str
  image: str
  label: str | None
  split: str | None = None
  subject: str = ''
  others: Sequence[str] = ()


def normal_name(name: str) -> str:
  """A name of a case or an organ in one Unicode form (NFC): disks and editors write the same letters in several."""
  return unicodedata.normalize('NFC', name)


def where_to_get(spec: DatasetSpec) -> str:
  """The cure for a folder that does not hold the data set."""
  return f'{spec.how_to_get}. Expected layout: {spec.layout}'


def stem(path: pathlib.Path) -> str | None:
  """File name without the ending of a scan (.nii.gz, .nrrd ...); None for other files."""
  return next(
    (path.name[: -len(e)] for e in ENDINGS if path.name.lower().endswith(e) and len(path.name) > len(e)), None
  )


def abbreviate(names: Iterable[str]) -> str:
  """'a, b, c and 5 more': the first eight names."""
  names = list(names)
  return ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '')


def pairs(
  images: dict[str, list[pathlib.Path]], labels: dict[str, list[pathlib.Path]], problems: list[InputError]
) -> list[CaseFiles]:
  """One case for each name that has exactly one scan and one label map.

  Args:
    images: name -> scans of that name.
    labels: name -> label maps of that name.
    problems: everything else is added here.
  """
  cases = []
  for name in sorted(images.keys() | labels.keys()):
    scan, label = images.get(name, []), labels.get(name, [])
    for files in (scan, label):
      if len(files) > 1:
        problems.append(InputError(files[1], f'case {name} exists twice, also as {files[0]}', 'Remove one of them'))
    if not label:
      problems.append(
        InputError(
          scan[0],
          f'has no label file named {name}',
          'Add the label, or move the scan away (imagesTs/ is for scans without labels)',
        )
      )
    elif not scan:
      problems.append(InputError(label[0], f'has no image file named {name}', 'Add the scan or remove the label'))
    else:
      cases.append(CaseFiles(name, str(scan[0]), str(label[0]), subject=name))
  return cases
