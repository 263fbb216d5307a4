"""The report on a data set that --mode=check has measured: blocks of the Markdown file and the page, and a short text.

All of them are made from the content of check.json.
"""

from collections.abc import Mapping, Sequence

from afw_jax.data.fingerprint import outliers
from afw_jax.planning import proposal
from afw_jax.report.blocks import Block, Heading, Table

_AXES = '(z, y, x)'
_LISTED = 20  # notes of one kind on the terminal
_MOST_ROWS = 5000  # cases in the tables of a page
RULES = (
  'Intensities are percentiles 0.5, 50 and 99.5 of the voxels of all organs of a case, as in the fingerprint of '
  'nnU-Net (which pools the cases). A case stands out where a volume or spacing (their logarithm) or a percentile is '
  f'more than {outliers.Z:g} robust standard deviations from the median of the cases: z = (x - median) / (1.4826 MAD), '
  f'where 1.4826 MAD counts as at least {outliers.LEAST_VOLUME:g} (volumes), {outliers.LEAST_SPACING:g} (spacings) or '
  f'{outliers.LEAST_INTENSITY:.0%} of the range of the organs (intensities); with fewer than {outliers.FEWEST} cases '
  f'none does. An organ is in parts where its second component has more than {outliers.SECOND_PART:.0%} of its voxels, '
  'and it is in one part in most other cases. Sides are compared by centroids.'
)


def blocks(content: Mapping) -> list[Block]:
  """The whole report.

  Args:
    content: of check.json.
  """
  problems, notes = content['problems'], [*content['notes'], *content['standing_out']]
  channel = content['measured_channel']
  found: list[Block] = [
    Heading(f'Check of {content["name"]}', 1),
    f'{_counts(content)}. **{len(problems)} problem(s), {len(notes)} note(s).**',
  ]
  if problems:
    found += [Heading('Problems'), 'Preparation refuses the data set until they are mended.', _list(problems)]
  if content['standing_out']:
    found += [Heading('Cases that stand out'), _list(content['standing_out'])]
  if content['notes']:
    found += [Heading('Notes of a preparation'), _list(content['notes'])]
  if content['cases']:
    found += [
      Heading('All cases'),
      Table(['measure', 'median', 'lowest', 'highest', 'cases'], _summary(content)),
      Heading('Cases'),
      _case_table(content),
      Heading('Organ volumes (mL)'),
      _volume_table(content),
      *_left_out(content),
      RULES + (f' Intensities are those of the channel {_line(channel)}.' if channel else ''),
    ]
  if content['proposal']:
    found += [Heading('Proposal'), *_proposal(content['proposal'])]
  return found


