"""Figures 5 to 7: scans with the truth and the label maps of each run, as a picture and a caption with its numbers."""

from collections.abc import Collection, Sequence

from afw_jax.paper import overlay_rows, surface_views
from afw_jax.paper.render import PHANTOM, tex, title
from afw_jax.paper.runs import Member
from afw_jax.paper.scans import Scan, Shown, read
from afw_jax.paper.table import Table
from afw_jax.report.blocks import Block, Heading, Picture, markdown
from afw_jax.report.blocks import Table as Rows
from afw_jax.report.tables import csv_text, number

_RIGHT = "The patient's left is at the right."
_UNKNOWN = 'The files of these scans have neither voxel size nor orientation: voxels count as cubes.'
_SEEN = {
  'overlays': (
    'Rows: the scans with the lowest, the median and the highest mean DSC of {reference}. Slice: of each scan the one '
    'where the truth has the most organs, of these the one with the largest labelled area. All panels of a row show '
    'the same slice, window and crop, which holds all organs of all label maps; all rows have the same scale.'
  ),
  'surfaces': (
    'The scan with the median mean DSC of {reference} (of two in the middle the lower). All surfaces are seen by one '
    "camera, {azimuth} degrees from the front towards the patient's left and {below} degrees from below, at one scale, "
    'on the grid of the scan; their shape is not smoothed.'
  ),
}


def collect(table: Table, members: Sequence[Member], done: Collection[str]) -> Shown:
  """What the figure of a table shows, `scans.read`."""
  return read(table, members, done)


def caption(table: Table, shown: Shown, *, phantom: bool = False) -> list[str]:
  """The sentences that belong to a figure: what it shows, how it was chosen, and what is missing."""
  lines = shown.filled.lines
  missing = [line.row.label for line in lines if not line.done]
  lacking = [
    f'{label} in {scan.case} ({" ".join(found.split())})'
    for scan in shown.scans
    for label, found in scan.predictions.items()
    if isinstance(found, str) and label not in missing
  ]
  reference = shown.reference or _reference(table)
  instead = f'{_reference(table)} has no run yet, so {reference} chooses. ' if reference != _reference(table) else ''
  view = {'azimuth': surface_views.AZIMUTH_DEG, 'below': -surface_views.ELEVATION_DEG}
  return [
    f'{sum(line.done for line in lines)} of {sum(line.planned for line in lines)} runs.'
    + (f' No run yet: {"; ".join(missing)}.' if missing else '')
    + (f' Not shown: {"; ".join(lacking)}.' if lacking else ''),
    *([f'**{PHANTOM}**'] if phantom else []),
    f'{instead}{_SEEN[table.picture].format(reference=reference, **view)}',
    *([_RIGHT if all(scan.has_mm for scan in shown.scans) else _UNKNOWN] if shown.scans else []),
    'Drawn are the label maps that were scored'
    + (f' (split {shown.filled.split}, checkpoint {shown.filled.checkpoint})' if shown.scans else '')
    + f', of the runs with seed {shown.seed}. DSC: mean over the organs of the whole scan'
    + (f', convention {shown.filled.convention}.' if shown.scans else '.'),
  ]


def _reference(table: Table) -> str:
  return next(row.label for row in table.parts[0].rows if row.against is None)


def _rows(shown: Shown) -> list[list[str]]:
  """One row for each scan: id, standing, slice, and the DSC of each column."""
  return [
    [
      scan.case,
      scan.standing,
      '-' if scan.slice is None else str(scan.slice),
      *(_dsc(scan, line.row.label) for line in shown.filled.lines),
    ]
    for scan in shown.scans
  ]


def _dsc(scan: Scan, label: str) -> str:
  return number(scan.dsc[label]) if label in scan.dsc else '-'


def _head(shown: Shown) -> list[str]:
  return ['scan', 'chosen as', 'slice', *(f'{line.row.label}: DSC (%)' for line in shown.filled.lines)]


def as_markdown(table: Table, shown: Shown, *, phantom: bool = False) -> str:
  """`as_blocks` as Markdown, beside the picture."""
  return markdown(as_blocks(table, shown, f'{table.name}.png', phantom=phantom))


def as_blocks(table: Table, shown: Shown, picture: str, *, phantom: bool = False) -> list[Block]:
  """A report with the picture (the path of its file, or ''), its caption, and the scans that it shows."""
  parts: list[Block] = [Heading(title(table), 1), *caption(table, shown, phantom=phantom)]
  if shown.scans:
    parts += [*([Picture(picture, title(table))] if picture else []), Rows(_head(shown), _rows(shown))]
  return parts


def as_csv(table: Table, shown: Shown, *, phantom: bool = False) -> str:
  """One line for each panel of a run; nothing where there is no number."""
  head = ['figure', 'data', 'scan', 'chosen_as', 'slice', 'row', 'seed', 'dsc_percent', 'convention', 'missing']
  rows = []
  for scan in shown.scans:
    for label, found in scan.predictions.items():
      dsc = f'{scan.dsc[label]:.10g}' if label in scan.dsc else ''
      rows.append(
        [table.name, shown.filled.part.data, scan.case, scan.standing, '' if scan.slice is None else scan.slice]
        + [label, shown.seed, dsc, shown.filled.convention, ' '.join(found.split()) if isinstance(found, str) else '']
      )
  return csv_text([head, *rows])


def as_tex(table: Table, shown: Shown, *, phantom: bool = False) -> str:
  """A LaTeX figure; needs the package graphicx."""
  says = ' '.join(caption(table, shown, phantom=phantom)).replace('**', '')
  lines = [
    r'% needs \usepackage{graphicx}',
    r'\begin{figure}',
    r'\centering',
    rf'\includegraphics[width=\textwidth]{{{table.name}.png}}',
    rf'\caption{{{tex(f"{table.title}. {says}")}}}',
    r'\end{figure}',
  ]
  return '\n'.join([*lines, ''])


def draw(path: str, table: Table, shown: Shown, *, phantom: bool = False) -> str:
  """Writes the PNG file of a figure and returns its path."""
  lines = shown.filled.lines
  above = f'{table.title} ({sum(line.done for line in lines)} of {sum(line.planned for line in lines)} runs)'
  above = f'{above}\n{PHANTOM}' if phantom else above
  room = overlay_rows if table.picture == 'overlays' else surface_views
  return room.draw(path, above, [line.row.label for line in lines], shown)
