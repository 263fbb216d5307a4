"""The viewer of a page: its controls, and the volumes or the addresses of these as data for its script."""

import logging
from collections.abc import Sequence

from afw_jax.errors import InputError
from afw_jax.report.page import scenes
from afw_jax.report.page.markup import Html, data_script, element
from afw_jax.report.page.sources import Source
from afw_jax.report.style import colour

_log = logging.getLogger('afw_jax')

SCRIPTS = ('niivue.umd.js', 'slices.js', 'viewer.js')
_VIEWS = {'all': 'Slices and 3D', 'axial': 'Axial', 'coronal': 'Coronal', 'sagittal': 'Sagittal', '3d': '3D'}
_MASKS = {'prediction': 'Prediction', 'truth': 'Truth', 'none': 'Scan alone'}


def embedded(source: Source, limit: int) -> list[Html]:
  """The viewer with the chosen scans inside.

  Args:
    source: of the scans.
    limit: bytes of all volumes.

  Returns:
    Parts of a page; instead of scans that cannot be shown, the reason.
  """
  cases, problems = [], []
  for place, standing in source.chosen.items():
    try:
      made = scenes.embedded(source.load(place, False), limit // len(source.chosen))
    except InputError as error:
      problems.append(f'{source.names[place]} cannot be shown: {error}')
      _log.warning('page: %s', problems[-1])
      continue
    cases.append(_case(source, place, standing) | {'details': made})
  return [*(element('p', text, class_='problem') for text in problems), *(_viewer(source, cases) if cases else [])]


def served(source: Source) -> list[Html]:
  """The viewer with all scans, which it asks its server for: cases/N.json, then the addresses that this names."""
  return _viewer(source, [_case(source, i, '') | {'url': f'cases/{i}.json'} for i in range(len(source.names))])


def _case(source: Source, place: int, standing: str) -> dict:
  parts = filter(None, [source.names[place], standing, source.captions[place]])
  return {'name': source.names[place], 'title': ', '.join(parts)}


def _viewer(source: Source, cases: Sequence[dict]) -> list[Html]:
  organs = [{'name': organ, 'colour': colour(c)} for c, organ in enumerate(source.organs, 1)]
  masks = [name for name in _MASKS if name in (*source.masks, 'none')]
  option = lambda value, text: element('option', text, value=value)
  choose = lambda name, title, options: element(
    'label', title, element('select', options, id=f'viewer-{name}', autocomplete='off')
  )
  controls = [
    choose('case', 'Scan', [option(i, case['title']) for i, case in enumerate(cases)]),
    choose('view', 'View', [option(name, text) for name, text in _VIEWS.items()]),
    choose('window', 'Window', []),
    element(
      'label', 'Slice', element('input', type='range', id='viewer-slice', min=0, max=1, step='any', autocomplete='off')
    ),
    element(
      'label',
      'Opacity',
      element('input', type='range', id='viewer-opacity', min=0, max=1, step=0.05, value=0.5, autocomplete='off'),
    ),
    _fieldset(
      'Label map',
      [
        _tick('radio', name, _MASKS[name], class_='viewer-mask', name='viewer-mask', checked=i == 0)
        for i, name in enumerate(masks)
      ],
    ),
    _fieldset('Side', [_tick('checkbox', '', 'Left of the patient at the right', id='viewer-side', checked=True)]),
    _fieldset(
      'Organs',
      [
        *(
          _tick('checkbox', c, organ['name'], class_='viewer-organ', checked=True, colour=organ['colour'])
          for c, organ in enumerate(organs, 1)
        ),
        element('button', 'All', type='button', id='viewer-all'),
        element('button', 'None', type='button', id='viewer-none'),
      ],
    ),
  ]
  say = 'The scan with its organs in three planes and in 3D. Arrow keys move through it.'
  return [
    element(
      'section',
      element('div', controls, class_='controls'),
      element('div', element('canvas', id='viewer-canvas', tabindex=0, role='img', aria_label=say), class_='stage'),
      element('p', id='viewer-side-text', class_='said'),
      element('p', 'The viewer needs JavaScript.', id='viewer-status', role='status', class_='said'),
      id='viewer',
    ),
    data_script('viewer-data', {'organs': organs, 'masks': list(source.masks), 'cases': list(cases)}),
  ]


def _fieldset(title: str, parts: Sequence[Html]) -> Html:
  return element('fieldset', element('legend', title), parts)


def _tick(kind: str, value: object, text: str, *, colour: str = '', **attributes: object) -> Html:
  box = element('input', type=kind, value=value, autocomplete='off', **attributes)
  swatch = element('span', class_='swatch', style=f'background:{colour}') if colour else None
  return element('label', box, swatch, text, class_='tick')
