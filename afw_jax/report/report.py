"""The report of a run: tables with confidence intervals, curves, and the comparison of several runs."""

import glob
import importlib.util
import json
import os

import numpy as np

from afw_jax.errors import InputError
from afw_jax.report import figures, tables
from afw_jax.report.runs import Run, read_run
from afw_jax.report.stats import paired
from afw_jax.report.tables import format_table, heading, markdown, number
from afw_jax.training import metric_writer

_RULES = {
  'strict': 'Distances use the spacing of each scan. An organ that was missed, and one predicted where there is none, count with '
  'DSC 0, NSD 0 and the diagonal of the image as distance. An organ that is neither in the truth nor predicted is skipped.',
  'transunet': "TransUNet's: distances in voxels, spacing ignored. A missed organ counts with DSC 0 and distance 0 (a perfect "
  'distance), a falsely predicted one with DSC 1 and distance 0, an organ in neither with DSC 0 and distance 0.',
  'unetrpp': "UNETR++'s: distances in voxels, spacing ignored. A missed or falsely predicted organ counts with DSC 0 and distance "
  '0, an organ in neither with DSC 1 and distance 0.',
  'monai': "MONAI's: with spacing. An organ not in the truth has no DSC; one that is missed or falsely predicted has no HD95 "
  '(it drops out of the mean: see the counts) and an infinite HD.',
}
_SPLITS = {
  'val': '**Validation split.** It also chose the checkpoint, so these scores are optimistic.',
  'train': '**Training split.** The network has learned these very cases: the scores say how well it fits, not how well it works.',
}
FEW_CASES = 12


def report(workdir: str) -> dict[str, str]:
  """Writes WORKDIR/report: report.md, scores.csv (case and organ), table.csv, table.tex and the curves of the training.

  Args:
    workdir: of an evaluated run (config.json, cases/*.json; metrics.jsonl for the curves).

  Returns:
    name -> path: 'report', 'scores', 'table', 'tex', and 'curves', 'learned_weights', 'gamma' where they were drawn.

  Raises:
    InputError: no scores, or scores that cannot share a table (see `runs.read_run`).
  """
  run = read_run(workdir)
  folder = os.path.join(workdir, 'report')
  paths = {
    name: os.path.join(folder, file)
    for name, file in (('report', 'report.md'), ('scores', 'scores.csv'), ('table', 'table.csv'), ('tex', 'table.tex'))
  }
  drawn = figures.draw_run(folder, metric_writer.read_metrics(workdir)) if _can_draw() else {}
  _write(paths['scores'], tables.scores_csv(run))
  _write(paths['table'], tables.table_csv(run))
  _write(paths['tex'], tables.table_tex(run))
  _write(paths['report'], _markdown_report(run, folder, list(drawn.values())))
  return paths | drawn


def summary(workdir: str) -> list[str]:
  """Writes the report and returns what the terminal shows: the per-organ table and where everything is."""
  paths = report(workdir)
  lines = ['', format_table(read_run(workdir)), '', *(f'{name + ":":<17}{path}' for name, path in paths.items())]
  for name in ('pictures', 'predictions'):
    folder = os.path.join(workdir, name)
    if os.path.isdir(folder):
      lines.append(f'{name + ":":<17}{folder} ({len(os.listdir(folder))} files)')
  return lines if _can_draw() else [*lines, 'No curves: matplotlib is not installed (pip install afw_jax[viz]).']


def compare(workdirs: list[str]) -> str:
  """Sets several runs side by side on the same cases and tests each against the first.

  Args:
    workdirs: of evaluated runs, two or more; all scored under one convention, with the same organs.

  Returns:
    Markdown: the mean DSC and HD95 with 95 % confidence intervals, every organ's DSC, and for each run the paired
    difference to the first with its interval and Wilcoxon's signed-rank test over cases.

  Raises:
    InputError: fewer than two runs, or runs that have no case in common or were not scored alike.
  """
  if len(workdirs) < 2:
    raise InputError('workdirs', f'{len(workdirs)} run(s) given', 'Name two or more to compare.')
  runs = [read_run(w) for w in workdirs]
  first = runs[0]
  for run in runs[1:]:
    for field in ('dataset', 'convention', 'unit', 'nsd_tolerance', 'organs'):
      if getattr(run, field) != getattr(first, field):
        raise InputError(
          run.workdir,
          f'has {field} {getattr(run, field)!r}, {first.workdir} has {getattr(first, field)!r}',
          'Evaluate both in the same way (--mode=evaluate).',
        )
  common = [case for case in first.cases if all(case in run.cases for run in runs)]
  left_out = len({case for run in runs for case in run.cases}) - len(common)
  if not common:
    raise InputError(', '.join(workdirs), 'have no case in common', 'Evaluate them on the same split.')
  runs = [_only(run, common) for run in runs]
  first, names = runs[0], _names(runs)
  unit = heading(first, 'hd95_pooled_mm', 'HD95')
  overview, tests = [], []
  for name, run in zip(names, runs):
    mean = tables.organ_rows(run)[-1][1]
    dsc, hd = mean['dsc'], mean['hd95_pooled_mm']
    overview.append(
      [
        name,
        f'{number(dsc.mean)} [{number(dsc.low)}, {number(dsc.high)}]',
        f'{number(hd.mean)} [{number(hd.low)}, {number(hd.high)}]',
        *(str(int(run.flags[f].sum())) for f in ('missed', 'false_positive')),
      ]
    )
    if run is not first:
      results = [
        paired(first.mean_over_organs(key) * factor, run.mean_over_organs(key) * factor)
        for key, factor in (('dsc', 100), ('hd95_pooled_mm', 1))
      ]
      tests.append(
        [
          f'{name} - {names[0]}',
          *(
            v
            for r in results
            for v in (f'{r.difference:+.2f} [{r.low:+.2f}, {r.high:+.2f}]'.replace('+nan', '-'), _p(r.p))
          ),
          str(results[0].n),
        ]
      )
  least = paired(first.mean_over_organs('dsc'), first.mean_over_organs('dsc')).least_p
  notes = [
    f'{len(common)} common case(s)'
    + (f' ({left_out} others left out)' if left_out else '')
    + f', {first.dataset}, split '
    f'{first.split}. Metric convention: **{first.convention}**. {_RULES[first.convention]}',
    'Brackets: 95 % bootstrap intervals over cases (5000 resamples, seed 0). p: Wilcoxon signed-rank test, two-sided, over '
    f'cases, not corrected for several comparisons; with {len(common)} cases it cannot be below {least:.2g}. It measures '
    'the spread over cases of these trained networks, not over training seeds.',
    *_caution(len(common)),
  ]
  return (
    '\n\n'.join(
      [
        '# Comparison',
        *notes,
        markdown(['run', 'DSC (%) [95 % CI]', f'{unit} [95 % CI]', 'missed', 'false'], overview),
        '## Paired differences',
        markdown(['runs', 'DSC (%)', 'p', unit, 'p', 'cases'], tests),
        '## DSC of each organ',
        tables.wide_table(list(zip(names, runs))),
      ]
    )
    + '\n'
  )