def terminal_text(content: Mapping, folder: str) -> str:
  """What is printed: a short table, problems, notes, the proposal, and where the rest is."""
  lines = ['', _counts(content)]
  if content['cases']:
    rows = [['', 'median', 'lowest', 'highest', 'cases'], *_summary(content)]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines += [
      '',
      *('  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows),
    ]
  titles = {'problems': 'Problems', 'standing_out': 'Cases that stand out', 'notes': 'Notes of a preparation'}
  for kind, title in titles.items():
    texts = content[kind]
    shown = texts if kind == 'problems' else texts[:_LISTED]
    if texts:
      lines += ['', f'{title} ({len(texts)})', *(f'  - {_line(text)}' for text in shown)]
    if len(shown) < len(texts):
      lines.append(f'  and {len(texts) - len(shown)} more')
  if content['proposal']:
    lines += ['', f'Proposal ({content["proposal"]["network"]})']
    lines += [f'  {option}' for option in proposal.command_options(content['proposal']['options'])]
    lines += [f'  {text.replace("`", "")}' for text in _explained(content['proposal'])]
  return '\n'.join([*lines, '', f'Page: {folder}/index.html (also check.md, check.json)'])


def _counts(content: Mapping) -> str:
  splits = ', '.join(f'{len(ids)} {part}' for part, ids in content['splits'].items() if ids)
  total = sum(map(len, content['splits'].values()))
  without = '' if len(content['cases']) == total else f', of which {len(content["cases"])} could be measured'
  return f'{content["name"]} ({content["modality"]}) in {_line(content["root"])}: {total} case(s) ({splits}){without}'


def _summary(content: Mapping) -> list[list[str]]:
  """Rows (what, median, lowest, highest, cases)."""
  found, count = content['summary'], str(len(content['cases']))
  rows = []
  for key, title, decimals in (
    ('shape', 'voxels', 0),
    ('spacing_mm', 'spacing (mm)', 3),
    ('extent_mm', 'extent (mm)', 0),
  ):
    if found[key]:
      ends = [_by(found[key][end], decimals) for end in ('median', 'lowest', 'highest')]
      rows.append([f'{title} {_AXES}', *ends, count])
  names = ('0.5th percentile of the organs', 'median of the organs', '99.5th percentile of the organs')
  for i, name in enumerate(names):
    if found['percentiles']:
      rows.append([name, *(f'{found["percentiles"][end][i]:.4g}' for end in ('median', 'lowest', 'highest')), count])
  for organ, one in found['volume_ml'].items():
    rows.append([f'{organ} (mL)', *(_number(one[end]) for end in ('median', 'lowest', 'highest')), str(one['cases'])])
  rows.append(['distinct spacings', str(found['distinct_spacings']), '-', '-', count])
  return rows


def _case_table(content: Mapping) -> Table:
  part_of = {case_id: part for part, ids in content['splits'].items() for case_id in ids}
  head = [
    'case',
    'split',
    f'voxels {_AXES}',
    f'spacing (mm) {_AXES}',
    f'extent (mm) {_AXES}',
    'organs 0.5 %',
    'organs 50 %',
    'organs 99.5 %',
  ]
  rows = [
    [
      _line(case_id),
      part_of[case_id],
      _by(case['shape'], 0),
      _by(case['spacing_mm'], 3),
      _by(case['extent_mm'], 0),
      *((f'{value:.4g}' for value in case['percentiles']) if case['percentiles'] else ('-', '-', '-')),
      ', '.join(case['absent']) or '-',
    ]
    for case_id, case in _shown(content)
  ]
  return Table([*head, 'absent organs'], rows)


def _volume_table(content: Mapping) -> Table:
  organs = content['organs']
  volume = lambda one: _number(one['volume_ml']) if one['voxels'] else '-'
  rows = [[_line(case_id), *(volume(case['organs'][o]) for o in organs)] for case_id, case in _shown(content)]
  medians = [_number(content['summary']['volume_ml'][organ]['median']) for organ in organs]
  return Table(['case', *organs], [*rows, ['median', *medians]], summaries=1)


def _left_out(content: Mapping) -> list[Block]:
  if len(content['cases']) <= _MOST_ROWS:
    return []
  return [f'The first {_MOST_ROWS} of {len(content["cases"])} cases; all are in `check.json`.']


def _shown(content: Mapping) -> list[tuple[str, Mapping]]:
  return list(content['cases'].items())[:_MOST_ROWS]


def _proposal(proposed: Mapping) -> list[Block]:
  options = '\n'.join(f'- `{option}`' for option in proposal.command_options(proposed['options']))
  return [f'For {proposed["network"]}; nothing is changed by itself.', options, ' '.join(_explained(proposed))]


def _explained(proposed: Mapping) -> list[str]:
  size = proposed['median_size'] if 'train.patch_size' in proposed['options'] else proposed['median_size'][-2:]
  said = [f'The median {"scan" if len(size) == 3 else "slice"} has {_by(size, 0)} voxels at this spacing.']
  if proposed['needs_gib']:
    said.append(
      f'One training step, compiled for {proposed["target"]}, needs {proposed["needs_gib"]:.3g} of '
      f'{proposed["memory_gib"]:.4g} GiB.'
    )
  return [*said, *proposed['remarks']]


def _list(texts: Sequence[str]) -> str:
  return '\n'.join(f'- {_line(text)}' for text in texts)


def _line(text: str) -> str:
  return ' '.join(text.split())


def _by(values: Sequence[float] | None, decimals: int) -> str:
  return '-' if values is None else ' x '.join(f'{value:.{decimals}f}' for value in values)


def _number(value: float | None) -> str:
  return '-' if value is None else f'{value:.1f}'
