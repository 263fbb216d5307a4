"""The pages of a run, of a comparison, and of new label maps."""

import os
import shlex
from collections.abc import Mapping, Sequence

from afw_jax.errors import InputError
from afw_jax.inference import outputs, record
from afw_jax.report import tables
from afw_jax.report.blocks import Block, Heading, Picture, Table, markdown
from afw_jax.report.page import document, sources, viewer
from afw_jax.report.page.markup import Html, element
from afw_jax.report.page.sources import Source, ranked
from afw_jax.report.runs import Run
from afw_jax.report.tables import number
from afw_jax.system import atomic_files
from afw_jax.system.file_names import file_name

_VOLUME_BYTES = 15_000_000  # of all volumes of a page, at most
_LEAST_BYTES = 200_000  # for less, none are embedded
_SLACK = 100_000
_MOST_CELLS = 300_000  # of the tables of single organs in a page, which are some 6 MB
_STATISTICS = ('mL', 'mean', 'sd', 'i', 'j', 'k', 'x (mm)', 'y (mm)', 'z (mm)', 'at the border', 'components')


def of_run(
  run: Run,
  begin: Sequence[Block],
  figures: Sequence[Picture],
  pictures: Sequence[Picture],
  source: Source | str,
  *,
  served: bool = False,
) -> str:
  """The page of an evaluated run.

  Args:
    run: with its scores.
    begin: title, notes and the table by organ.
    figures: curves and weights.
    pictures: overlays of cases.
    source: of the scans; or why there is none.
    served: whether `--mode=view` shows the page, with the volumes of all cases.
  """
  order = ranked(run)
  place_of = {file_name(run.cases[i]): rank for rank, i in enumerate(order)}
  stem = lambda picture: os.path.splitext(os.path.basename(picture.path))[0]
  overlays = sorted(pictures, key=lambda picture: place_of.get(stem(picture), len(order)))
  scores = tables.score_tables(run, order) if run.scores['dsc'].size * len(tables.COLUMNS) <= _MOST_CELLS else {}
  end: list[Block | Html] = [
    Heading('Cases'),
    'Means over the organs of each case, the lowest DSC first.',
    tables.case_table(run, order),
    *(document.folded(f'{title} of each organ', table) for title, table in scores.items()),
    *([] if scores else ['The scores of each organ in each case are too many for a page: they are in `scores.csv`.']),
    *([Heading('Overlays'), 'From the lowest to the highest mean DSC.', *overlays] if overlays else []),
    *([Heading('Training'), *figures] if figures else []),
  ]
  return _with_viewer(begin, _hint(run.workdir), source, end, served=served)


