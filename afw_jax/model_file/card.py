"""The model card of a model file, its README.md: what the networks are, how well they did, and how they are run."""

import math
from collections.abc import Mapping, Sequence

from afw_jax.data.sets import channels
from afw_jax.data.sets.window import is_of_channels
from afw_jax.report.blocks import table_markdown
from afw_jax.report.stats import Summary
from afw_jax.report.tables import COLUMNS, cell

_INTENDED = (
  'For research: label maps of organs in scans like those of the training, to be looked at by somebody who can judge '
  'them. It is **not a medical device and not for clinical use**: no diagnosis, no planning of a treatment, no '
  'decision about a patient. Scans of another modality, body region, contrast phase, scanner or age group, and organs '
  'after surgery, can be labelled wrongly without any sign of it.'
)
_RUN = """\
With this file, jax and nibabel alone (`pip install jax nibabel`), on a CPU, an NVIDIA GPU (`jax[cuda12]`) or a TPU:

```bash
python model.zip SCANS labels.nii.gz
python model.zip --check
```

The first writes the label map of a NIfTI scan on the grid of the scan, with the label ids above; it takes the overlap
of sliding windows and the batch size of the training, mirrors nothing and cleans nothing up. The second segments the
example in this file and compares the result. `runner.py` in it is the program that does both.
With afw_jax also DICOM, folders of scans and all options of prediction, or as a run:

```bash
afw-jax --mode=predict --workdir=model.zip --input=scans --output=labels
afw-jax --mode=import --input=model.zip --workdir=runs/imported
```
"""


def text(meta: Mapping, where: Mapping[str, str]) -> str:
  """The README.md of a model file.

  Args:
    meta: its meta.json.
    where: name of a data set -> where its scans come from, for those that say so.
  """
  networks, first = meta['networks'], meta['networks'][0]['meta']
  organs = first['data']['organs']
  rows = [[_plain(organ), str(c), str(first['data']['output_ids'][organ])] for c, organ in enumerate(organs, 1)]
  parts = [
    f'# Segmentation of {len(organs)} organ{"s" if len(organs) > 1 else ""} in {first["data"]["modality"]} scans',
    f'{_count(len(networks))} of afw_jax {meta["versions"]["packages"]["afw_jax"]}: '
    f'{", ".join(_plain(network["meta"]["model"]["name"]) for network in networks)}.'
    + (' Their probabilities are averaged.' if len(networks) > 1 else ''),
    '## Intended use',
    _INTENDED,
    '## Organs',
    table_markdown(['organ', 'class', 'id in label maps'], rows),
    *_regions(first['data']),
    '## Networks',
    table_markdown(['', *(str(i) for i in range(1, len(networks) + 1))], _network_rows(networks)),
    f'Working grid and patch are (z, y, x) or (y, x); {meta["axis_order"]}.',
    '## Data',
    '\n'.join(f'- {line}' for line in _data_lines(networks, where)),
    '## Scores',
    *(['Of each network by itself; the average of all is not scored here.'] if len(networks) > 1 else []),
    *(_scores(i, network['scores']) for i, network in enumerate(networks, 1)),
    '## How to run it',
    _RUN.strip().replace('SCANS', _scans(first)),
    '## Licence and versions',
    'The program in this file is under the Apache License 2.0, as is its copy of flatbuffers (Google). The weights '
    'were trained on the data above, whose terms may bind their use: ask whoever gave you this file.',
    f'Made with {", ".join(f"{name} {version}" for name, version in _versions(meta["versions"]))}. The serialised '
    'networks run with this version of jax and those of about six months after it; the weights (`.safetensors`) do not '
    'age: with another version, import the file and export it again.',
  ]
  return '\n\n'.join(parts) + '\n'


def _scans(meta: Mapping) -> str:
  """The files of a scan on a command line, one for each channel."""
  several = channels.count(meta['data']['options'])
  return 'scan.nii.gz' if several == 1 else ' '.join(f'scan_{i:04d}.nii.gz' for i in range(several))


