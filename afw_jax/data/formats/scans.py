"""Finds the scans below a path: NIfTI, NRRD and MetaImage files, TransUNet's volumes and DICOM series, at any depth."""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from afw_jax.data.formats import itk_files
from afw_jax.data.formats.dicom_series import ENDINGS as DICOM_ENDINGS
from afw_jax.data.formats.dicom_series import PassedOver, find_series, is_dicom_file
from afw_jax.errors import InputError
from afw_jax.system.file_names import same_on_disk

ENDINGS = ('.nii.gz', '.nii', *itk_files.ENDINGS, '.npy.h5')  # of files with one scan, in upper or lower case
GIVE = 'Give a scan (.nii, .nii.gz, .nrrd, .mha), a DICOM series folder, or a folder of scans.'
# Files and folders of operating systems, file managers and network disks; hidden ones are not looked at either.
_JUNK = ('dicomdir', 'thumbs.db', 'desktop.ini', '__macosx', '@eadir', '$recycle.bin', 'system volume information')
_NO_SCANS = """
  .csv .tsv .txt .md .rst .json .jsonl .xml .yaml .yml .toml .ini .cfg .html .htm .pdf .log .lock .py .sh .ipynb .bat
  .xls .xlsx .ods .doc .docx .odt .ppt .pptx .png .jpg .jpeg .gif .bmp .svg .webp .mp4 .avi .bval .bvec .md5 .sha1
  .sha256 .raw .zraw .pth .pt .pkl .stl .obj
"""
_NOT_READ = {
  ending: kind
  for kind, endings in {
    'NRRD in two files': '.nhdr',
    'a segmentation of 3D Slicer': '.seg.nrrd',
    'FreeSurfer': '.mgz .mgh',
    'Analyze': '.img .hdr .img.gz .hdr.gz',
    'MINC': '.mnc',
    'Philips PAR/REC': '.par .rec',
    'GIPL': '.gipl .gipl.gz',
    'VTK': '.vtk .vti',
    'TIFF': '.tif .tiff',
    'HDF5': '.h5 .hdf5',
    'MATLAB': '.mat',
    'NumPy': '.npy .npz',
    'an archive': '.zip .tar .tgz .tar.gz .gz .bz2 .xz .7z .rar .zst',
  }.items()
  for ending in endings.split()
}


@dataclasses.dataclass(frozen=True)
class Scan:
  """A scan that was found; `volumes.read_image(path, files)` reads it, or its first channel.

  Attributes:
    name: unique among the scans found: its path below the folder searched, without the ending.
    path: the file, or the folder of the DICOM series.
    files: names of the slices of a DICOM series; () for a file.
    others: paths of its second and further channels, where it has several.
  """

  name: str
  path: str
  files: tuple[str, ...] = ()
  others: tuple[str, ...] = ()


class Found(NamedTuple):
  """The scans below a path, sorted by name, and what is not taken for one though it might be."""

  scans: list[Scan]
  passed_over: list[PassedOver]