def of_predictions(folder: str, source: Source | str, *, served: bool = False) -> str:
  """The page of the label maps that --mode=predict wrote into a folder: organ volumes and the viewer.

  Raises:
    InputError: the record of the folder is damaged.
  """
  content = record.read(folder)
  organs = content['organs']
  volume = lambda row, organ: number(row['volume_ml'][organ], 1) if organ in row['volume_ml'] else '-'
  rows = [
    [row.get('scan', row['output']), *(volume(row, organ) for organ in organs), row['output']]
    for row in content['scans'][: _MOST_CELLS // (len(organs) + 2)]
  ]
  notes = [f'- {row["scan"]}: {note}' for row in content['scans'] for note in row.get('notes', ())]
  failed = [f'- {one["scan"]}: {one["problem"]}' for one in content['failed']]
  passed = [f'- {one["path"]}: {one["reason"]}' for one in content['passed_over']]
  begin: list[Block] = [
    Heading('Label maps of new scans', 1),
    f'{len(content["scans"])} label map(s). There is no truth to compare them with: look at them before you use them.',
    *(['**Unusual scans:**', '\n'.join(notes)] if notes else []),
    *(['**Not segmented:**', '\n'.join(failed)] if failed else []),
    *(['**Passed over:**', '\n'.join(passed)] if passed else []),
    Heading('Organ volumes (mL)'),
    Table(['scan', *organs, 'label map'], rows),
    *([] if len(rows) == len(content['scans']) else [f'The first {len(rows)} label maps; all are in `{record.CSV}`.']),
  ]
  return _with_viewer(begin, _hint(folder), source, _statistics(organs, content['scans']), served=served)


def _statistics(organs: Sequence[str], rows: Sequence[Mapping]) -> list[Block | Html]:
  """The statistics of the organs of each label map, as the record has them."""
  rows = [row for row in rows if row.get('statistics')]  # older rows have none
  if not rows:
    return []
  parts, cells = [], 0
  for row in rows:
    cells += len(row['statistics']) * (1 + len(_STATISTICS))
    if cells > _MOST_CELLS:
      break
    unit = f' ({row["intensity_unit"]})' if row.get('intensity_unit') == 'HU' else ''
    head = ['organ', *(f'{name}{unit}' if name in ('mean', 'sd') else name for name in _STATISTICS)]
    table = Table(head, [[organ, *_cells(row['statistics'][organ])] for organ in organs if organ in row['statistics']])
    parts.append(document.folded(row['scan'], table))
  return [
    Heading('Statistics of the organs'),
    'Mean and standard deviation of the intensities; first and last voxel along the axes of the scan as it is stored '
    '(i, j, k); centroid towards right, anterior and superior (RAS); whether the organ reaches the border of the scan; '
    'connected components.',
    *parts,
    *([] if len(parts) == len(rows) else [f'Those of the first {len(parts)} label maps; all are in `{record.CSV}`.']),
  ]


def _cells(one: Mapping) -> list[str]:
  boxes = [f'{first} to {last}' for first, last in one['box'] or ()] or ['-'] * 3
  shown = lambda value: '-' if value is None else str(value)
  centroid = one['centroid_ras_mm'] or [None] * 3
  numbers = [shown(value) for value in (one['volume_ml'], one['mean'], one['sd'])]
  border = 'yes' if one['touches_border'] else 'no'
  return [*numbers, *boxes, *map(shown, centroid), border, shown(one['components'])]


def _hint(workdir: str) -> str:
  return f'`afw-jax --mode=view --workdir={shlex.quote(workdir)}` shows every scan here, at its full resolution.'


def _with_viewer(
  begin: Sequence[Block], hint: str, source: Source | str, end: Sequence[Block | Html], *, served: bool
) -> str:
  """A page with the viewer between its parts, or with what stands in its way."""
  start: list[Block | Html] = [*begin, Heading('Scans')]
  if isinstance(source, str):
    return document.page([*start, element('p', f'The scans cannot be shown: {source}', class_='problem'), *end])
  if served:
    return document.page([*start, *viewer.served(source), *end], scripts=viewer.SCRIPTS, served=True)
  start.append(hint)
  rest = len(document.page([*start, *end], scripts=viewer.SCRIPTS).encode()) + _SLACK
  limit = min(_VOLUME_BYTES, document.MAX_BYTES - rest)
  if limit < _LEAST_BYTES:
    return document.page([*start, element('p', 'The page has no room for scans.', class_='problem'), *end])
  parts = viewer.embedded(source, limit)
  return document.page([*start, *parts, *end], scripts=viewer.SCRIPTS if len(parts) and _shows(parts) else ())


def _shows(parts: Sequence[Html]) -> bool:
  return any('id="viewer-data"' in part for part in parts)


def write_beside(output: str, blocks: Sequence[Block]) -> None:
  """Writes a report as Markdown, and as a page beside it (or the page alone, where that is the name).

  Args:
    output: of the Markdown file; its ending becomes .html for the page.
    blocks: of the report.

  Raises:
    InputError: the page would take the place of another file.
  """
  path = f'{os.path.splitext(output)[0]}.html'
  check_free(path)
  if path != output:
    atomic_files.write_text(output, markdown(blocks))
  atomic_files.write_text(path, document.page(blocks))


def place_beside(output: str) -> str:
  """The file of the page for label maps that go to `output`; InputError where it is another file."""
  path = os.path.join(outputs.destination(os.path.expanduser(output))[0], 'index.html')
  check_free(path)
  return path


def write_predictions(path: str) -> str:
  """Writes the page of the label maps beside it, and returns its path."""
  folder = os.path.dirname(path)
  try:
    source = sources.of_predictions(folder)
  except InputError as error:
    source = str(error)
  atomic_files.write_text(path, of_predictions(folder, source))
  return path


def check_free(path: str) -> None:
  """Raises InputError where a page would take the place of a file that is not such a page."""
  if not os.path.lexists(path):
    return
  try:
    with open(path, encoding='utf-8', errors='replace') as file:
      begin = file.read(4096)
  except OSError:  # a folder, a link to nothing, a file of somebody else
    begin = ''
  if document.MARK not in begin:
    raise InputError(path, 'is there already, and is not a page of this program', 'Move it away.')
