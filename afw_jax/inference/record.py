"""The record of the label maps in a folder: volumes.json, and volumes.csv, which is made from it.

Several processes may add to it at the same time: each reads, merges and writes it under a lock. A row belongs to one
label map, whatever network made it; the columns of volumes.csv are the organs of all rows.
"""

import contextlib
import csv
import os
from collections.abc import Iterable

from afw_jax.data.formats.dicom_series import PassedOver
from afw_jax.errors import InputError
from afw_jax.inference import statistics
from afw_jax.system import atomic_files, locks

JSON, CSV = 'volumes.json', 'volumes.csv'
_LOCK = '.volumes.lock'
_LAST = ('label_map', 'checkpoint', 'intensity_unit')  # columns of volumes.csv behind the volumes
_MOVE = 'Move it away, or choose another --output.'


def read(folder: str) -> dict:
  """The content of FOLDER/volumes.json; an empty record where there is none.

  Returns:
    {'unit': 'mL', 'organs': names in the order of their columns, 'scans': rows, 'failed': [...], 'passed_over': [...]}.
    A row has 'scan', 'output' (relative to the folder) and 'volume_ml'; those of older versions lack others.

  Raises:
    InputError: volumes.json is damaged or not such a record.
  """
  path = os.path.join(folder, JSON)
  if not os.path.lexists(path):
    return {'unit': 'mL', 'organs': [], 'scans': [], 'failed': [], 'passed_over': []}
  content = atomic_files.read_json(path, cure=_MOVE)
  rows = content.get('scans')
  if content.get('unit') != 'mL' or not isinstance(rows, list) or not all(map(_is_row, rows)):
    raise InputError(path, 'is not a table of organ volumes by --mode=predict', _MOVE)
  for row in rows:
    if 'checkpoint' not in row:  # an older version: as the path was given
      row['output'] = os.path.basename(row['output'])
  organs = [*content.get('organs', ()), *(organ for row in rows for organ in row['volume_ml'])]
  return {'failed': [], 'passed_over': [], **content, 'organs': list(dict.fromkeys(organs))}


def _is_row(row: object) -> bool:
  return isinstance(row, dict) and isinstance(row.get('output'), str) and isinstance(row.get('volume_ml'), dict)


def check(folder: str) -> None:
  """Raises InputError where volumes.json or volumes.csv in a folder is another table, which would be overwritten."""
  read(folder)
  path = os.path.join(folder, CSV)
  if not os.path.lexists(path):
    return
  try:
    with open(path, encoding='utf-8-sig', errors='surrogateescape', newline='') as file:  # as it is written
      head = next(csv.reader(file), [])
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise InputError(path, f'cannot be read ({error})', _MOVE) from error
  ours = lambda name: name.endswith('_ml') or name in _LAST or statistics.is_column(name)
  foreign = [name for name in head[1:] if not ours(name)]
  if head and (head[0] != 'scan' or foreign):
    raise InputError(
      path, f'is another table: --mode=predict does not write its column {(foreign or head)[0]!r}', _MOVE
    )
  if head and not os.path.lexists(os.path.join(folder, JSON)):
    raise InputError(path, f'lies without the {JSON} that it was made from, and its rows would be lost', _MOVE)


def row_with(content: dict, name: str) -> dict | None:
  """The row of a record that a label map or a file of probabilities belongs to; `name` is its path from the folder."""
  return next((row for row in content['scans'] if name == row['output'] or name in row.get('files', ())), None)


def files_below(folder: str) -> set[str]:
  """Paths of the label maps and probabilities that FOLDER/volumes.json records; none where there is no such record."""
  try:
    rows = read(folder)['scans']
  except InputError:  # some other file of this name
    return set()
  return {os.path.join(folder, name) for row in rows for name in (row['output'], *row.get('files', ()))}


def locked(folder: str) -> contextlib.AbstractContextManager[bool]:
  """Keeps other processes from changing the record of a folder while the block runs."""
  return locks.locked(os.path.join(folder, _LOCK))


def add(folder: str, row: dict) -> None:
  """Adds the row of a label map, in place of the row and the failure it had before. The caller holds the lock."""
  content = read(folder)
  kept = lambda rows: [other for other in rows if other['output'] != row['output']]
  content['scans'] = [*kept(content['scans']), row]
  content['failed'] = kept(content['failed'])
  content['organs'] = list(dict.fromkeys([*content['organs'], *row['volume_ml']]))
  _write(folder, content)


def note_rest(source: str, folder: str, failed: Iterable[dict], passed_over: Iterable[PassedOver]) -> None:
  """Records what was not predicted of the scans at `source`, in place of what was noted of it before.

  Args:
    source: the file or folder that was predicted.
    folder: of the record.
    failed: {'scan', 'output' (relative to the folder), 'source', 'problem'} of each scan that failed.
    passed_over: files and folders that are no scans.
  """
  source = os.path.abspath(source)
  outside = lambda path: path != source and not path.startswith(os.path.join(source, ''))
  with locked(folder):
    content = read(folder)
    content['failed'] = [*(f for f in content['failed'] if outside(f['source'])), *failed]
    content['passed_over'] = [
      *(p for p in content['passed_over'] if outside(p['path'])),
      *({'path': os.path.abspath(p.path), 'reason': p.reason} for p in passed_over),
    ]
    _write(folder, content)


def _write(folder: str, content: dict) -> None:
  content['scans'].sort(key=lambda row: (row.get('scan', ''), row['output']))
  content['failed'].sort(key=lambda row: row['output'])
  atomic_files.write_json(os.path.join(folder, JSON), content)
  with atomic_files.replace_atomically(os.path.join(folder, CSV), newline='') as file:
    table = csv.writer(file)
    organs = content['organs']
    behind = [column for organ in organs for column in statistics.columns(organ)]
    table.writerow(['scan', *(f'{organ}_ml' for organ in organs), *_LAST, *behind])
    for row in content['scans']:
      made_by, found = row.get('checkpoint'), row.get('statistics', {})
      table.writerow(
        [
          row.get('scan', ''),
          *(row['volume_ml'].get(organ, '') for organ in organs),
          row['output'],
          _name(made_by) if made_by else '',
          row.get('intensity_unit', ''),
          *(cell for organ in organs for cell in statistics.cells(found.get(organ))),
        ]
      )


def _name(made_by: dict) -> str:
  """The checkpoint of a row, or all that were averaged."""
  return ' + '.join(f'{one["workdir"]} step {one["step"]}' for one in made_by.get('average_of', [made_by]))