def _markdown_report(run: Run, folder: str, drawn: list[str]) -> str:
  tolerance = run.nsd_tolerance if isinstance(run.nsd_tolerance, (int, float)) else json.dumps(run.nsd_tolerance)
  options = f' ({", ".join(f"{k}={v}" for k, v in run.loss_options.items())})' if run.loss_options else ''
  worst = np.argsort(run.mean_over_organs('dsc'), kind='stable')[:5]
  rows = [
    [
      run.cases[i],
      number(100 * run.mean_over_organs('dsc')[i]),
      number(run.mean_over_organs('hd95_pooled_mm')[i]),
      ', '.join(o for o, lost in zip(run.organs, run.flags['missed'][i]) if lost) or '-',
      ', '.join(o for o, false in zip(run.organs, run.flags['false_positive'][i]) if false) or '-',
    ]
    for i in worst
  ]
  parts = [
    f'# {run.network} with {run.loss} on {run.dataset}',
    f'Loss: {run.loss}{options}. {len(run.cases)} case(s) of split `{run.split}`, each scored as a volume on its own grid.',
    f'Metric convention: **{run.convention}**. {_RULES[run.convention]}',
    f'## Scores by organ ({run.convention}, distances in {run.unit})',
    tables.organ_table(run),
    'Mean ± sample standard deviation over cases [95 % bootstrap interval of the mean, 5000 resamples, seed 0]. The row '
    f'`{tables.MEAN}` averages the organs of each case first. HD95 is the 95th percentile of the distances of both directions '
    f'together, HD95 max the larger of the two directed percentiles. NSD within {tolerance} {run.unit}. `scored`: '
    'cases in the DSC mean (last row: organs of cases).',
    *([_SPLITS[run.split]] if run.split in _SPLITS else []),
    *_caution(len(run.cases)),
    f'## Organs as columns ({run.convention})',
    tables.wide_table([(run.loss, run)]),
    '## Lowest cases',
    markdown(['case', 'DSC (%)', heading(run, 'hd95_pooled_mm', 'HD95'), 'missed', 'false'], rows),
    'Every case and organ: `scores.csv`.',
  ]
  pictures = [*drawn, *sorted(glob.glob(os.path.join(glob.escape(run.workdir), 'pictures', '*.png')))]
  if pictures:
    parts += ['## Pictures', *(f'![{os.path.basename(p)[:-4]}]({os.path.relpath(p, folder)})' for p in pictures)]
  return '\n\n'.join(parts) + '\n'


def _caution(n: int) -> list[str]:
  if n >= FEW_CASES:
    return []
  return [
    f'**Only {n} case(s).** Bootstrap intervals of so few cases are too narrow (a nominal 95 % covers about 80 % with 4 '
    'cases, 88 % with 8): take them as a rough scale, and no small difference as shown.'
  ]


def _only(run: Run, cases: list[str]) -> Run:
  rows = [run.cases.index(case) for case in cases]
  pick = lambda named: {name: table[rows] for name, table in named.items()}
  return run._replace(cases=tuple(cases), scores=pick(run.scores), flags=pick(run.flags), volumes=pick(run.volumes))


def _names(runs: list[Run]) -> list[str]:
  """Shortest names that tell the runs apart: the loss, network and loss, or the workdir."""
  for name in (lambda r: r.loss, lambda r: f'{r.network} {r.loss}'):
    if len({name(r) for r in runs}) == len(runs):
      return [name(r) for r in runs]
  return [os.path.normpath(r.workdir) for r in runs]


def _p(value: float) -> str:
  return '-' if np.isnan(value) else '< 0.001' if value < 0.001 else f'{value:.3f}'


def _can_draw() -> bool:
  return importlib.util.find_spec('matplotlib') is not None


def _write(path: str, text: str) -> None:
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + '.tmp', 'w') as f:
      f.write(text)
      f.flush()
      os.fsync(f.fileno())
    os.replace(path + '.tmp', path)
  except OSError as error:
    raise InputError(
      path, f'cannot be written ({error})', 'Free space or choose another place with --workdir.'
    ) from error