def _regions(data: Mapping) -> list[str]:
  """What the scores are of, where a data set has regions."""
  regions = data['options'].get('regions')
  if not regions:
    return []
  ids = [data['output_ids'][organ] for organ in data['organs']]
  rows = [[_plain(name), ', '.join(str(ids[c - 1]) for c in classes)] for name, classes in regions]
  return ['Scores are of regions, which are unions of these:', table_markdown(['region', 'ids in label maps'], rows)]


def _count(n: int) -> str:
  return f'{n} networks' if n > 1 else 'One network'


def _network_rows(networks: Sequence[Mapping]) -> list[list[str]]:
  metas = [network['meta'] for network in networks]
  numbers = lambda values: ' x '.join('any' if v is None else f'{v:g}' for v in values)
  one = lambda value: 'percentiles of the scan' if value == 'percentile' else f'{value[0]:g} to {value[1]:g}'
  window = lambda value: '; '.join(map(one, value)) if is_of_channels(value) else one(value)
  named = lambda meta: ', '.join(_plain(channel.name) for channel in channels.of(meta['data']['options']))
  several = {'channels': [named(meta) for meta in metas]} if any(map(named, metas)) else {}
  columns = {
    'run': [_plain(network['name']) for network in networks],
    'network': [_plain(meta['model']['name']) for meta in metas],
    'size': [_plain(meta['model']['options'].get('size', '')) for meta in metas],
    'loss': [_plain(meta['config'].get('loss', {}).get('name', '')) for meta in metas],
    'trained steps': [str(meta['step']) for meta in metas],
    'fold': [_plain(meta['data'].get('fold') or '-') for meta in metas],
    **several,
    'intensity window': [window(meta['data']['window']) for meta in metas],
    'working grid (voxels)': [numbers(meta['data']['options']['size']) or 'as the spacing gives' for meta in metas],
    'spacing (mm)': [numbers(meta['data']['options']['spacing_mm']) for meta in metas],
    'fitted by': [meta['data']['options']['fit'] for meta in metas],
    'patch or slice (voxels)': [numbers(meta['model']['input_size']) for meta in metas],
  }
  return [[name, *values] for name, values in columns.items()]


def _data_lines(networks: Sequence[Mapping], where: Mapping[str, str]) -> list[str]:
  lines = {}
  for network in networks:
    data, licence = network['meta']['data'], network['data_licence']
    named = f'licence: {_plain(licence)}' if licence else 'its licence is not recorded'
    lines[f'{_plain(data["name"])} ({data["modality"]}); {named}. {where.get(data["name"], "")}'.strip()] = None
  return list(lines)


def _scores(number: int, scores: Mapping | None) -> str:
  """The table of one network."""
  if scores is None:
    return f'Network {number}: not scored.'
  shown = [
    (name, title, factor, digits) for name, title, factor, digits in COLUMNS if name in ('dsc', 'hd95_pooled_mm', 'nsd')
  ]
  unit = lambda factor: '%' if factor == 100 else scores['unit']
  head = ['organ', *(f'{title} ({unit(factor)})' for _, title, factor, _ in shown), 'missed', 'false', 'absent']
  rows = []
  for organ, row in scores['organs'].items():
    cells = [cell(Summary(*(math.nan if v is None else v for v in row[name])), digits) for name, _, _, digits in shown]
    rows.append([_plain(organ), *cells, *(str(row[flag]) for flag in ('missed', 'false_positive', 'absent'))])
  return (
    f'Network {number}: {scores["cases"]} case(s) of the split `{scores["split"]}`, convention '
    f'`{scores["convention"]}`; mean ± standard deviation [95 % bootstrap interval of the mean].'
    + (' These cases also chose the checkpoint.' if scores['split'] == 'val' and scores['checkpoint'] == 'best' else '')
    + f'\n\n{table_markdown(head, rows)}'
  )


def _versions(versions: Mapping) -> list[tuple[str, str]]:
  packages = versions['packages']
  return [('Python', versions['python']), *((name, packages[name]) for name in ('jax', 'jaxlib', 'flax', 'numpy'))]


def _plain(value: object) -> str:
  """A name that people chose, as text that Markdown and HTML show as it is."""
  text = ' '.join(str(value).split()).replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
  return ''.join(f'\\{c}' if c in '\\`*[]!' else c for c in text)