def find_scans(path: str | os.PathLike, *, written: Callable[[str], set[str]] = lambda folder: set()) -> Found:
  """Finds the scans at a path.

  A folder is searched with all folders in it. Hidden files, tables, texts and pictures are not scans, nor mentioned;
  files of other image formats, archives, DICOM objects that are not scans, damaged files, unreadable folders and second
  ways to a folder (symbolic links) are passed over with the reason.

  Args:
    path: a file with one scan (of DICOM a multi-frame file), or a folder.
    written: the files below a folder that are known to be label maps, given the folder; they are not scans.

  Returns:
    The scans, and what was passed over. The names of scans that differ in their ending or in upper and lower case alone
    (a.nii, a.nii.gz) end in a digest of their path.

  Raises:
    InputError: there is no such path, or nothing in the folder is a scan.
  """
  path = os.fspath(path)
  if not os.path.exists(path):
    raise InputError(path, 'does not exist', GIVE)
  if is_dicom_file(path):
    folder, name = os.path.split(path)
    stem = os.path.splitext(name)[0] if name.lower().endswith(DICOM_ENDINGS) else name
    return Found([Scan(stem, folder or os.curdir, (name,))], [])
  if not os.path.isdir(path):
    return Found([Scan(_stem(os.path.basename(os.path.abspath(path))), path)], [])
  scans, passed, ignored = [], [], set()
  for folder, relative, names in _folders(path, passed):
    ignored |= {os.path.realpath(file) for file in written(folder)}
    join = lambda name: os.path.join(folder, name)  # noqa: B023 (called at once)
    names = [n for n in names if not n.lower().endswith(tuple(_NO_SCANS.split()))]
    names = [n for n in names if os.path.realpath(join(n)) not in ignored]
    single = [n for n in names if n.lower().endswith(ENDINGS) and not n.lower().endswith('.seg.nrrd')]
    found, not_scans, others = find_series(folder, [n for n in names if n not in single])
    scans += [Scan('/'.join([*relative, _stem(n)]), join(n)) for n in single]
    base = relative or ([] if any(s.label for s in found) else [os.path.basename(os.path.abspath(path))])
    scans += [Scan('/'.join([*base, s.label] if s.label else base), folder, s.files) for s in found]
    passed += not_scans
    reasons = [(join(n), _reason(join(n))) for n in others]
    passed += [PassedOver(file, reason) for file, reason in reasons if reason]
  if not scans:
    listed = '; '.join(f'{p.path} {p.reason}' for p in passed[:5])
    listed += f'; and {len(passed) - 5} more' if len(passed) > 5 else ''
    raise InputError(path, f'no scan was found in this folder{" (" + listed + ")" if listed else ""}', GIVE)
  return Found(sorted(_distinct(path, scans), key=lambda scan: scan.name), sorted(passed))


def _folders(root: str, passed: list[PassedOver]) -> Iterator[tuple[str, list[str], list[str]]]:
  """(folder, its path below the root in parts, names of its files) of every folder, each once; real ones come first."""
  todo, linked, seen = collections.deque([(root, [])]), collections.deque(), {}
  while todo or linked:
    folder, relative = (todo or linked).popleft()
    try:
      status = os.stat(folder)
      other = seen.setdefault((status.st_dev, status.st_ino), folder)
      if other is not folder:
        passed.append(PassedOver(folder, f'is the same folder as {other}'))
        continue
      with os.scandir(folder) as entries:
        entries = sorted((e for e in entries if not _is_junk(e.name)), key=lambda e: e.name)
    except OSError as error:
      if folder == root:
        raise InputError(root, f'cannot be read ({error.strerror or error})', 'Check its permissions.') from error
      passed.append(PassedOver(folder, f'cannot be read ({error.strerror or error})'))
      continue
    names = []
    for entry in entries:
      if os.path.isdir(entry.path):
        (linked if entry.is_symlink() else todo).append((entry.path, [*relative, entry.name]))
      elif os.path.isfile(entry.path) or not os.path.exists(entry.path):  # no pipes or devices, which block
        names.append(entry.name)  # a broken link too: a scan is not to be lost without a word
    yield folder, relative, names


def _is_junk(name: str) -> bool:
  return name.startswith('.') or name.lower() in _JUNK


def _reason(path: str) -> str:
  """Why a file that is neither a scan nor of a DICOM series is passed over; '' where that goes without saying."""
  name = os.path.basename(path).lower()
  for ending in sorted(_NOT_READ, key=len, reverse=True):
    if name.endswith(ending):
      return f'is not read ({_NOT_READ[ending]}): convert it to NIfTI'
  try:
    with open(path, 'rb') as file:
      return 'is neither NIfTI nor DICOM' if b'\0' in file.read(512) else ''  # '': a text, or empty
  except OSError as error:
    return f'cannot be read ({error.strerror or error})'


def _distinct(root: str, scans: list[Scan]) -> list[Scan]:
  """The scans with names that differ on every disk."""
  names = collections.Counter(same_on_disk(scan.name) for scan in scans)

  def name(scan: Scan) -> str:
    if names[same_on_disk(scan.name)] == 1:
      return scan.name
    text = os.path.relpath(scan.path, root).encode(errors='surrogateescape') + b'\0'.join(
      map(os.fsencode, scan.files[:1])
    )
    return f'{scan.name}~{hashlib.sha256(text).hexdigest()[:8]}'

  return [dataclasses.replace(scan, name=name(scan)) for scan in scans]


def _stem(name: str) -> str:
  ending = next((e for e in ENDINGS if name.lower().endswith(e) and len(name) > len(e)), '')
  return name[: len(name) - len(ending)]
